"""Cosine similarity between patches, and the 8-bit rows in which patches travel to a browser."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def unit(patches: Tensor, eps: float = 1e-12) -> Tensor:
    """`patches` [..., D] scaled to length 1 along D, in float32 at least; rows shorter than `eps` stay near zero."""
    patches = patches if patches.dtype == torch.float64 else patches.float()
    return patches / patches.norm(dim=-1, keepdim=True).clamp_min(eps)


def similarity(patches: Tensor, query: tuple[int, int, int]) -> Tensor:
    """Cosine of one patch with every patch of every image.

    `patches` is [B, H, W, D]; `query` is (image, row, column), row 0 at the top. The result is [B, H, W] in [-1, 1],
    1 at the query itself; a zero patch has cosine 0 with everything. Raises ValueError when the query lies outside.
    """
    if patches.dim() != 4:
        raise ValueError(f"similarity wants patches [B, H, W, D], got shape {tuple(patches.shape)}.")
    if len(query) != 3 or not all(0 <= index < size for index, size in zip(query, patches.shape[:3], strict=True)):
        raise ValueError(
            f"query {tuple(query)} is not a patch; (image, row, column) must lie in {tuple(patches.shape[:3])}, from 0."
        )
    units = unit(patches)
    return (units @ units[query]).clamp(-1.0, 1.0)


class UnitPatches:
    """Patches of images scaled to length 1 once, so that each map of similarities costs one matrix-vector product.

    Args:
        patches: [B, H, W, D]. Held as float32 on their device: B H W D x 4 bytes.
    """

    def __init__(self, patches: Tensor) -> None:
        if patches.dim() != 4:
            raise ValueError(f"unit patches are made from patches [B, H, W, D], got shape {tuple(patches.shape)}.")
        self.units = unit(patches)
        self._rows = self.units.flatten(0, 2)

    def map(self, query: tuple[int, int, int]) -> Tensor:
        """As `similarity` of the same patches and query: [B, H, W]."""
        shape = self.units.shape[:3]
        if len(query) != 3 or not all(0 <= index < size for index, size in zip(query, shape, strict=True)):
            raise ValueError(
                f"query {tuple(query)} is not a patch; (image, row, column) must lie in {tuple(shape)}, from 0."
            )
        return torch.mv(self._rows, self.units[query]).clamp_(-1.0, 1.0).reshape(shape)


class Match(NamedTuple):
    """A patch that resembles the query."""

    image: int
    row: int
    column: int
    cosine: float


def top_matches(patches: Tensor, query: tuple[int, int, int], k: int = 5, *, exclude: float = 0.0) -> list[Match]:
    """The `k` patches of `patches` [B, H, W, D] most similar to `query`, best first; fewer where there are fewer.

    The query itself is never among them, nor are patches of its image within `exclude` patches (Euclidean distance of
    centres): neighbours share pixels' context, and so say little. Of equal cosines the first in reading order. Raises
    ValueError as `similarity`, and for values that are not finite.
    """
    cosines = similarity(patches, query).clone()
    if not torch.isfinite(cosines).all():
        raise ValueError("top_matches wants finite patches; these hold NaN or infinity.")
    if k < 1 or exclude < 0:
        raise ValueError(f"{k} matches beyond {exclude} patches; ask for 1 or more, beyond 0 or more.")
    height, width = patches.shape[1:3]
    rows = torch.arange(height, device=patches.device)[:, None] - query[1]
    columns = torch.arange(width, device=patches.device) - query[2]
    near = rows.square() + columns.square() <= exclude**2
    cosines[query[0]] = cosines[query[0]].masked_fill(near, -torch.inf)
    order = cosines.flatten().argsort(descending=True, stable=True)[:k].tolist()
    matches = []
    for index in order:
        image, place = divmod(index, height * width)
        cosine = cosines.flatten()[index].item()
        if cosine > -torch.inf:
            matches.append(Match(image, place // width, place % width, cosine))
    return matches


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of `x` [..., D] as int8 [..., D] in -127..127 and one float32 scale a row [...]; x is about q * scale.

    The scale is the row's largest magnitude / 127, so no value is clipped and the error is at most scale / 2. Cosines
    between rows move by about 1e-3, at most 1e-2. A zero row has scale 0. Raises ValueError for values that
    are not finite.
    """
    x = x.float()
    largest = x.abs().amax(dim=-1)
    if not torch.isfinite(largest).all():
        raise ValueError("quantize_rows wants finite values; these rows hold NaN or infinity.")
    scale = largest / 127
    steps = x / torch.where(scale > 0, scale, torch.ones_like(scale)).unsqueeze(-1)
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def dequantize_rows(quantized: Tensor, scale: Tensor) -> Tensor:
    """The float32 rows [..., D] that `quantized` int8 [..., D] and `scale` [...] stand for."""
    return quantized.float() * scale.unsqueeze(-1)
