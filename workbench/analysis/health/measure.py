"""All gauges of a set of features at once, with or without standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from workbench.analysis.health import cosines, image_level, outliers, variance
from workbench.analysis.health.bootstrap import (
    Estimate,
    Weighted,
    mean_over_images,
    resampled_shares,
    standard_error,
    value_of,
)
from workbench.features import Features

RESAMPLES = 200
"""Resamples of the bootstrap; the standard error is itself uncertain by about 1 / sqrt(2 * 200) = 5 %."""
ERROR_SUFFIX = ":se"
"""A name of evaluations.jsonl with this suffix holds the standard error of the name without it."""


def dense_health(
    features: Features,
    *,
    reference: Features | None = None,
    code: Tensor | None = None,
    views: Tensor | None = None,
) -> dict[str, float]:
    """All gauges of `features` under the names of docs/run-format.md; NaN where a gauge is undefined.

    `reference` (the same images at another step or from another network) adds the Gram distance, `code` [H, W, D]
    (`position_code` of noise images) the match with it, `views` [B, V, D] (class tokens of augmented views of images)
    LiDAR. What each gauge means: `GAUGES`.
    """
    gauges = _gauges(features, reference, code, views)
    return {name: _value(gauge, images, features) for name, (gauge, images) in gauges.items()}


def dense_health_with_errors(
    features: Features,
    *,
    reference: Features | None = None,
    code: Tensor | None = None,
    views: Tensor | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """As `dense_health`, each with its standard error by bootstrap over images; NaN error for a single image.

    The error says how much a value depends on which images were looked at, not how much another training seed would
    change it. Images are resampled whole, so patches of an image are not taken for independent. The same `seed` draws
    the same images at every step: two steps differ by less than their errors say. The directions that ranks
    are counted along are those of all images.
    """
    gauges = _gauges(features, reference, code, views)
    draws: dict[int, Tensor] = {}
    for _, images in gauges.values():
        if images not in draws:
            generator = torch.Generator().manual_seed(seed)
            draws[images] = resampled_shares(images, resamples, generator).to(features.patches.device)
    return {
        name: Estimate(_value(gauge, images, features), standard_error(gauge, draws[images]))
        for name, (gauge, images) in gauges.items()
    }


def with_error_names(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Values under their names, standard errors under those plus ERROR_SUFFIX, as evaluations.jsonl has them."""
    values: dict[str, float] = {}
    for name, estimate in estimates.items():
        values[name] = estimate.value
        values[name + ERROR_SUFFIX] = estimate.standard_error
    return values


def _value(gauge: Weighted, images: int, features: Features) -> float:
    return value_of(gauge, images, features.patches.device)


def _gauges(
    features: Features, reference: Features | None, code: Tensor | None, views: Tensor | None
) -> dict[str, tuple[Weighted, int]]:
    """Each gauge as a function of image shares, with the number of images it has."""
    patches, cls = features.patches, features.cls
    if not bool(torch.isfinite(patches).all() and torch.isfinite(cls).all()):
        return {
            name: (_undefined, len(patches)) for name in _of_features_alone(torch.ones(1, 2, 2, 2), torch.ones(1, 2))
        }
    gauges = {name: (gauge, len(patches)) for name, gauge in _of_features_alone(patches, cls).items()}
    if reference is not None:
        distance = cosines.grids_distance_by_image(patches, reference.patches)
        gauges["health/gram_distance"] = (mean_over_images(distance), len(patches))
    if code is not None:
        match = variance.positional_match(patches, code.to(patches.device))
        gauges["health/positional_match"] = (mean_over_images(match), len(patches))
    if views is not None:
        gauges["health/lidar"] = (image_level.weighted_lidar(views.to(patches.device)), len(views))
    return gauges


def _of_features_alone(patches: Tensor, cls: Tensor) -> dict[str, Weighted]:
    near, far = cosines.near_cosine_by_image(patches), cosines.far_cosine_by_image(patches)
    return {
        "health/cls_patch_cosine": mean_over_images(cosines.cls_patch_cosine_by_image(patches, cls)),
        "health/near_cosine": mean_over_images(near),
        "health/far_cosine": mean_over_images(far),
        "health/locality": cosines.weighted_locality(near, far),
        "health/within_variance": variance.weighted_within_variance(patches),
        "health/positional_share": variance.weighted_positional_share(patches),
        "health/effective_rank": variance.weighted_effective_rank(patches),
        "health/norm_outliers": outliers.weighted_norm_outliers(patches),
        "health/outlier_dimensions": outliers.weighted_outlier_dimensions(patches),
        "health/rankme": image_level.weighted_rankme(cls),
    }


def _undefined(shares: Tensor) -> Tensor:
    return torch.full((len(shares),), math.nan)
