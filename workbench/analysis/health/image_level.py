"""Image-level gauges: how many directions the class tokens of a set of images use.

They are shown beside the dense gauges to be told from them. On sixteen methods they went *against* dense quality (Dai
et al. 2025): never choose a checkpoint for dense features by them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.analysis.health.bootstrap import Weighted, value_of

_ENTROPY_EPS = 1e-7
_LIDAR_DELTA = 1e-4


def rankme(cls: Tensor) -> float:
    """RankMe of class tokens [B, D] of B images: exp(entropy of the singular values), 1 to min(B, D).

    Not centred, as published; singular values are divided by their sum and 1e-7 is added. Higher goes with better
    *image-level* features. Known failure: goes against dense quality (Dai et al. 2025); bounded by the number of
    images, so values from different numbers of images do not compare. NaN for zero tokens.
    Source: Garrido et al. 2023, equations 1 and 2.
    """
    return value_of(weighted_rankme(cls), len(cls), cls.device)


def weighted_rankme(cls: Tensor) -> Weighted:
    """`rankme` as a function of image shares, the directions held: exact to first order in the shares."""
    tokens = cls.double()
    energies = (tokens @ torch.linalg.svd(tokens, full_matrices=False).Vh.T).square()

    def gauge(shares: Tensor) -> Tensor:
        return _rank_of((shares @ energies).clamp_min(0).sqrt())

    return gauge


def _rank_of(spectrum: Tensor) -> Tensor:
    """exp(entropy) of `spectrum` [..., K] divided by its sum, plus the published constant; NaN for zeros."""
    return torch.special.entr(spectrum / spectrum.sum(dim=-1, keepdim=True) + _ENTROPY_EPS).sum(dim=-1).exp()


def lidar(views: Tensor) -> float:
    """LiDAR of class tokens [B, V, D] of V augmented views of B images, 1 to min(B - 1, D).

    Each image is a class of its own: the effective rank of the scatter between images, whitened by the scatter within
    (plus 1e-4 on its diagonal). Directions that only tell views apart do not count. Higher goes with better
    *image-level* features. Known failure: as `rankme`; it also depends on the augmentations, and small features (length
    far below 1) drown in the constant. NaN when all images agree. Raises ValueError for a single image or view.
    Source: Thilak et al. 2024, section 3.
    """
    return value_of(weighted_lidar(views), len(views), views.device)


def weighted_lidar(views: Tensor) -> Weighted:
    """`lidar` as a function of image shares, the discriminant directions held: exact to first order in the shares."""
    if views.dim() != 3 or min(views.shape[:2]) < 2:
        raise ValueError(f"lidar wants class tokens [B >= 2 images, V >= 2 views, D], got {tuple(views.shape)}.")
    views = views.double()
    means = views.mean(dim=1)
    spread = views - means[:, None]
    between, within = _between(means), spread.flatten(0, 1).T @ spread.flatten(0, 1) / spread[..., 0].numel()
    directions = _discriminants(between, within + _LIDAR_DELTA * torch.eye(views.shape[2]).to(within))
    along, across = means @ directions, (spread @ directions).square().mean(dim=1)
    floor = _LIDAR_DELTA * directions.square().sum(dim=0)

    def gauge(shares: Tensor) -> Tensor:
        variances = (shares @ along.square() - (shares @ along).square()).clamp_min(0)
        return _rank_of(variances / (shares @ across + floor))

    return gauge


def _between(means: Tensor) -> Tensor:
    centred = means - means.mean(dim=0)
    return centred.T @ centred / len(means)


def _discriminants(between: Tensor, within: Tensor) -> Tensor:
    """Columns w with w' within w = 1 that diagonalise `between`: [D, D]."""
    values, vectors = torch.linalg.eigh(within)
    whitening = vectors / values.clamp_min(1e-300).sqrt()
    return whitening @ torch.linalg.eigh(whitening.T @ between @ whitening).eigenvectors
