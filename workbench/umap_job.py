"""UMAP of patches as a job in its own process: minutes on two cores, so it can be cancelled and is kept on disk."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = Literal["running", "done", "failed", "cancelled"]
MOST_TOKENS = 20_000


class Embedding(NamedTuple):
    """Where patches lie on the map."""

    points: Tensor
    """float32 [M, 2]."""
    chosen: Tensor
    """int64 [M], rising: the token of each point, among those given."""


class UmapJob:
    """A two-dimensional UMAP of `tokens` [N, D], begun at once in a process of its own, or found in `cache`.

    Above `most` tokens an even subset is taken. Cosine metric and a fixed `seed`, which keeps UMAP to one core and the
    map the same every time. The cache's key is the SHA-256 of tokens, settings and the version of umap-learn; a job
    that is cancelled or killed leaves nothing there. PCA is the live alternative. Source: McInnes et al. 2018
    (arXiv 1802.03426), by umap-learn.

    Raises ValueError for fewer than 4 tokens, values that are not finite, or settings out of range.
    """

    def __init__(
        self,
        tokens: Tensor,
        cache: Path,
        *,
        neighbours: int = 15,
        min_distance: float = 0.1,
        seed: int = 0,
        most: int = MOST_TOKENS,
    ) -> None:
        if tokens.dim() != 2 or len(tokens) < 4 or not torch.isfinite(tokens).all():
            raise ValueError(f"UMAP wants 4 or more finite tokens [N, D], got shape {tuple(tokens.shape)}.")
        if neighbours < 2 or not 0 <= min_distance <= 1 or most < 4 or seed < 0:
            raise ValueError(
                f"UMAP wants 2 neighbours or more, a distance in 0 to 1, a seed from 0 and 4 tokens or more; got "
                f"{neighbours}, {min_distance}, {seed}, {most}."
            )
        count = min(most, len(tokens))
        self.chosen = torch.arange(count) * len(tokens) // count
        rows = tokens.detach().cpu()[self.chosen].float().contiguous()
        version = importlib.metadata.version("umap-learn")
        settings = {
            "n_neighbors": min(neighbours, count - 1),
            "min_dist": min_distance,
            "random_state": seed,
            "version": version,
        }
        digest = hashlib.sha256(rows.numpy().tobytes())
        digest.update(json.dumps([list(rows.shape), settings], sort_keys=True).encode())
        self._file = Path(cache) / f"umap-{digest.hexdigest()}.safetensors"
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if not self._file.exists():
            self._start(rows, settings)

    def _start(self, rows: Tensor, settings: dict[str, object]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix=".umap-", dir=self._file.parent)
        work = Path(self._folder.name)
        save_file({"tokens": rows}, work / "tokens.safetensors", {"settings": json.dumps(settings)})
        with (work / "messages").open("wb") as messages:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "workbench.umap_job", str(work), str(self._file)],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
            )

    @property
    def state(self) -> State:
        """What has become of it; asked as often as one likes."""
        if self._process is not None and self._process.poll() is None:
            return "running"
        if self._cancelled:
            return "cancelled"
        return "done" if self._file.exists() else "failed"

    def cancel(self) -> None:
        """Stop it now; a map that was finished before stays."""
        if self.state == "running" and self._process is not None:
            self._cancelled = True
            self._process.kill()
            self._process.wait()
            self._tidy()

    def result(self, timeout: float | None = None) -> Embedding:
        """The map, when it is there, after at most `timeout` seconds (TimeoutError); RuntimeError if it failed."""
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"the UMAP is not there after {timeout} s; wait longer, or cancel it.") from None
        if self.state != "done":
            raise RuntimeError(f"the UMAP was {self.state}: {self._last_words()}")
        self._tidy()
        return Embedding(load_file(self._file)["points"], self.chosen)

    def _last_words(self) -> str:
        """The last line that the process wrote."""
        if self._folder is None or not (path := Path(self._folder.name) / "messages").exists():
            return "no message"
        lines = path.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "no message"

    def _tidy(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _main(work: Path, out: Path) -> None:
    """In the job's own process: read the tokens, write the map beside its name, rename."""
    from safetensors import safe_open
    from umap import UMAP

    with safe_open(work / "tokens.safetensors", "pt") as file:
        tokens, settings = file.get_tensor("tokens"), json.loads(file.metadata()["settings"])
    del settings["version"]
    points = UMAP(n_components=2, metric="cosine", init="pca", n_jobs=1, **settings).fit_transform(tokens.numpy())
    made = work / "points.safetensors"
    save_file({"points": torch.from_numpy(points).float().contiguous()}, made)
    os.replace(made, out)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
