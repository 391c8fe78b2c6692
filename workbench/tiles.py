"""Features of an image that is too large to go through a network at once: window by window, each patch from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.features import Backbone, Features


class _Window(NamedTuple):
    """One window along one side, in patches."""

    start: int
    stop: int
    own: tuple[int, int]
    """The patches that are taken from this window: first, and one past the last."""


@torch.inference_mode()
def tiled_features(
    backbone: Backbone,
    image: Tensor,
    *,
    tile: int = 512,
    margin: int = 64,
    layer: int = -1,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Features of one normalised `image` [3, h, w], pixels; patches [1, H, W, D] in `dtype` on the CPU.

    Windows of `tile` pixels a side overlap by twice `margin` or more; a patch is taken from the window in which it
    lies farthest from the edge, so that none is nearer than `margin` to an edge that is not the image's own. Class
    token and registers are the mean over windows. An image no larger than one window goes through at once, as
    `backbone.features` would have it. Memory is that of one window and of the result; `progress(done, of)` is called
    after each. Attention ends at the edge of a window, so features are not those of the whole image at once. Raises
    ValueError for sides that are no whole multiples of the patch size.
    """
    size = backbone.patch_size
    if image.dim() != 3 or image.shape[0] != 3 or image.shape[1] % size or image.shape[2] % size:
        raise ValueError(
            f"tiled features want an image [3, h, w] with sides that are whole multiples of {size} pixels, "
            f"got {tuple(image.shape)}; resize_to_patches makes one."
        )
    if tile % size or margin < 0 or tile <= 2 * margin:
        raise ValueError(
            f"a tile of {tile} pixels must be a multiple of {size} and more than twice the margin, {margin}."
        )
    height, width = image.shape[1] // size, image.shape[2] // size
    edge = -(-margin // size)
    rows, columns = (list(_windows(side, tile // size, edge)) for side in (height, width))
    patches: Tensor | None = None
    whole: list[tuple[Tensor, Tensor]] = []
    for row in rows:
        for column in columns:
            window = image[:, row.start * size : row.stop * size, column.start * size : column.stop * size]
            found = backbone.features(window[None], layer=layer)
            if patches is None:
                patches = torch.empty(1, height, width, found.patches.shape[-1], dtype=dtype)
            (top, bottom), (left, right) = row.own, column.own
            inside = found.patches[0, top - row.start : bottom - row.start, left - column.start : right - column.start]
            patches[0, top:bottom, left:right] = inside.to("cpu", dtype)
            whole.append((found.cls.to("cpu", dtype), found.registers.to("cpu", dtype)))
            if progress is not None:
                progress(len(whole), len(rows) * len(columns))
    assert patches is not None
    cls, registers = (torch.stack(parts).mean(dim=0) for parts in zip(*whole, strict=True))
    return Features(patches, cls, registers)


def _windows(side: int, tile: int, edge: int) -> Iterator[_Window]:
    """Windows of at most `tile` patches over a side, evenly spread, neighbours overlapping by 2 `edge` or more."""
    count = 1 if side <= tile else -(-(side - 2 * edge) // (tile - 2 * edge))
    starts = [round(k * (side - tile) / (count - 1)) for k in range(count)] if count > 1 else [0]
    stops = [min(start + tile, side) for start in starts]
    borders = [0, *((stop + start) // 2 for stop, start in zip(stops[:-1], starts[1:], strict=True)), side]
    for k, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        yield _Window(start, stop, (borders[k], borders[k + 1]))
