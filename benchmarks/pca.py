"""How long do a PCA basis and a similarity map of a large grid take, beside what one would write first?

    python benchmarks/pca.py [--tokens 65536 --channels 1024 --rounds 5 --threads 1]

Interleaved rounds in one process on the same float32 tokens; prints medians, ratios of CPU seconds to the exact basis
in float32, and how far the answers are apart. CPU seconds are those of all threads together; `--threads` holds for
PyTorch and for the BLAS of NumPy and SciPy alike (default: as many as they take). `torch.pca_lowrank` centres and
iterates twice (its defaults), and is asked for three components, and for six of which three are kept.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import tyro
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor

from workbench.analysis.pca import Basis, fit_pca, fit_pca_sampled, subspace_cosine
from workbench.analysis.similarity import UnitPatches, similarity


def features_like(count: int, channels: int) -> Tensor:
    """Tokens [N, D] whose spectrum falls much as that of a vision transformer's features: deviations k^-0.8."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, channels + 1).float().pow(-0.8)
    rotation = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    return (torch.randn(count, channels, generator=generator) * scale) @ rotation + 0.3


def timed(function: Callable[[], object]) -> tuple[float, float, object]:
    """(seconds by the clock, CPU seconds, answer)."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = function()
    return time.perf_counter() - wall, time.process_time() - cpu, answer


def main(
    tokens: int = 65_536, channels: int = 1024, rounds: int = 5, queries: int = 10, threads: int | None = None
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
        threadpool_limits(threads)
    x = features_like(tokens, channels)
    array = x.numpy()
    ways: dict[str, Callable[[], object]] = {
        "fit_pca, float32 sums": lambda: fit_pca(x, accumulate=torch.float32),
        "fit_pca, float64 sums": lambda: fit_pca(x),
        "fit_pca_sampled": lambda: fit_pca_sampled(x),
        "torch.pca_lowrank, q=3": lambda: torch.pca_lowrank(x, q=3),
        "torch.pca_lowrank, q=6": lambda: torch.pca_lowrank(x, q=6),
        "scikit-learn, covariance": lambda: PCA(3, svd_solver="covariance_eigh").fit(array),
    }
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    print(f"{tokens} x {channels}, {torch.get_num_threads()} threads, {rounds} interleaved rounds, {load}")
    walls, cpus, answers = race(ways, rounds)
    base = cpus["fit_pca, float32 sums"]
    exact = answers["fit_pca, float64 sums"]
    for name in ways:
        angle = subspace_cosine(as_basis(answers[name]), exact)
        ratio = f"{cpus[name] / base:5.2f} x"
        print(f"{name:26s} {walls[name]:7.3f} s, {cpus[name]:7.3f} CPU s, {ratio}, cosine {angle:.6f}", flush=True)
    rows(x, channels, rounds, queries)


def race(ways: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, float], dict]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    answers = {}
    for turn in range(rounds + 1):  # the first warms up
        for name, function in ways.items():
            wall, cpu, answers[name] = timed(function)
            if turn:
                times[name].append((wall, cpu))
    walls = {name: statistics.median(wall for wall, _ in own) for name, own in times.items()}
    return walls, {name: statistics.median(cpu for _, cpu in own) for name, own in times.items()}, answers


def as_basis(answer: object) -> Basis:
    """The three components of any of the answers."""
    if isinstance(answer, Basis):
        return answer
    components = answer[2].T[:3] if isinstance(answer, tuple) else torch.from_numpy(answer.components_)  # type: ignore[attr-defined]
    return Basis(components.new_zeros(components.shape[1]), components, components.new_zeros(3), 1.0)


def rows(x: Tensor, channels: int, rounds: int, queries: int) -> None:
    """One similarity map from units made once, beside normalising all patches for each."""
    side = int(len(x) ** 0.5)
    patches = x[: side * side].reshape(1, side, side, channels)
    units = UnitPatches(patches)
    places = [(0, (7 * k) % side, (13 * k) % side) for k in range(queries)]
    ways: dict[str, Callable[[], object]] = {
        "one map, units kept": lambda: [units.map(place) for place in places],
        "one map, normalised anew": lambda: [similarity(patches, place) for place in places],
    }
    walls, _, answers = race(ways, rounds)
    apart = max((a - b).abs().max().item() for a, b in zip(*answers.values(), strict=True))
    for name, wall in walls.items():
        print(f"{name:26s} {1000 * wall / queries:7.2f} ms")
    fast, slow = walls.values()
    print(f"kept units are {slow / fast:.1f} times as fast; maps differ by at most {apart:.1e}")


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
