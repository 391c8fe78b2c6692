"""Standard errors of gauges: the images are drawn anew, with replacement, and each gauge follows from image shares.

A gauge is kept as a function of the images' shares. Equal shares give its value, the shares of a resample give the
value that this resample would have had: nothing is encoded again, and no similarity matrix is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Weighted = Callable[[Tensor], Tensor]
"""Shares of B images, float64 [R, B] with rows that sum to 1, to the gauge's values [R]."""


class Estimate(NamedTuple):
    """A gauge with its uncertainty over images."""

    value: float
    standard_error: float
    """NaN for fewer than two images."""


def mean_over_images(by_image: Tensor) -> Weighted:
    """The gauge that is the mean of a statistic [B] of each image."""
    by_image = by_image.double()
    return lambda shares: shares @ by_image


def equal_shares(images: int, device: torch.device | None = None) -> Tensor:
    """Float64 [1, images]: every image counts once."""
    return torch.full((1, images), 1 / images, dtype=torch.float64, device=device)


def value_of(gauge: Weighted, images: int, device: torch.device | None = None) -> float:
    """The gauge of all `images` as they are."""
    return gauge(equal_shares(images, device)).item()


def resampled_shares(images: int, resamples: int, generator: torch.Generator) -> Tensor:
    """Shares of the images in `resamples` draws of `images` with replacement: float64 [resamples, images].

    `generator` is a CPU generator: the same seed draws the same images on every device. Source: Efron 1979.
    """
    drawn = torch.randint(images, (resamples, images), generator=generator)
    counts = torch.zeros(resamples, images, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts)) / images


def standard_error(gauge: Weighted, shares: Tensor) -> float:
    """Standard deviation of `gauge` over the resampled `shares` [R, B]; NaN for one image or an undefined resample."""
    if shares.shape[1] < 2 or len(shares) < 2:
        return float("nan")
    return gauge(shares).std().item()
