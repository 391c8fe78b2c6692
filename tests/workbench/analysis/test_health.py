"""Every gauge on features whose answer is known by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from workbench.analysis import health
from workbench.analysis.health import GAUGES, dense_health
from workbench.features import Features


def features(patches: torch.Tensor, cls: torch.Tensor | None = None) -> Features:
    cls = torch.ones(len(patches), patches.shape[-1]) if cls is None else cls
    return Features(patches, cls, torch.zeros(len(patches), 0, patches.shape[-1]))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_names_are_those_of_the_run_format() -> None:
    text = (Path(__file__).parents[3] / "docs" / "run-format.md").read_text()
    written = {gauge.key for gauge in GAUGES if gauge.needs != "reference"}
    assert written == set(re.findall(r'"((?:health|dense)/\w+)"', text))


def test_constant_patches() -> None:
    patches = torch.full((3, 4, 5, 6), 0.7)
    values = dense_health(features(patches, -torch.ones(3, 6)))
    assert values["health/cls_patch_cosine"] == pytest.approx(-1)
    assert values["health/near_cosine"] == pytest.approx(1)
    assert values["health/far_cosine"] == pytest.approx(1)
    assert math.isnan(values["health/within_variance"])
    assert values["health/effective_rank"] == 0
    assert values["health/norm_outliers"] == 0


def test_class_token_equal_to_its_patches() -> None:
    cls = noise(2, 8)
    patches = cls[:, None, None].expand(2, 4, 4, 8)
    values = dense_health(features(patches, cls))
    assert values["health/cls_patch_cosine"] == pytest.approx(1)
    assert values["health/within_variance"] == pytest.approx(0, abs=1e-9)
    assert values["health/effective_rank"] == pytest.approx(1)  # two points differ along one line


def test_within_variance_of_a_single_image_and_of_equal_halves() -> None:
    assert health.within_variance(noise(1, 3, 3, 4)) == pytest.approx(1)
    # Image means +1 and -1 (between: 1), patches of each +-1 around it (within: 1).
    one = torch.tensor([2.0, 0.0]).reshape(1, 1, 2, 1)
    assert health.within_variance(torch.cat((one, -one))) == pytest.approx(0.5)


def test_near_and_far_of_two_halves() -> None:
    """Left half along x, right half along y: 4 columns, 1 row; neighbours agree but for one pair, far pairs never."""
    patches = torch.zeros(1, 1, 4, 2)
    patches[0, 0, :2, 0] = 1
    patches[0, 0, 2:, 1] = 5
    assert health.near_cosine(patches) == pytest.approx(2 / 3)
    assert health.far_cosine(patches) == pytest.approx(0)  # at least 1.5 apart: (0,2) (0,3) (1,3)


def test_far_cosine_equals_a_loop_over_pairs() -> None:
    patches = noise(2, 3, 5, 4)
    reach = math.hypot(2, 4) / 2
    values = [
        torch.cosine_similarity(image[r, c], image[s, d], dim=0).item()
        for image in patches
        for r in range(3)
        for c in range(5)
        for s in range(3)
        for d in range(5)
        if math.hypot(r - s, c - d) >= reach - 1e-4 and (r, c) != (s, d)
    ]
    assert health.far_cosine(patches) == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    patches = noise(5, 4, 4, 6)
    whole = health.far_cosine(patches)
    monkeypatch.setattr(health.cosines, "_GRAM_ENTRIES_AT_ONCE", 1)
    assert health.far_cosine(patches) == pytest.approx(whole)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_equal_directions(rank: int) -> None:
    axes = torch.eye(8)[:rank]
    patches = torch.cat((axes, -axes)).reshape(1, 1, 2 * rank, 8) + 4
    assert health.effective_rank(patches) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_equals_the_svd() -> None:
    patches = noise(3, 4, 4, 10) * torch.logspace(0, -2, 10)
    rows = patches.flatten(0, 2).double()
    singular = torch.linalg.svdvals(rows - rows.mean(dim=0))
    share = singular / singular.sum()
    assert health.effective_rank(patches) == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-6)


def test_one_outlier_of_a_hundred() -> None:
    patches = torch.nn.functional.normalize(noise(1, 10, 10, 16), dim=-1)
    patches = patches * (10 + 0.1 * noise(1, 10, 10, 1, seed=1))
    assert health.norm_outliers(patches) == 0
    patches[0, 4, 7] *= 3
    assert health.norm_outliers(patches) == pytest.approx(0.01)


def test_outliers_among_equal_norms_are_not_rounding() -> None:
    patches = torch.nn.functional.normalize(noise(2, 8, 8, 32), dim=-1)
    assert health.norm_outliers(patches) == 0
    patches[0, 0, 0] *= 1.1
    assert health.norm_outliers(patches) == pytest.approx(1 / 128)


def test_smoothing_moves_the_gauges_the_stated_way() -> None:
    clean = noise(4, 6, 6, 12)
    cls = clean.mean(dim=(1, 2))
    before, after = (dense_health(features(clean + weight * cls[:, None, None], cls)) for weight in (0.0, 8.0))
    for gauge in ("cls_patch_cosine", "near_cosine", "far_cosine"):
        assert after[f"health/{gauge}"] > before[f"health/{gauge}"] + 0.1
    assert after["health/within_variance"] < 0.7 * before["health/within_variance"]


def test_a_grid_of_one_patch_has_no_pairs() -> None:
    values = dense_health(features(noise(3, 1, 1, 4)))
    assert math.isnan(values["health/near_cosine"])
    assert math.isnan(values["health/far_cosine"])


def test_half_precision_is_measured_in_full() -> None:
    patches = noise(2, 4, 4, 8)
    full, half = dense_health(features(patches)), dense_health(features(patches.half(), torch.ones(2, 8).half()))
    for name, value in full.items():
        assert half[name] == pytest.approx(value, abs=5e-3)
