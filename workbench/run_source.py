"""A run directory as what the renderer asks for: the same page in a notebook, or in one HTML file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.analysis.advice import without_command
from workbench.analysis.pca import color_range, explained, fit_pca, project
from workbench.runs import Run
from workbench.views.encode import Transport, encode_basis, encode_features, encode_image
from workbench.views.page import standalone_page
from workbench.views.payloads import Summary

SNAPSHOTS = 16
"""A PCA basis is fitted on at most this many snapshots, spread over those there are, first and latest included."""
TOKENS = 16_000
"""On about this many patch tokens in all; above it an even subset of each snapshot is taken."""
TEXTS = {"level": 20, "kind": 100, "text": 2000, "time": 40}
"""Fields of an event that are text, and how many characters of each are shown."""
NOT_SERIES = frozenset({"step", "seconds", "backbone"})


class RunSource:
    """A `PayloadSource` over a run: its probe images, features at `steps` (all by default), curves and events.

    Asked again, it reads what has come since; the basis is fitted anew where there are other steps. Raises ValueError
    for steps that have no features.
    """

    def __init__(self, run: Run | str | Path, steps: Sequence[int] | None = None) -> None:
        self.run = run if isinstance(run, Run) else Run(run)
        known = self.run.probe_steps()
        if steps is not None and (missing := sorted(set(steps) - set(known))):
            raise ValueError(f"{self.run.path} has no probe features at step {missing[0]}; it has {known}.")
        self._chosen = None if steps is None else sorted(set(steps))
        self._basis: tuple[list[int], dict[str, Any], bytes] | None = None

    @property
    def steps(self) -> list[int]:
        return self.run.probe_steps() if self._chosen is None else self._chosen

    def summary(self) -> Summary:
        run, steps = self.run, self.steps
        planned = run.info.get("steps")
        about = {
            "id": run.path.name,
            "name": run.name,
            "phase": str(run.info.get("phase") or ""),
            "status": run.status(),
        }
        return {
            "run": {**about, "steps": planned} if isinstance(planned, int) else about,
            "probes": self._probes(steps[-1]) if steps else None,
            "steps": steps,
            "series": self._series(),
            "events": [_told(row) for row in run.events()[0]],
        }

    def image(self, index: int) -> bytes:
        return encode_image(self.run.probe_images().images[index])

    def probes(self, step: int, dtype: Transport) -> bytes:
        return encode_features(self.run.probe_features(step), dtype)

    def basis(self) -> tuple[dict[str, Any], bytes | None]:
        steps = self.steps
        if not steps:
            return {"steps": [], "explained": []}, None
        if self._basis is None or self._basis[0] != steps:
            fitted = spread(steps)
            tokens = sample_tokens(self.run, fitted)
            basis = fit_pca(tokens)
            content = encode_basis(basis, color_range(project(basis, tokens)))
            self._basis = steps, {"steps": fitted, "explained": explained(basis)}, content
        return self._basis[1], self._basis[2]

    def _probes(self, step: int) -> Any:
        images, patches = self.run.probe_images(), self.run.probe_features(step).patches
        return {
            "count": len(images.images),
            "grid": tuple(patches.shape[1:3]),
            "image": tuple(images.images.shape[2:]),
            "dim": patches.shape[3],
            "captions": images.captions,
        }

    def _series(self) -> dict[str, dict[str, list[float | None]]]:
        """{name: {"step", "value"}} of metrics, and of the evaluations of the backbone that is looked at."""
        series: dict[str, dict[str, list[float | None]]] = {}
        main = self.run.main_role
        evaluations = [row for row in self.run.evaluations()[0] if row.get("backbone", main) == main]
        for row in (*self.run.metrics()[0], *evaluations):
            for name, value in row.items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if name not in NOT_SERIES and (value is None or number):
                    columns = series.setdefault(name, {"step": [], "value": []})
                    columns["step"].append(row["step"])
                    columns["value"].append(value)
        return series


def spread(steps: list[int], count: int = SNAPSHOTS) -> list[int]:
    """At most `count` of the rising `steps`, evenly spread by position; first and last are always among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(k * (len(steps) - 1) / (count - 1))] for k in range(count)]


def sample_tokens(run: Run, steps: list[int]) -> Tensor:
    """Patch tokens [N, D] float32 of the probe images at `steps`, the same number from each snapshot.

    Snapshots of another width than the last one's are left out.
    """
    each = max(1, TOKENS // len(steps))
    snapshots = [run.probe_features(step).patches.flatten(0, 2) for step in steps]
    alike = [tokens for tokens in snapshots if tokens.shape[1] == snapshots[-1].shape[1]]
    return torch.cat([tokens[:: -(-len(tokens) // each)].float() for tokens in alike])


def provenance(run: Run) -> dict[str, Any]:
    """Where a picture of `run` comes from: name, recipe, seed, code version, and hashes of config and images."""
    keys = ("name", "phase", "recipe", "seed", "code_version", "created", "parent")
    config = json.dumps(run.config, sort_keys=True, separators=(",", ":"))
    images = run.probe_images().images
    return {
        **{key: run.info.get(key) for key in keys},
        "backbone": run.main_role,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "images_sha256": hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest(),
    }


def run_page(run: Run, steps: Sequence[int] | None = None, *, dtype: Transport = "int8", **state: Any) -> str:
    """One HTML file of a run that needs no server and no network; `state` as of `standalone_page`.

    Raises ValueError for a run without probe features.
    """
    source = RunSource(run, steps)
    if not source.steps:
        raise ValueError(f"{run.path} has no probe features (yet); they come with its first evaluation.")
    about = {**provenance(run), "steps": source.steps, "dtype": dtype}
    return standalone_page(source, dtype=dtype, provenance=about, **state)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: str(row.get(name, ""))[:length] for name, length in TEXTS.items()}
    return {"step": row["step"], **texts, "text": without_command(texts["text"])}
