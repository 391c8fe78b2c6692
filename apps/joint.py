"""One PCA basis for two runs that are looked at side by side: the same colour means the same in both."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Any, NamedTuple

import torch

from apps.basis import BasisCache, Fit, Stamp, milestones
from apps.feed import RunFeed
from workbench.analysis.pca import align_basis, color_range, fit_pca, project
from workbench.run_source import sample_tokens, spread
from workbench.views.encode import encode_basis

SNAPSHOTS_EACH = 8
"""At most this many snapshots of each run, spread over those there are."""
PAIRS_KEPT = 16


class Pair(NamedTuple):
    """What the basis of two runs rests on: chosen steps of each, and the files of these."""

    steps: tuple[list[int], list[int]]
    stamps: tuple[list[Stamp], list[Stamp]]


class JointBasisCache:
    """Joint bases of the pairs of runs asked for lately.

    A basis is a function of the snapshots of both runs, and the same whichever is named first. Like the basis of one
    run it is looked at anew when a run's number of snapshots reaches a milestone, not at each new one. Its colours are
    turned towards those of the older run alone, so that a page shows them much as it does by itself.
    """

    def __init__(self, own: BasisCache) -> None:
        self._own = own
        self._lock = Lock()
        self._kept: OrderedDict[tuple, tuple[Pair, Fit]] = OrderedDict()

    def encoded(self, first: RunFeed, second: RunFeed) -> tuple[bytes, dict[str, Any]]:
        """Safetensors bytes as of `BasisCache`, and {"steps": {id: fitted on}, "explained"}.

        Raises ValueError when a run has no probe features yet, or the two have features of different widths.
        """
        older, younger = sorted((first, second), key=lambda feed: (str(feed.run.info.get("created")), feed.identity))
        with self._lock:
            pair, fit = self._fit(older, younger)
        total = fit.basis.total_variance or 1.0
        explained = [share / total for share in fit.basis.variance.tolist()]
        steps = dict(zip((older.identity, younger.identity), pair.steps, strict=True))
        return fit.content, {"steps": steps, "explained": explained}

    def _fit(self, older: RunFeed, younger: RunFeed) -> tuple[Pair, Fit]:
        key = (older.identity, older.version, younger.identity, younger.version)
        steps = _chosen(older), _chosen(younger)
        old, young = (
            [feed.run.probe_stamp(step) for step in of] for feed, of in ((older, steps[0]), (younger, steps[1]))
        )
        pair = Pair(steps, (old, young))
        known = self._kept.pop(key, None)
        if known is None or known[0] != pair:
            known = pair, self._new(older, younger, pair)
        self._kept[key] = known
        while len(self._kept) > PAIRS_KEPT:
            self._kept.popitem(last=False)
        return known

    def _new(self, older: RunFeed, younger: RunFeed, pair: Pair) -> Fit:
        tokens = [sample_tokens(feed.run, steps) for feed, steps in zip((older, younger), pair.steps, strict=True)]
        widths = [part.shape[1] for part in tokens]
        if widths[0] != widths[1]:
            raise ValueError(
                f"the features of the two runs have {widths[0]} and {widths[1]} channels; one basis needs the same "
                "number. Compare their similarity maps instead."
            )
        both = torch.cat(tokens)
        basis = align_basis(fit_pca(both), self._own.fit(older, list(older.run.probe_steps())).basis)
        limits = color_range(project(basis, both))
        return Fit(basis, limits, pair.steps[0], encode_basis(basis, limits))


def _chosen(feed: RunFeed) -> list[int]:
    steps = list(feed.run.probe_steps())
    if not steps:
        raise ValueError(f"{feed.run.name} has written no probe features yet; wait for its first evaluation.")
    return spread(steps[: milestones(len(steps))[-1]], SNAPSHOTS_EACH)
