"""Gauges of outliers: patches of great norm, and channels that own most of every patch's length."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.analysis.health.bootstrap import Weighted, value_of
from workbench.analysis.similarity import unit

CHANNEL_RATIO = 50.0
"""A channel is an outlier when its energy is more than this many times that of the median channel: about seven times
its magnitude."""
_WEIGHTS_AT_ONCE = 4_000_000
_HALF = 0.5 - 1e-9  # sums of weights are not exact


def norm_outliers(patches: Tensor) -> float:
    """Share of the patches [B, H, W, D] whose norm exceeds median + 5 MAD over all images, in [0, 1].

    MAD is the median absolute deviation from the median norm, at least 0.1 % of that norm so that rounding is no
    outlier. High-norm artefacts show here: high is bad. Known failure: the features are those after the final norm,
    which evens norms out, so artefacts inside the network show weakly. Source: Darcet et al. 2024 (registers).
    """
    return value_of(weighted_norm_outliers(patches), len(patches), patches.device)


def weighted_norm_outliers(patches: Tensor) -> Weighted:
    """`norm_outliers` as a function of image shares; every resample has its own median and MAD."""
    norms = patches.double().norm(dim=-1).flatten(1)
    ordered, order = norms.flatten().sort()
    image, at_once = order // norms.shape[1], max(1, _WEIGHTS_AT_ONCE // norms.numel())

    def gauge(shares: Tensor) -> Tensor:
        blocks = [_share_beyond(ordered, block[:, image] / norms.shape[1]) for block in shares.split(at_once)]
        return torch.cat(blocks)

    return gauge


def _share_beyond(norms: Tensor, weights: Tensor) -> Tensor:
    """Weight of the ascending `norms` [M] above median + 5 MAD, for each row of `weights` [R, M]: [R]."""
    before = torch.nn.functional.pad(weights, (1, 0)).cumsum_(dim=1)  # [R, M + 1], weight of the first k norms
    half = before.new_full((len(weights), 1), _HALF)
    middle = norms[torch.searchsorted(before, half)[:, 0] - 1]
    spread = torch.maximum(_median_deviation(norms, before, middle), 1e-3 * middle)
    inside = torch.searchsorted(norms, middle + 5 * spread, right=True)
    return before[:, -1] - before.gather(1, inside[:, None])[:, 0]


def _median_deviation(norms: Tensor, before: Tensor, middle: Tensor) -> Tensor:
    """Least d [R] such that half of the weight lies within `middle` [R] +- d, by bisection down to rounding.

    `before` [R, M + 1] is the weight of the first k of the ascending `norms` [M]. Sorting all deviations of all
    resamples would take most of the time of all gauges.
    """
    low, high = torch.zeros_like(middle), (norms[-1] - norms[0]).expand_as(middle)
    for _ in range(50):
        trial = (low + high) / 2
        first = torch.searchsorted(norms, middle - trial)
        last = torch.searchsorted(norms, middle + trial, right=True)
        enough = (before.gather(1, last[:, None]) - before.gather(1, first[:, None]))[:, 0] >= _HALF
        low, high = torch.where(enough, low, trial), torch.where(enough, trial, high)
    return high


def outlier_dimensions(patches: Tensor) -> float:
    """Share of the squared length of patches [B, H, W, D] that outlier channels own, in [0, 1].

    The energy of a channel is its squared value in unit patches, the median over the patches of an image (so that a
    few strange patches make no channel strange), as a share of all channels, averaged over images. Channels above
    CHANNEL_RATIO times the median one are outliers. A cosine is made of shares of squared length: at 0.5 half of every
    similarity map is theirs. High is bad. Known failure: a narrow network can use one channel much and rightly; a
    great direction that is spread over many channels is not seen. Source: Kovaleva et al. 2021 (outlier dimensions),
    Sun et al. 2024 (massive activations); DINOv3 on outliers of feature dimensions.
    """
    return value_of(weighted_outlier_dimensions(patches), len(patches), patches.device)


def weighted_outlier_dimensions(patches: Tensor) -> Weighted:
    """`outlier_dimensions` as a function of image shares."""
    energies = channel_energies(patches)

    def gauge(shares: Tensor) -> Tensor:
        energy = shares @ energies
        return torch.where(outlier_channels(energy), energy, 0.0).sum(dim=1)

    return gauge


def channel_energies(patches: Tensor) -> Tensor:
    """Share of each channel in the squared length of the patches [B, H, W, D] of each image: float64 [B, D].

    Median over patches, then divided by the sum over channels; all zero where that sum is.
    """
    middle = unit(patches).square().flatten(1, 2).median(dim=1).values.double()
    return middle / middle.sum(dim=1, keepdim=True).clamp_min(1e-12)


def outlier_channels(energy: Tensor) -> Tensor:
    """Which channels of `energy` [..., D] exceed CHANNEL_RATIO times the median of those above zero: bool [..., D]."""
    typical = torch.where(energy > 0, energy, torch.nan).nanmedian(dim=-1, keepdim=True).values
    return energy > CHANNEL_RATIO * typical
