"""Switches on patch features: without the code of position, without outlier channels, without strange norms."""

from __future__ import annotations

import torch
from torch import Tensor


def positional_subspace(noise: Tensor, components: int = 8) -> Tensor:
    """Orthonormal directions [D, K] of the code of position, the strongest first.

    `noise` are patches [B, H, W, D] of images of random pixels: averaged over them, only the code of position differs
    from place to place. Its singular vectors, less the mean over places, are the directions; fewer than `components`
    where the code has a lower rank. Source: as for position artefacts in Amir et al. 2021 and Yang et al. 2024
    (denoising vision transformers); that images of noise show the code is this project's way. Raises ValueError for
    other shapes or values that are not finite.
    """
    if noise.dim() != 4 or not noise.numel() or components < 1:
        raise ValueError(f"noise must be patches [B, H, W, D] and components 1 or more, got {tuple(noise.shape)}.")
    if not torch.isfinite(noise).all():
        raise ValueError("noise must be finite; these patches hold NaN or infinity.")
    code = noise.double().mean(dim=0).flatten(0, 1)
    code = code - code.mean(dim=0)
    _, strength, directions = torch.linalg.svd(code, full_matrices=False)
    kept = int((strength[:components] > 1e-9 * strength[0].clamp_min(1e-12)).sum())
    return directions[:kept].T.float()


def without(patches: Tensor, directions: Tensor) -> Tensor:
    """`patches` [..., D] less what lies along the orthonormal `directions` [D, K]."""
    if directions.dim() != 2 or directions.shape[0] != patches.shape[-1]:
        raise ValueError(f"directions {tuple(directions.shape)} must be [D, K] with D of {tuple(patches.shape)}.")
    directions = directions.to(patches)
    return patches - (patches @ directions) @ directions.T


def without_channels(patches: Tensor, channels: Tensor) -> Tensor:
    """`patches` [..., D] with the outlier `channels` (bool [D], as `outlier_channels` finds them) at their mean.

    The mean over all patches keeps what is the same everywhere, so norms change little. Raises ValueError for another
    number of channels.
    """
    if channels.shape != patches.shape[-1:]:
        raise ValueError(f"channels {tuple(channels.shape)} must be bool [D] with D of {tuple(patches.shape)}.")
    mean = patches.float().flatten(0, -2).mean(dim=0).to(patches)
    return torch.where(channels.to(patches.device), mean, patches)


def clip_norms(patches: Tensor, deviations: float = 5.0) -> Tensor:
    """`patches` [B, H, W, D], those longer than median + `deviations` MAD of all norms shortened to that length.

    Directions stay, so cosines between patches do not change; what sums lengths does (PCA, norms, means over patches).
    MAD is the median absolute deviation, at least 0.1 % of the median, as in the gauge `norm_outliers`. Source: Darcet
    et al. 2024 (registers), on what it removes. Raises ValueError for another shape, a negative number, or values that
    are not finite.
    """
    if patches.dim() != 4 or not patches.numel() or deviations < 0:
        raise ValueError(f"patches must be [B, H, W, D] and deviations 0 or more, got {tuple(patches.shape)}.")
    if not torch.isfinite(patches).all():
        raise ValueError("clip_norms wants finite patches; these hold NaN or infinity.")
    norms = patches.float().norm(dim=-1, keepdim=True)
    middle = norms.median()
    spread = torch.maximum((norms - middle).abs().median(), 1e-3 * middle)
    longest = middle + deviations * spread
    return (patches * (longest / norms.clamp_min(1e-12)).clamp_max(1)).to(patches.dtype)
