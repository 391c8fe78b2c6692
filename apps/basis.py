"""The PCA basis that colours all steps of a run: a function of the run's snapshots alone, and seldom another one."""

from __future__ import annotations

from threading import Lock
from typing import Any, NamedTuple

from torch import Tensor

from apps.feed import RunFeed
from workbench.analysis.pca import Basis, align_basis, color_range, fit_pca, project
from workbench.run_source import sample_tokens, spread
from workbench.runs import Run
from workbench.views.encode import encode_basis

SHOWN = 0.85
"""A basis stays while its colours show this share of the variance that the best three components would show."""

Stamp = tuple[int, int, int]


class Fit(NamedTuple):
    """A basis with its colour limits [3, 2], the steps it was fitted on, and the bytes that travel."""

    basis: Basis
    limits: Tensor
    steps: list[int]
    content: bytes


class Link(NamedTuple):
    """A milestone: the files it rests on, the fit in force from there on, and the steps at which colours changed."""

    stamps: list[Stamp]
    fit: Fit
    refits: list[int]


def milestones(count: int) -> list[int]:
    """The numbers of snapshots, up to `count`, at which the basis is looked at anew: 1, 2, 3, 4, 6, 8, 12, 16, 24, …"""
    every = {factor << doublings for factor in (1, 3) for doublings in range(count.bit_length())}
    return sorted(number for number in every if number <= count)


def shown_variance(fit: Fit, tokens: Tensor) -> float:
    """Variance of `tokens` [N, D] that the colours of `fit` show: along its components, cut off at its limits."""
    low, high = fit.limits.unbind(dim=1)
    return project(fit.basis, tokens).clamp(low, high).var(dim=0).sum().item()


def next_fit(tokens: Tensor, steps: list[int], kept: Fit | None) -> Fit:
    """`kept` itself while it shows enough of `tokens` [N, D]; else one fitted on them, its colours turned to `kept`'s.

    Turning is a rotation within the new subspace (orthogonal Procrustes), so that no component flips or swaps.
    """
    basis = fit_pca(tokens)
    if kept is not None and kept.basis.components.shape == basis.components.shape:
        if shown_variance(kept, tokens) >= SHOWN * basis.variance.sum().item():
            return kept
        basis = align_basis(basis, kept.basis)
    limits = color_range(project(basis, tokens))
    return Fit(basis, limits, steps, encode_basis(basis, limits))


class BasisCache:
    """The bases of runs, milestone by milestone.

    What a run gets depends on its snapshots only: every server works through the same milestones from the first
    snapshot on, whenever it was started. Links are kept as long as the files they rest on are the same.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[tuple[str, str], list[Link]] = {}

    def encoded(self, feed: RunFeed, steps: list[int]) -> tuple[bytes, dict[str, Any]]:
        """Safetensors bytes (mean [D], components [3, D], range [3, 2]) and {"steps", "explained", "refits"}.

        `steps` rise and are not empty. The answer names those the basis was fitted on, the share of their total
        variance along each component, and the steps at which the colours of this run changed.
        """
        with self._lock:
            fit, refits = self._latest(feed, steps)
        total = fit.basis.total_variance or 1.0
        explained = [share / total for share in fit.basis.variance.tolist()]
        return fit.content, {"steps": fit.steps, "explained": explained, "refits": refits}

    def fit(self, feed: RunFeed, steps: list[int]) -> Fit:
        """The fit in force at the latest of the rising `steps` (not empty)."""
        with self._lock:
            return self._latest(feed, steps)[0]

    def _latest(self, feed: RunFeed, steps: list[int]) -> tuple[Fit, list[int]]:
        chain = self._kept.setdefault((feed.identity, feed.version), [])
        stamps = [feed.run.probe_stamp(step) for step in steps]
        for place, count in enumerate(milestones(len(steps))):
            if place < len(chain) and chain[place].stamps == stamps[:count]:
                continue
            del chain[place:]
            chain.append(self._link(feed.run, steps[:count], stamps[:count], chain[-1] if chain else None))
        del chain[len(milestones(len(steps))) :]
        return chain[-1].fit, chain[-1].refits

    def _link(self, run: Run, steps: list[int], stamps: list[Stamp], before: Link | None) -> Link:
        chosen = spread(steps)
        fit = next_fit(sample_tokens(run, chosen), chosen, before.fit if before else None)
        if before is None:
            return Link(stamps, fit, [])
        return Link(stamps, fit, before.refits if fit is before.fit else [*before.refits, steps[-1]])
