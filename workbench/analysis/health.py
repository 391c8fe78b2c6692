"""Gauges of dense health that need no labels: do patches still say something of their own?

No gauge decides alone: each has a known failure, told in its function. Let labels arbitrate where there are some.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.analysis.gram import gram_matrix
from workbench.analysis.similarity import unit
from workbench.features import Features

_GRAM_ENTRIES_AT_ONCE = 16_000_000


def dense_health(features: Features) -> dict[str, float]:
    """All gauges of `features` under the names of docs/run-format.md; NaN where a gauge is undefined."""
    patches = features.patches
    return {
        "health/cls_patch_cosine": cls_patch_cosine(patches, features.cls),
        "health/near_cosine": near_cosine(patches),
        "health/far_cosine": far_cosine(patches),
        "health/within_variance": within_variance(patches),
        "health/effective_rank": effective_rank(patches),
        "health/norm_outliers": norm_outliers(patches),
    }


def cls_patch_cosine(patches: Tensor, cls: Tensor) -> float:
    """Mean cosine between each patch [B, H, W, D] and the class token [B, D] of its image, in [-1, 1].

    Rises as patches turn into copies of the global summary: high is bad. Known failure: it depends on how the class
    token is trained, so it says nothing between methods, and it starts high at random initialisation.
    Source: DINOv3, section 4.1 and figure 5.
    """
    return (unit(patches) * unit(cls)[:, None, None]).sum(dim=-1).mean().item()


def near_cosine(patches: Tensor) -> float:
    """Mean cosine between patches [B, H, W, D] that share a side (4-neighbours), in [-1, 1].

    Near 1 means smooth maps, low means noisy ones; healthy features sit between, so read it beside `far_cosine`. Known
    failure: depends on the grid's fineness (a finer grid is smoother). NaN for a grid of a single patch.
    Source: local consistency as in DINOv3, figure 3.
    """
    units = unit(patches)
    down = (units[:, 1:] * units[:, :-1]).sum(dim=-1).flatten()
    right = (units[:, :, 1:] * units[:, :, :-1]).sum(dim=-1).flatten()
    return torch.cat((down, right)).mean().item()


def far_cosine(patches: Tensor) -> float:
    """Mean cosine between patches [B, H, W, D] of an image that lie far apart, in [-1, 1].

    Far is at least half of the grid's diagonal, sqrt((H-1)^2 + (W-1)^2) / 2, from centre to centre. Rises as images
    wash out into one colour: high is bad. Known failure: images of one texture have a high value rightly. NaN for a
    grid of a single patch. Source: the far half of the same maps (DINOv3, figure 3).
    """
    images, height, width, _ = patches.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows.flatten(), columns.flatten()), dim=1).float()
    distance = torch.cdist(places, places)
    far = ((distance >= distance.max() / 2 - 1e-4) & (distance > 0)).to(patches.device)
    at_once = max(1, _GRAM_ENTRIES_AT_ONCE // far.numel())
    sums = [(gram_matrix(block.flatten(1, 2)) * far).sum() for block in patches.split(at_once)]
    pairs = images * far.sum().item()
    return torch.stack(sums).double().sum().item() / pairs if pairs else float("nan")


def within_variance(patches: Tensor) -> float:
    """Share of the variance of the patches [B, H, W, D] that lies within images, in [0, 1].

    Falls as all patches of an image become alike: low is bad. Known failure: noise inside images counts as much as
    detail, so it can rise while maps get worse, and it depends on how different the images are (1 for a single
    image). NaN when nothing varies at all. Source: law of total variance, one-way.
    """
    tokens = patches.flatten(1, 2).double()
    centre = tokens.mean(dim=(0, 1))
    total = (tokens - centre).square().sum(dim=-1).mean()
    within = (tokens - tokens.mean(dim=1, keepdim=True)).square().sum(dim=-1).mean()
    if total <= 1e-12 * tokens.square().sum(dim=-1).mean():
        return float("nan")
    return (within / total).item()


def effective_rank(patches: Tensor) -> float:
    """Effective rank of all patches [B, H, W, D] together: exp(entropy of the singular values), 0 to min(B*H*W-1, D).

    Singular values of the centred patch matrix, divided by their sum; 0 when all patches are equal. Few directions are
    a sign of collapse. Known failure: it stayed flat while patches smoothed, and image-level rank goes against dense
    quality (Dai et al. 2025), so it is no gauge of dense quality by itself. Source: Roy & Vetterli 2007; RankMe.
    """
    tokens = patches.flatten(0, 2).double()
    centred = tokens - tokens.mean(dim=0)
    squared = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0)
    if squared.max() <= 1e-24 * tokens.square().sum():
        return 0.0
    singular = torch.where(squared > 1e-14 * squared.max(), squared, 0.0).sqrt()
    return torch.special.entr(singular / singular.sum()).sum().exp().item()


def norm_outliers(patches: Tensor) -> float:
    """Share of the patches [B, H, W, D] whose norm exceeds median + 5 MAD over all images, in [0, 1].

    MAD is the median absolute deviation from the median norm, at least 0.1 % of that norm so that rounding is no
    outlier. High-norm artefacts show here: high is bad. Known failure: the features are those after the final norm,
    which evens norms out, so artefacts inside the network show weakly. Source: Darcet et al. 2024 (registers).
    """
    norms = patches.float().norm(dim=-1).flatten()
    middle = norms.median()
    spread = (norms - middle).abs().median().clamp_min(1e-3 * middle)
    return (norms > middle + 5 * spread).float().mean().item()
