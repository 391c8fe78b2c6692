"""Gauges made of variance: how much lies within images, how much belongs to the position, over how many directions."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.analysis.health.bootstrap import Weighted, value_of
from workbench.analysis.similarity import unit


def within_variance(patches: Tensor) -> float:
    """Share of the variance of the patches [B, H, W, D] that lies within images, in [0, 1].

    Falls as all patches of an image become alike: low is bad. Known failure: noise inside images counts as much as
    detail, so it can rise while maps get worse, and it depends on how different the images are (1 for a single
    image). NaN when nothing varies at all. Source: law of total variance, one-way.
    """
    return value_of(weighted_within_variance(patches), len(patches), patches.device)


def weighted_within_variance(patches: Tensor) -> Weighted:
    """`within_variance` as a function of image shares."""
    tokens = patches.flatten(1, 2).double()
    nothing = 1e-12 * tokens.square().sum(dim=-1).mean()
    tokens = tokens - tokens.mean(dim=(0, 1))
    means = tokens.mean(dim=1)
    within = (tokens - means[:, None]).square().sum(dim=-1).mean(dim=1)
    between = means.square().sum(dim=1)

    def gauge(shares: Tensor) -> Tensor:
        inside = shares @ within
        total = inside + shares @ between - (shares @ means).square().sum(dim=1)
        return torch.where(total > nothing, inside / total, torch.nan)

    return gauge


def positional_share(patches: Tensor) -> float:
    """Share of the variance within images that is the same in all images, position by position; about 0 to 1.

    Unit patches [B, H, W, D], each image's mean taken out: the mean inner product of two *different* images' maps over
    the mean squared length of a map. 1 when every image shows one and the same map, 0 (a little noise around it) when
    position says nothing; no image is compared with itself, so few images do not raise it. High is bad. Known failure:
    pictures that are composed alike (sky above, object in the middle) share content by position; `positional_match`
    with a code from noise images does not see that. NaN for one image, and when no image varies.
    Source: two-way analysis of variance, the component of position, from products of different images.
    """
    return value_of(weighted_positional_share(patches), len(patches), patches.device)


def weighted_positional_share(patches: Tensor) -> Weighted:
    """`positional_share` as a function of image shares; a resampled image is not compared with its own copy."""
    maps = centred_maps(patches).flatten(1).double()
    products = maps @ maps.T
    own = products.diagonal()
    nothing = 1e-12 * patches.shape[1] * patches.shape[2]

    def gauge(shares: Tensor) -> Tensor:
        repeated = shares.square()
        common = ((shares @ products) * shares).sum(dim=1) - repeated @ own
        different = 1 - repeated.sum(dim=1)
        alone = shares @ own
        defined = (different > 1e-9) & (alone > nothing)
        return torch.where(defined, common / different / alone, torch.nan)

    return gauge


def position_code(patches: Tensor) -> Tensor:
    """What position alone adds to unit patches [B, H, W, D] of images without content: [H, W, D], mean 0.

    Give features of noise or constant images, or of many photographs (which adds what their composition shares).
    Source: the mean at each position over such images; the offset common to all positions is taken out.
    """
    return centred_maps(patches).mean(dim=0)


def positional_match(patches: Tensor, code: Tensor) -> Tensor:
    """Share of the variance within each image that one multiple of the position `code` explains: [B], in [0, 1].

    The squared correlation of the image's map of unit patches [B, H, W, D] with `code` [H, W, D] (`position_code`). 1
    for patches that are nothing but the code. High is bad. Known failure: a network that adds position only where
    there is content shows none on noise. 0 where the image or the code does not vary. Raises ValueError for other
    shapes. Source: least squares with one coefficient an image.
    """
    if code.shape != patches.shape[1:]:
        raise ValueError(
            f"a position code is shaped as one image's patches, {tuple(patches.shape[1:])}, not {tuple(code.shape)}; "
            "make it with position_code from features of the same grid and network."
        )
    maps, code = centred_maps(patches).flatten(1).double(), code.flatten().double()
    lengths = maps.square().sum(dim=1) * code.square().sum()
    return (maps @ code).square() / lengths.clamp_min(1e-12)


def centred_maps(patches: Tensor) -> Tensor:
    """Unit patches [B, H, W, D] less the mean of their image: what varies within an image, outlier norms aside."""
    units = unit(patches)
    return units - units.mean(dim=(1, 2), keepdim=True)


def effective_rank(patches: Tensor) -> float:
    """Effective rank of all patches [B, H, W, D] together: exp(entropy of the singular values), 0 to min(B*H*W-1, D).

    Singular values of the centred patch matrix, divided by their sum; 0 when all patches are equal. Few directions are
    a sign of collapse. Known failure: it stayed flat while patches smoothed, and image-level rank goes against dense
    quality (Dai et al. 2025), so it is no gauge of dense quality by itself. Source: Roy & Vetterli 2007; RankMe.
    """
    return value_of(weighted_effective_rank(patches), len(patches), patches.device)


def weighted_effective_rank(patches: Tensor) -> Weighted:
    """`effective_rank` as a function of image shares, the directions held: exact to first order in the shares."""
    tokens = patches.flatten(1, 2).double()
    length = tokens.square().sum(dim=-1).mean()
    tokens = tokens - tokens.mean(dim=(0, 1))
    rows = tokens.flatten(0, 1)
    directions = torch.linalg.eigh(rows.T @ rows).eigenvectors
    along = tokens @ directions
    energies, means = along.square().mean(dim=1), along.mean(dim=1)

    def gauge(shares: Tensor) -> Tensor:
        variances = (shares @ energies - (shares @ means).square()).clamp_min(0)
        largest = variances.amax(dim=1, keepdim=True)
        singular = torch.where(variances > 1e-14 * largest, variances, 0.0).sqrt()
        return torch.where(largest[:, 0] > 1e-24 * length, exp_entropy(singular), 0.0)

    return gauge


def exp_entropy(singular: Tensor) -> Tensor:
    """exp(entropy) of values [..., K] of at least 0, divided by their sum: how many of them count."""
    shares = singular / singular.sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1).exp()
