"""One patch against all others: the view of `PatchView`, and the same numbers for plain code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.analysis.similarity import similarity, unit
from workbench.features import Features
from workbench.views.encode import Transport
from workbench.views.payloads import Summary
from workbench.views.steps import FeatureSteps

Patch = dict[str, int]
"""{"image", "row", "col"}, from 0; row 0 is the top."""


def best_matches(patches: Tensor, query: tuple[int, int, int]) -> list[dict[str, Any] | None]:
    """The most similar patch of every image of `patches` [I, H, W, D]: [{"image", "row", "col", "similarity"}].

    On the query's own image its 3x3 neighbourhood is left out, since neighbours nearly always win; None where nothing
    is left.
    """
    maps = similarity(patches, query)
    image, row, col = query
    maps[image, max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2] = -torch.inf
    values, places = maps.flatten(1).max(dim=1)
    columns = patches.shape[2]
    return [
        {"image": i, "row": place // columns, "col": place % columns, "similarity": value} if value >= -1 else None
        for i, (value, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True))
    ]


class SimilarityView:
    """Images side by side with their features: what is shown, which patch is selected, and what it resembles.

    Args:
        features: of I images. images: [I, 3, h, w], uint8 or float in [0, 1]. captions: one text or {"en", "zh"} each.
    """

    def __init__(self, features: Features, images: Tensor, captions: Sequence[Any] | None = None) -> None:
        self.features = features
        self._payloads = FeatureSteps(images, {0: features}, captions=captions)
        height, width = features.grid
        self.selection: Patch = {"image": 0, "row": height // 2, "col": width // 2}

    def state(self) -> dict[str, Any]:
        """{"view", "selection", "images", "grid"}: what a host needs to mount the renderer."""
        count = len(self.features.patches)
        return {"view": "patches", "selection": dict(self.selection), "images": count, "grid": list(self.features.grid)}

    def select(self, event: Patch) -> dict[str, Any]:
        """Select a patch; returns it with "norm", "cls" (cosine to its image's class token) and "best" matches.

        Raises ValueError when the patch lies outside.
        """
        query = (int(event["image"]), int(event["row"]), int(event["col"]))
        best = best_matches(self.features.patches, query)
        self.selection = dict(zip(("image", "row", "col"), query, strict=True))
        patch, cls = self.features.patches[query], self.features.cls[query[0]]
        return {
            **self.selection,
            "norm": patch.float().norm().item(),
            "cls": (unit(patch) @ unit(cls)).item(),
            "best": best,
        }

    def summary(self) -> Summary:
        return self._payloads.summary()

    def image(self, index: int) -> bytes:
        return self._payloads.image(index)

    def probes(self, step: int, dtype: Transport) -> bytes:
        return self._payloads.probes(step, dtype)

    def basis(self) -> tuple[dict[str, Any], bytes | None]:
        return self._payloads.basis()
