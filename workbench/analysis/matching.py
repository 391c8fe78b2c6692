"""Which patch of one image belongs to which of another: nearest neighbours, both ways or one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.analysis.similarity import unit

_COSINES_AT_ONCE = 16_000_000


class Matches(NamedTuple):
    """M pairs of patches, the most alike first."""

    first: Tensor
    """[M, 2], (row, column) in the first image, row 0 at the top."""
    second: Tensor
    """[M, 2], in the second."""
    cosine: Tensor
    """[M]"""


class DenseMatch(NamedTuple):
    """For every patch of the first image its most similar one of the second."""

    target: Tensor
    """[H, W, 2], (row, column) in the second image."""
    cosine: Tensor
    """[H, W]"""
    mutual: Tensor
    """bool [H, W]: the target's own most similar patch is this one."""


def dense_match(first: Tensor, second: Tensor, *, code: Tensor | None = None) -> DenseMatch:
    """The nearest patch of `second` [H', W', D] for every patch of `first` [H, W, D], by cosine.

    `code` [D, K], orthonormal columns (`positional_subspace`), is taken out of both first: a code of position makes
    patches of the same place look alike. Of equal cosines the first in raster order wins. Memory stays bounded for
    large grids. Raises ValueError for other shapes or values that are not finite. Source: mutual nearest neighbours as
    in Amir et al. 2021 (arXiv 2112.05814, "best buddies").
    """
    _check(first, second)
    a, b = (_units(x, code) for x in (first, second))
    forward, cosine = _nearest(a, b)
    backward, _ = _nearest(b, a)
    mutual = backward[forward] == torch.arange(len(a), device=a.device)
    width, grid = second.shape[1], first.shape[:2]
    target = torch.stack((forward // width, forward % width), dim=-1)
    return DenseMatch(target.reshape(*grid, 2), cosine.reshape(grid), mutual.reshape(grid))


def mutual_matches(
    first: Tensor, second: Tensor, *, code: Tensor | None = None, mask: Tensor | None = None, most: int | None = None
) -> Matches:
    """The pairs that choose each other, the most alike first, at most `most` of them.

    `mask` (bool [H, W]) keeps the pairs that begin there. No pair at all is possible. Otherwise as `dense_match`.
    """
    found = dense_match(first, second, code=code)
    if mask is not None and mask.shape != found.mutual.shape:
        raise ValueError(f"the mask {tuple(mask.shape)} must have the first image's grid, {tuple(first.shape[:2])}.")
    kept = found.mutual if mask is None else found.mutual & mask.to(found.mutual.device)
    places = kept.nonzero()
    cosine = found.cosine[kept]
    order = cosine.argsort(descending=True, stable=True)[:most]
    return Matches(places[order], found.target[kept][order], cosine[order])


def _units(patches: Tensor, code: Tensor | None) -> Tensor:
    tokens = patches.flatten(0, 1).float()
    if code is not None:
        code = code.to(tokens)
        tokens = tokens - (tokens @ code) @ code.T
    return unit(tokens)


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(index into b, cosine) of the row of `b` [M, D] nearest to each row of `a` [N, D]."""
    parts = [(block @ b.T).max(dim=1) for block in a.split(max(1, _COSINES_AT_ONCE // len(b)))]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]).clamp(-1, 1)


def _check(first: Tensor, second: Tensor) -> None:
    if first.dim() != 3 or second.dim() != 3 or first.shape[2] != second.shape[2] or not first.numel() * second.numel():
        raise ValueError(
            "matching wants patches [H, W, D] of two images with the same channels, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise ValueError("matching wants finite patches; these hold NaN or infinity.")
