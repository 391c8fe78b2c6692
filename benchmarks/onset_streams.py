"""Synthetic streams of evaluations whose onset is known, with noise as real runs have it: for benchmarks/onset.py."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from workbench.analysis.onset import LABELLED, OnsetConfig, curve, noise
from workbench.runs import Run

Rows = list[dict[str, Any]]
WARMUP = 100


class Noise(NamedTuple):
    """How one score of one run strays from its smooth course (a parabola over the judged rows)."""

    scatter: float
    """Standard deviation from one evaluation to the next, without what neighbours share."""
    stray: float
    """Standard deviation around the parabola."""
    memory: float
    """Correlation of neighbouring rows' distances to it."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Made-up evaluations."""

    rows: Rows
    onset: int | None
    """Index of the last row before the decline; None: there is none."""
    drop: float
    """How much patch k-NN loses in all (a fraction)."""
    length: int
    """In so many rows."""
    course: list[float] = field(default_factory=list)
    """Patch k-NN without noise and decline, up to a constant."""


def measured(run: Run) -> dict[str, Noise]:
    """The noise of each labelled score of `run`, by its name; scores with fewer than five judged rows are left out."""
    rows = [row for row in run.evaluations()[0] if row.get("backbone") == run.main_role]
    found = {}
    for key in LABELLED:
        steps, values, *_ = curve(rows, key, OnsetConfig())
        if len(values) < 5:
            continue
        off = np.asarray(values) - np.polyval(np.polyfit(steps, values, 2), steps)
        memory = float(np.corrcoef(off[:-1], off[1:])[0, 1])
        scatter = noise(steps, values, 0.0) * ((len(values) + 2) / (len(values) - 2)) ** 0.5  # without the prior's rows
        found[key] = Noise(scatter, float(np.sqrt((off**2).sum() / (len(off) - 3))), memory)
    return found


def streams(count: int, *, declining: bool, seed: int, scatter: Sequence[float], level: bool = False) -> list[Stream]:
    """`count` streams: a dip in the first 30 to 100 steps, a rise, then a plateau, a further rise or a decline.

    The rise ends where a decline begins; with `level` there is none, and all after the dip is a plateau.

    `scatter` gives the least and the largest noise; each stream draws one between (log-uniformly). A part of it, 20 to
    90 % of the variance, is remembered over 40 to 120 steps, as weights and their moving average wander: the closer
    the evaluations, the more alike neighbours are.
    """
    generator = np.random.default_rng(seed)
    return [_stream(generator, declining, scatter, 0.0 if level else 0.12) for _ in range(count)]


def _stream(rng: np.random.Generator, declining: bool, scatter: Sequence[float], rise: float) -> Stream:
    count, every = int(rng.integers(20, 80)), int(rng.choice([10, 20, 50, 100, 200]))
    steps = np.arange(count) * every
    first = max(np.searchsorted(steps, WARMUP) + 6, 8)
    onset = int(rng.integers(first, max(count - 8, first + 1))) if declining else None
    steps = np.arange(max(count, first + 12)) * every
    drop = float(rng.uniform(0.04, 0.12)) if declining else 0.0
    length = int(rng.integers(3, 25))
    lost = _fall(len(steps), onset, length)
    course = _course(rng, steps, rise)
    if onset is not None:
        course[onset:] = course[onset]
    sigma = float(np.exp(rng.uniform(*np.log(scatter))))
    error = float(rng.uniform(0.5, 2.0)) * sigma if rng.random() < 0.5 else None
    scale = {"dense/patch_knn": (0.35, 1.0, drop), "dense/linear_miou": (0.17, 0.5, drop * float(rng.uniform(0, 0.6)))}
    quieter = {"dense/patch_knn": 1.0, "dense/linear_miou": float(rng.uniform(0.3, 1.0))}
    scores = {
        key: base + size * course - loss * lost + _noise(rng, steps, sigma * quieter[key])
        for key, (base, size, loss) in scale.items()
    }
    early = _fall(len(steps), None if onset is None else max(onset - int(rng.integers(0, 6)), 1), 20)
    better = (course - 1.2 * drop * early, 0.3 * sigma)
    scores["health/within_variance"] = 0.35 + better[0] + _noise(rng, steps, better[1])
    scores["health/cls_patch_cosine"] = 0.5 - 2 * better[0] + _noise(rng, steps, better[1])
    scores["health/far_cosine"] = 0.7 - better[0] + _noise(rng, steps, better[1])
    rows = [
        {"step": int(step), **{key: float(values[i]) for key, values in scores.items()}} for i, step in enumerate(steps)
    ]
    if error is not None:
        rows = [row | {f"{key}:se": error for key in LABELLED} for row in rows]
    return Stream(rows=rows, onset=onset, drop=drop, length=length, course=course.tolist())


def _course(rng: np.random.Generator, steps: np.ndarray, rise: float) -> np.ndarray:
    """The dip and a rise of at most `rise`, without noise, 0 at step 0."""
    bottom, width, depth = rng.uniform(30, 100), rng.uniform(20, 50), rng.uniform(0.02, 0.12)
    dip = -depth * np.minimum(steps / bottom, 1) * np.exp(-np.maximum(steps - bottom, 0) / (2 * width))
    tau = rng.uniform(0.05, 0.8) * steps[-1]  # a short rise ends on a plateau, a long one never ends
    return dip + rng.uniform(0.0, rise) * (1 - np.exp(-steps / tau))


def _fall(count: int, onset: int | None, length: int) -> np.ndarray:
    """0 up to row `onset`, then a straight line to 1 in `length` rows, then 1."""
    if onset is None:
        return np.zeros(count)
    return np.clip((np.arange(count) - onset) / length, 0, 1)


def _noise(rng: np.random.Generator, steps: np.ndarray, sigma: float) -> np.ndarray:
    """[rows] of standard deviation `sigma`: a part is new at each row, the rest is remembered for some steps."""
    share, memory = rng.uniform(0.2, 0.9), np.exp(-(steps[1] - steps[0]) / rng.uniform(40, 120))
    wander = rng.normal(size=len(steps))
    for i in range(1, len(steps)):
        wander[i] = memory * wander[i - 1] + np.sqrt(1 - memory**2) * wander[i]
    return sigma * (np.sqrt(1 - share) * rng.normal(size=len(steps)) + np.sqrt(share) * wander)


def middle(values: Sequence[float]) -> float:
    """The median; nan of nothing."""
    return statistics.median(values) if values else float("nan")
