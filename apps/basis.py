"""One PCA basis for all steps of a run, the same for every viewer, whose colours never flip while the run grows."""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch
from torch import Tensor

from apps.feed import RunFeed
from workbench.analysis.pca import Basis, align_basis, color_range, fit_pca, project
from workbench.runs import Run
from workbench.views.encode import encode_basis

SNAPSHOTS = 16
"""The basis is fitted on at most this many snapshots, spread over the run, the first and the latest among them."""
TOKENS = 16_000
"""About this many patch tokens in all; above it an even subset of each snapshot is taken."""


def spread(steps: list[int], count: int = SNAPSHOTS) -> list[int]:
    """At most `count` of the rising `steps`, evenly spread by position; first and last are always among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(k * (len(steps) - 1) / (count - 1))] for k in range(count)]


def sample_tokens(run: Run, steps: list[int]) -> Tensor:
    """Patch tokens [N, D] float32 of the probe images at `steps`, the same number from each snapshot."""
    each = max(1, TOKENS // len(steps))
    rows = []
    for step in steps:
        tokens = run.probe_features(step).patches.flatten(0, 2)
        rows.append(tokens[:: -(-len(tokens) // each)].float())
    return torch.cat(rows)


def joint_basis(tokens: Tensor, previous: Basis | None) -> Basis:
    """Three components fitted on `tokens` [N, D], rotated towards `previous` so that colours stay what they were."""
    basis = fit_pca(tokens)
    if previous is None or previous.components.shape != basis.components.shape:
        return basis
    return align_basis(basis, previous)


class BasisCache:
    """The latest basis of each run, by the steps it was fitted on."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[tuple[str, str], tuple[list[int], Basis, bytes]] = {}

    def encoded(self, feed: RunFeed, steps: list[int]) -> tuple[bytes, dict[str, Any]]:
        """Safetensors bytes (mean [D], components [3, D], range [3, 2]) and {"steps", "explained"}.

        `explained` is the share of the total variance along each component.
        """
        chosen, key = spread(steps), (feed.identity, feed.version)
        with self._lock:
            known = self._kept.get(key)
            if known is None or known[0] != chosen:
                tokens = sample_tokens(feed.run, chosen)
                basis = joint_basis(tokens, known[1] if known else None)
                known = self._kept[key] = (chosen, basis, encode_basis(basis, color_range(project(basis, tokens))))
        total = known[1].total_variance or 1.0
        return known[2], {"steps": known[0], "explained": [share / total for share in known[1].variance.tolist()]}
