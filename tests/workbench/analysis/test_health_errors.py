"""Standard errors by bootstrap over images: equal to drawing images and measuring again, and to theory."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.analysis import health
from workbench.analysis.health import Estimate, dense_health, dense_health_with_errors, with_error_names
from workbench.analysis.health.bootstrap import resampled_shares
from workbench.features import Features

HELD = {"health/effective_rank", "health/rankme", "health/lidar"}
"""Directions are held in the resamples: the errors agree closely, not exactly."""


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unlike_images(images: int, height: int, width: int, channels: int) -> Features:
    """Images that differ in offset, contrast and scale, so that every gauge has an error."""
    contrast = 0.3 + torch.rand(images, 1, 1, 1, generator=torch.Generator().manual_seed(5))
    common = noise(height, width, channels, seed=2)
    patches = noise(images, 1, 1, channels, seed=1) + contrast * (noise(images, height, width, channels) + common)
    patches[..., 0] += 25 * contrast[..., 0] ** 3
    patches[: images // 4, 0, 0] *= 4
    return Features(patches, patches.mean(dim=(1, 2)) + 0.1 * noise(images, channels), patches[:, 0, :0])


def test_errors_equal_drawing_images_and_measuring_again() -> None:
    features = unlike_images(24, 4, 5, 8)
    views = features.cls[:, None] + 0.3 * noise(24, 4, 8, seed=8)
    code, reference = noise(4, 5, 8, seed=2), Features(noise(24, 4, 5, 8, seed=3), features.cls, features.registers)
    extra = {"code": health.position_code(code[None]), "views": views, "reference": reference}
    estimates = dense_health_with_errors(features, **extra, resamples=120, seed=3)
    shares = resampled_shares(24, 120, torch.Generator().manual_seed(3))
    drawn = []
    for row in shares:
        index = torch.repeat_interleave(torch.arange(24), (24 * row).round().long())
        again = {**extra, "views": views[index], "reference": Features(*(x[index] for x in reference[:3]))}
        drawn.append(dense_health(Features(*(x[index] for x in features[:3])), **again))
    assert set(estimates) == set(drawn[0])
    for name, estimate in estimates.items():
        error = torch.tensor([values[name] for values in drawn], dtype=torch.float64).std().item()
        if name == "health/positional_share":  # copies of an image are not compared here, but are in `drawn`
            continue
        assert error > 1e-6, name
        assert estimate.standard_error == pytest.approx(error, rel=0.35 if name in HELD else 2e-3), name


def test_the_error_of_a_mean_is_the_known_one() -> None:
    features = unlike_images(200, 3, 4, 6)
    by_image = health.cosines.cls_patch_cosine_by_image(features.patches, features.cls)
    known = by_image.std().item() / math.sqrt(200)
    estimate = dense_health_with_errors(features, resamples=4000)["health/cls_patch_cosine"]
    assert estimate.standard_error == pytest.approx(known, rel=0.06)


def test_the_error_of_the_positional_share_is_that_of_new_images() -> None:
    """The bootstrap of one set of images against the spread over many sets."""
    common = noise(4, 5, 8, seed=2)
    sets = [0.5 * common + noise(30, 4, 5, 8, seed=seed) for seed in range(100, 160)]
    spread = torch.tensor([health.positional_share(images) for images in sets]).std().item()
    errors = [
        dense_health_with_errors(Features(images, images[:, 0, 0], images[:, 0, :0]))["health/positional_share"]
        for images in sets[:12]
    ]
    assert sum(estimate.standard_error for estimate in errors) / 12 == pytest.approx(spread, rel=0.35)


def test_values_are_those_without_errors_and_a_seed_decides() -> None:
    features = unlike_images(9, 3, 5, 7)
    estimates = dense_health_with_errors(features)
    assert {name: estimate.value for name, estimate in estimates.items()} == dense_health(features)
    assert estimates == dense_health_with_errors(features)
    assert estimates != dense_health_with_errors(features, seed=1)


def test_one_image_has_no_error() -> None:
    estimates = dense_health_with_errors(unlike_images(1, 3, 4, 6))
    assert all(math.isnan(estimate.standard_error) for estimate in estimates.values())
    assert estimates["health/far_cosine"].value == pytest.approx(health.far_cosine(unlike_images(1, 3, 4, 6).patches))


def test_broken_features_give_no_number_and_no_error_message() -> None:
    features = unlike_images(4, 3, 4, 6)
    features.patches[1, 2, 3, 4] = math.inf
    estimates = dense_health_with_errors(features)
    assert set(estimates) == set(dense_health(unlike_images(4, 3, 4, 6)))
    assert all(math.isnan(number) for estimate in estimates.values() for number in estimate)


def test_errors_stand_beside_their_values() -> None:
    assert with_error_names({"health/far_cosine": Estimate(0.5, 0.01)}) == {
        "health/far_cosine": 0.5,
        "health/far_cosine:se": 0.01,
    }
