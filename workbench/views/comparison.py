"""The same images in the eyes of several backbones, layers or steps: one row each, one click for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from workbench.analysis.pca import Basis, align_to_coordinates, color_range, fit_pca, project
from workbench.features import Features
from workbench.views.payloads import answer
from workbench.views.steps import FeatureSteps


class Comparison:
    """What the renderer's view "compare" is fed from: `FeatureSteps` of one step for each of several sources.

    Grids and widths may differ from source to source; a patch of one is looked up at the same place of the picture in
    the others. Each has PCA colours of its own, turned as near to those of the first as a rotation in their space
    brings them (`align_to_coordinates`): the same thing is drawn alike where sources see it alike.

    Args:
        images: [I, 3, h, w], uint8 or float in [0, 1]. features: {name: Features of the I images}; names are foreign
            text. captions: one text or {"en", "zh"} for each image.
    """

    def __init__(self, images: Tensor, features: Mapping[str, Features], captions: Sequence[Any] | None = None) -> None:
        if not features:
            raise ValueError("a comparison needs features of one source or more, got none.")
        self.features = dict(features)
        self.names = list(self.features)
        colours = aligned_colours(list(self.features.values()))
        self.sources = [
            FeatureSteps(images, {0: found}, captions=captions, colours=own)
            for found, own in zip(self.features.values(), colours, strict=True)
        ]

    @property
    def count(self) -> int:
        """Images."""
        return len(self.sources[0].images)

    def answer(self, name: str, message: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """As `payloads.answer`, of the source number message["source"]; ValueError where there is none."""
        source = int(message.get("source", 0))
        if not 0 <= source < len(self.sources):
            raise ValueError(f"there are sources 0 to {len(self.sources) - 1}, not {source}.")
        return answer(self.sources[source], name, dict(message))

    def select(self, selection: Mapping[str, int]) -> dict[str, dict[str, int]]:
        """{name: {"image", "row", "col"}}: the place of `selection` (with "source", default 0) in every source's grid.

        Raises ValueError for a selection outside.
        """
        source = int(selection.get("source", 0))
        image, row, col = (int(selection[key]) for key in ("image", "row", "col"))
        height, width = self.features[self.names[source]].grid
        if not (0 <= image < self.count and 0 <= row < height and 0 <= col < width):
            raise ValueError(f"image {image}, row {row}, column {col} lies outside {self.count} x {height} x {width}.")
        return {
            name: {"image": image, "row": _same(row, height, found.grid[0]), "col": _same(col, width, found.grid[1])}
            for name, found in self.features.items()
        }


def aligned_colours(features: Sequence[Features]) -> list[tuple[Basis, Tensor]]:
    """A three-component basis and its colour limits [3, 2] for each of `features`, aligned to the first.

    Coordinates are compared on the first one's grid, others resized to it bilinearly.
    """
    colours: list[tuple[Basis, Tensor]] = []
    reference = None
    for found in features:
        tokens = found.patches.flatten(0, 2).float().cpu()
        basis = fit_pca(tokens)
        if reference is None:
            reference, grid = project(basis, found.patches.float().cpu()), found.grid
        else:
            maps = F.interpolate(found.patches.float().cpu().permute(0, 3, 1, 2), grid, mode="bilinear")
            basis = align_to_coordinates(basis, maps.permute(0, 2, 3, 1).flatten(0, 2), reference.flatten(0, 2))
        colours.append((basis, color_range(project(basis, tokens))))
    return colours


def _same(index: int, of: int, to: int) -> int:
    """The cell of `to` cells under the middle of cell `index` of `of`."""
    return min(int((index + 0.5) / of * to), to - 1)
