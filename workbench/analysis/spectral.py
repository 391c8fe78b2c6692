"""Segments and objects from the graph of patch similarities: spectral clustering, and TokenCut's bipartition."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.analysis.kmeans import kmeans
from workbench.analysis.similarity import unit

MOST_PATCHES = 4096
"""The eigenvectors of the whole graph are found at once: N x N in double precision."""


class Cut(NamedTuple):
    """One object against the rest."""

    mask: Tensor
    """bool [H, W], row 0 at the top: the object."""
    eigenvector: Tensor
    """[H, W], the second smallest of the graph's normalised Laplacian, positive on the object."""
    box: tuple[int, int, int, int]
    """(top, left, bottom, right) of the connected part around the strongest patch, in patches; the ends exclusive."""


def spectral_segments(patches: Tensor, segments: int, *, generator: torch.Generator, threshold: float = 0.0) -> Tensor:
    """The segment of each patch, int64 [H, W] in 0 to segments - 1, from `patches` [H, W, D].

    The graph's weights are cosines above `threshold`. The rows of the `segments` smallest eigenvectors of the
    normalised Laplacian, scaled to length 1, are clustered by k-means. Source: Ng, Jordan and Weiss 2001; on features
    of vision transformers Melas-Kyriazi et al. 2022. Raises ValueError for other shapes, more than 4,096 patches, or
    values that are not finite.
    """
    _check(patches)
    count = patches.shape[0] * patches.shape[1]
    if not 1 <= segments <= count:
        raise ValueError(f"{segments} segments of {count} patches; choose 1 to {count}.")
    weights = (_cosines(patches) - threshold).clamp_min(0)
    _, vectors = _smallest(weights, segments)
    rows = F.normalize(vectors, dim=1)
    return kmeans(rows[None].float(), segments, generator=generator)[0].reshape(patches.shape[:2])


def token_cut(patches: Tensor, *, threshold: float = 0.2, weak: float = 1e-5) -> Cut:
    """The most salient object of one image, `patches` [H, W, D]; keys of the last block work best, tokens also do.

    Edges are 1 where the cosine exceeds `threshold`, `weak` elsewhere. The second smallest eigenvector of
    (D - W) y = l D y is cut at its mean; the side that holds its largest magnitude is the object. Source: TokenCut,
    Wang et al. 2022 (arXiv 2202.11539), section 3.2, `threshold` as there. Raises ValueError as `spectral_segments`.
    """
    _check(patches)
    height, width = patches.shape[:2]
    weights = torch.where(_cosines(patches) > threshold, 1.0, weak).double()
    _, vectors = _smallest(weights, 2)
    vector = vectors[:, 1] / weights.sum(dim=1).sqrt()
    seed = int(vector.abs().argmax())
    side = vector > vector.mean()
    if not side[seed]:
        side, vector = ~side, -vector
    mask = side.reshape(height, width)
    return Cut(mask, vector.reshape(height, width).float(), _box_around(mask, divmod(seed, width)))


def _cosines(patches: Tensor) -> Tensor:
    units = unit(patches.flatten(0, 1).double())
    return units @ units.T


def _smallest(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest eigenvalues and eigenvectors [N, count] of the symmetric normalised Laplacian."""
    scale = weights.sum(dim=1).clamp_min(1e-12).rsqrt()
    laplacian = torch.eye(len(weights), dtype=weights.dtype, device=weights.device) - scale[:, None] * weights * scale
    values, vectors = torch.linalg.eigh(laplacian)
    return values[:count], vectors[:, :count]


def _box_around(mask: Tensor, seed: tuple[int, int]) -> tuple[int, int, int, int]:
    """The bounding box of the 4-connected part of `mask` that holds `seed`."""
    part = torch.zeros_like(mask)
    part[seed] = True
    while True:
        padded = F.pad(part.float()[None, None], (1, 1, 1, 1))
        cross = padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:] + padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
        grown = mask & (part | (cross[0, 0] > 0))
        if torch.equal(grown, part):
            break
        part = grown
    rows, columns = part.any(dim=1).nonzero().flatten(), part.any(dim=0).nonzero().flatten()
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _check(patches: Tensor) -> None:
    if patches.dim() != 3 or patches.shape[0] * patches.shape[1] < 2:
        raise ValueError(f"a graph wants patches [H, W, D] of one image, 2 or more, got {tuple(patches.shape)}.")
    if patches.shape[0] * patches.shape[1] > MOST_PATCHES:
        raise ValueError(
            f"{patches.shape[0]} x {patches.shape[1]} patches are too many for a graph; at most {MOST_PATCHES}: "
            "take a smaller image."
        )
    if not torch.isfinite(patches).all():
        raise ValueError("a graph wants finite patches; these hold NaN or infinity.")
