"""Gauges made of cosines between tokens: with the class token, near by, far apart, against distance, to a reference.

Each gauge has a name for one number over all images, and a `…_by_image` that gives one number an image [B].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.analysis.gram import gram_distance as gram_distance_by_image
from workbench.analysis.gram import gram_matrix
from workbench.analysis.health.bootstrap import Weighted, value_of
from workbench.analysis.similarity import unit

_GRAM_ENTRIES_AT_ONCE = 16_000_000
_ALL_ALIKE = 1e-6
"""A far cosine nearer to 1 than this is rounding: all patches are alike, and there is nothing to be local."""


class SimilarityCurve(NamedTuple):
    """Cosine of two patches against how far apart they lie."""

    distance: Tensor
    """[K] patches, mean distance between centres of the pairs in each bin."""
    cosine: Tensor
    """[B, K] mean cosine of each image's pairs in the bin."""
    pairs: Tensor
    """[K] number of pairs of an image in the bin, each counted once."""


def cls_patch_cosine(patches: Tensor, cls: Tensor) -> float:
    """Mean cosine between each patch [B, H, W, D] and the class token [B, D] of its image, in [-1, 1].

    Rises as patches turn into copies of the global summary: high is bad. Known failure: it depends on how the class
    token is trained, so it says nothing between methods, and it starts high at random initialisation.
    Source: DINOv3, section 4.1 and figure 5.
    """
    return cls_patch_cosine_by_image(patches, cls).mean().item()


def cls_patch_cosine_by_image(patches: Tensor, cls: Tensor) -> Tensor:
    """`cls_patch_cosine` of each image: [B]."""
    return (unit(patches) * unit(cls)[:, None, None]).sum(dim=-1).mean(dim=(1, 2))


def near_cosine(patches: Tensor) -> float:
    """Mean cosine between patches [B, H, W, D] that share a side (4-neighbours), in [-1, 1].

    Near 1 means smooth maps, low means noisy ones; healthy features sit between, so read it beside `far_cosine`. Known
    failure: depends on the grid's fineness (a finer grid is smoother). NaN for a grid of a single patch.
    Source: local consistency as in DINOv3, figure 3.
    """
    return near_cosine_by_image(patches).mean().item()


def near_cosine_by_image(patches: Tensor) -> Tensor:
    """`near_cosine` of each image: [B]."""
    units = unit(patches)
    down = (units[:, 1:] * units[:, :-1]).sum(dim=-1).flatten(1)
    right = (units[:, :, 1:] * units[:, :, :-1]).sum(dim=-1).flatten(1)
    return torch.cat((down, right), dim=1).mean(dim=1)


def far_cosine(patches: Tensor) -> float:
    """Mean cosine between patches [B, H, W, D] of an image that lie far apart, in [-1, 1].

    Far is at least half of the grid's diagonal, sqrt((H-1)^2 + (W-1)^2) / 2, from centre to centre. Rises as images
    wash out into one colour: high is bad. Known failure: images of one texture have a high value rightly. NaN for a
    grid of a single patch. Source: the far half of the same maps (DINOv3, figure 3).
    """
    return far_cosine_by_image(patches).mean().item()


def far_cosine_by_image(patches: Tensor) -> Tensor:
    """`far_cosine` of each image: float64 [B]."""
    far = far_pairs(*patches.shape[1:3]).to(patches.device)
    at_once = max(1, _GRAM_ENTRIES_AT_ONCE // far.numel())
    blocks = [(gram_matrix(block.flatten(1, 2)) * far).double().sum(dim=(1, 2)) for block in patches.split(at_once)]
    return torch.cat(blocks) / far.sum()


def locality(patches: Tensor) -> float:
    """How much more alike neighbours are than far patches: (near - far) / (1 - far) of [B, H, W, D], at most 1.

    1 when neighbours are equal and far patches are not, 0 when distance does not matter: noise, or single patches that
    shout across the image. An offset common to all patches cancels, so it tells lost locality from washed-out images.
    The two cosines are means over all images. Low is bad. Known failure: a texture finer than a patch has little
    locality rightly, and a code of position has much of it. NaN when all patches are alike, and for a single patch.
    Source: Moran 1950 (spatial autocorrelation at distance 1), on unit vectors, the far pairs as the baseline.
    """
    gauge = weighted_locality(near_cosine_by_image(patches), far_cosine_by_image(patches))
    return value_of(gauge, len(patches), patches.device)


def locality_of(near: Tensor, far: Tensor) -> Tensor:
    """`locality` from near and far cosines of any shape; NaN where all patches are alike."""
    spread = 1 - far.double()
    return torch.where(spread > _ALL_ALIKE, (near - far) / spread, torch.nan)


def weighted_locality(near: Tensor, far: Tensor) -> Weighted:
    """`locality` as a function of image shares, from the cosines [B] of each image."""
    near, far = near.double(), far.double()
    return lambda shares: locality_of(shares @ near, shares @ far)


def similarity_by_distance(patches: Tensor) -> SimilarityCurve:
    """Mean cosine against distance for `patches` [B, H, W, D]: the curve that `locality` sums up.

    Bin k = 1, 2, … holds the pairs whose centres lie k - 1/2 to k + 1/2 patches apart, up to the grid's diagonal.
    Empty for a grid of a single patch. Source: the spatial correlogram (Moran 1950), on cosines.
    """
    distance = grid_distance(*patches.shape[1:3])
    first, second = torch.triu_indices(*distance.shape, offset=1)
    apart = distance[first, second]
    bins = (apart + 0.5).floor().long() - 1
    count = int(bins.max()) + 1 if len(bins) else 0
    pairs = torch.bincount(bins, minlength=count)
    mean_distance = torch.zeros(count).index_add_(0, bins, apart) / pairs
    at_once = max(1, _GRAM_ENTRIES_AT_ONCE // distance.numel())
    sums = []
    for block in patches.split(at_once):
        cosines = gram_matrix(block.flatten(1, 2))[:, first.to(patches.device), second.to(patches.device)].double()
        total = torch.zeros(len(block), count, dtype=torch.float64, device=patches.device)
        sums.append(total.index_add_(1, bins.to(patches.device), cosines))
    return SimilarityCurve(mean_distance, torch.cat(sums) / pairs.to(patches.device), pairs)


def grid_distance(height: int, width: int) -> Tensor:
    """Distance between the centres of the patches of a grid, in patches, row by row: [H*W, H*W]."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows.flatten(), columns.flatten()), dim=1).float()
    return (places[:, None] - places[None]).square().sum(dim=-1).sqrt()


def far_pairs(height: int, width: int) -> Tensor:
    """Which patches of a grid lie at least half of its diagonal apart: bool [H*W, H*W]."""
    distance = grid_distance(height, width)
    return (distance >= distance.max() / 2 - 1e-4) & (distance > 0)


def gram_distance(patches: Tensor, reference: Tensor) -> float:
    """Mean squared difference of the patch cosines of the same images, `patches` [B, H, W, D] and `reference` [.., E].

    0 for the same geometry, below 4. The reference may be features of any step or network on the same grid. Grows as
    the geometry leaves the reference: neither good nor bad by itself. Known failure: an untrained or degraded reference
    makes distance a good sign. Source: DINOv3, equation 2, mean over entries.
    """
    return grids_distance_by_image(patches, reference).mean().item()


def grids_distance_by_image(patches: Tensor, reference: Tensor) -> Tensor:
    """`gram_distance` of each image: [B]. Raises ValueError when images or grids differ."""
    if patches.shape[:3] != reference.shape[:3]:
        raise ValueError(
            f"a Gram distance needs the same images on the same grid, got {tuple(patches.shape)} and "
            f"{tuple(reference.shape)}; resize one grid to the other, or encode the same images."
        )
    at_once = max(1, _GRAM_ENTRIES_AT_ONCE // max(1, patches[0, ..., 0].numel() ** 2))
    pairs = zip(patches.split(at_once), reference.split(at_once), strict=True)
    return torch.cat([gram_distance_by_image(a.flatten(1, 2), b.flatten(1, 2)) for a, b in pairs])
