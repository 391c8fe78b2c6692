"""Every gauge against an independent computation in NumPy, SciPy or scikit-learn, and on features of known health."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics.pairwise import cosine_similarity

from workbench.analysis import health
from workbench.analysis.health import GAUGES, dense_health, gauge_table
from workbench.features import Features

ROOT = Path(__file__).parents[3]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def uneven(*shape: int, seed: int = 0) -> torch.Tensor:
    """Patches with an offset, unlike channels and two common maps: no gauge is at an end of its range."""
    images, height, width, channels = shape
    rows = torch.linspace(-1, 1, height)[:, None, None] * noise(channels, seed=seed + 1)
    columns = torch.linspace(0, 2, width)[None, :, None] * noise(channels, seed=seed + 2)
    own = noise(images, 1, 1, channels, seed=seed + 3)
    scale = torch.logspace(0, -1, channels)
    patches = (noise(*shape, seed=seed) + rows + columns + own) * scale + 0.5
    patches[..., 1] += 12
    return patches


def rows_of(patches: torch.Tensor) -> np.ndarray:
    """float64 [B, N, D] of what the gauge was given, half precision included."""
    return patches.flatten(1, 2).double().numpy()


def pairs_at(height: int, width: int):
    """(i, j, distance) of all unordered pairs of places."""
    places = [(r, c) for r in range(height) for c in range(width)]
    for i, (r, c) in enumerate(places):
        for j in range(i):
            yield i, j, math.hypot(r - places[j][0], c - places[j][1])


def near_and_far(patches: torch.Tensor) -> tuple[float, float]:
    height, width = patches.shape[1:3]
    half = math.hypot(height - 1, width - 1) / 2
    cosines = [cosine_similarity(image) for image in rows_of(patches)]
    near = [c[i, j] for c in cosines for i, j, d in pairs_at(height, width) if d == 1]
    far = [c[i, j] for c in cosines for i, j, d in pairs_at(height, width) if d >= half - 1e-9]
    return float(np.mean(near)), float(np.mean(far))


def entropy_rank(spectrum: np.ndarray, eps: float = 0.0) -> float:
    shares = spectrum / spectrum.sum() + eps
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def unit_maps(patches: torch.Tensor) -> np.ndarray:
    rows = rows_of(patches)
    rows = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    return rows - rows.mean(axis=1, keepdims=True)


def independent(patches: torch.Tensor, cls: torch.Tensor) -> dict[str, float]:
    """All gauges of features alone, the long way."""
    rows, tokens = rows_of(patches), cls.double().numpy()
    near, far = near_and_far(patches)
    norms = np.linalg.norm(rows.astype(np.float64), axis=2)
    middle = np.sort(norms.ravel())[(norms.size - 1) // 2]
    spread = max(np.sort(np.abs(norms - middle).ravel())[(norms.size - 1) // 2], 1e-3 * middle)
    images, flat = np.repeat(np.arange(len(rows)), rows.shape[1]), rows.reshape(-1, rows.shape[2])
    membership = np.eye(len(rows))[images]
    fitted = LinearRegression(fit_intercept=False).fit(membership, flat).predict(membership)
    centred = flat - flat.mean(axis=0)
    maps = unit_maps(patches)
    others = [np.sum(a * b) for i, a in enumerate(maps) for j, b in enumerate(maps) if i != j]
    share = np.mean(others) / np.mean(np.square(maps).sum(axis=(1, 2))) if others else math.nan
    squares = np.square(rows / np.linalg.norm(rows, axis=2, keepdims=True))
    energy = np.sort(squares, axis=1)[:, (squares.shape[1] - 1) // 2]
    energy = (energy / energy.sum(axis=1, keepdims=True)).mean(axis=0)
    strange = energy > 50 * np.sort(energy)[(energy.size - 1) // 2]
    return {
        "health/cls_patch_cosine": float(
            np.mean([cosine_similarity(r, t[None]) for r, t in zip(rows, tokens, strict=True)])
        ),
        "health/near_cosine": near,
        "health/far_cosine": far,
        "health/locality": (near - far) / (1 - far),
        "health/within_variance": float(np.square(flat - fitted).sum() / np.square(centred).sum()),
        "health/positional_share": float(share),
        "health/effective_rank": entropy_rank(np.linalg.svd(centred, compute_uv=False)),
        "health/norm_outliers": float(np.mean(norms > middle + 5 * spread)),
        "health/outlier_dimensions": float(energy[strange].sum()),
        "health/rankme": entropy_rank(np.linalg.svd(tokens, compute_uv=False), 1e-7),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 3, 7, 11), (1, 6, 4, 9), (9, 5, 2, 33)])
def test_every_gauge_equals_the_long_way(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    patches, cls = uneven(*shape).to(dtype), (noise(shape[0], shape[3], seed=9) + 1).to(dtype)
    values = dense_health(Features(patches, cls, cls[:, None][:, :0]))
    expected = independent(patches, cls)
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True), name
    assert values["health/outlier_dimensions"] > 0.1  # the great channel counts: the test is not about zeros


@pytest.mark.parametrize("shape", [(4, 3, 7, 11), (1, 5, 2, 6)])
def test_the_gauges_that_need_more_equal_the_long_way(shape: tuple[int, ...]) -> None:
    patches, other = uneven(*shape), uneven(*shape[:3], 5, seed=20)
    grams = [[cosine_similarity(image) for image in rows_of(x)] for x in (patches, other)]
    distance = np.mean([np.square(a - b).mean() for a, b in zip(*grams, strict=True)])
    assert health.gram_distance(patches, other) == pytest.approx(distance, rel=1e-5)
    code = health.position_code(uneven(3, *shape[1:], seed=40))
    maps, flat = unit_maps(patches), code.flatten().double().numpy()
    fits = [LinearRegression(fit_intercept=False).fit(flat[:, None], m.ravel()) for m in maps]
    left = [m.ravel() - f.predict(flat[:, None]) for m, f in zip(maps, fits, strict=True)]
    shares = [1 - np.square(rest).sum() / np.square(m).sum() for m, rest in zip(maps, left, strict=True)]
    assert health.positional_match(patches, code).tolist() == pytest.approx(shares, rel=1e-5)


def test_the_curve_equals_a_loop_over_pairs() -> None:
    patches = uneven(3, 4, 6, 8)
    curve = health.similarity_by_distance(patches)
    pairs = list(pairs_at(4, 6))
    assert curve.pairs.sum() == len(pairs)
    for k, (distance, cosine) in enumerate(zip(curve.distance.tolist(), curve.cosine.T, strict=True), start=1):
        inside = [(i, j, d) for i, j, d in pairs if k - 0.5 <= d < k + 0.5]
        assert distance == pytest.approx(np.mean([d for _, _, d in inside]))
        for image, value in zip(rows_of(patches), cosine.tolist(), strict=True):
            cosines = cosine_similarity(image)
            assert value == pytest.approx(np.mean([cosines[i, j] for i, j, _ in inside]), abs=1e-6)
    assert health.similarity_by_distance(patches[:, :1, :1]).cosine.shape == (3, 0)


def test_blocks_change_no_curve_and_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, other = noise(5, 4, 3, 6), noise(5, 4, 3, 6, seed=1)
    whole = health.similarity_by_distance(patches).cosine, health.gram_distance(patches, other)
    monkeypatch.setattr(health.cosines, "_GRAM_ENTRIES_AT_ONCE", 1)
    torch.testing.assert_close(health.similarity_by_distance(patches).cosine, whole[0])
    assert health.gram_distance(patches, other) == pytest.approx(whole[1])


def test_lidar_equals_the_generalised_eigenvalues_of_scipy() -> None:
    views = (noise(12, 1, 7) * torch.logspace(0, -1.5, 7) + 0.3 * noise(12, 5, 7, seed=1)).double()
    x = views.numpy()
    means = x.mean(axis=1)
    between = np.cov(means.T, bias=True)
    within = np.mean([np.outer(d, d) for d in (x - means[:, None]).reshape(-1, 7)], axis=0) + 1e-4 * np.eye(7)
    values = np.clip(scipy.linalg.eigh(between, within, eigvals_only=True), 0, None)
    assert health.lidar(views) == pytest.approx(entropy_rank(values, 1e-7), rel=1e-6)
    assert 2 < health.lidar(views) < 7


@pytest.mark.parametrize("rank", [2, 5])
def test_lidar_and_rankme_count_equal_directions(rank: int) -> None:
    axes = torch.cat((torch.eye(8)[:rank], -torch.eye(8)[:rank]))
    jitter = 0.01 * noise(2 * rank, 400, 8)
    assert health.lidar(axes[:, None] + jitter) == pytest.approx(rank, rel=0.02)
    assert health.rankme(axes) == pytest.approx(rank, rel=1e-3)
    with pytest.raises(ValueError, match="2 views"):
        health.lidar(axes[:, None])


# --- features whose health is known ----------------------------------------------------------------------------------


def smooth(images: int, height: int, width: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Perfect locality: each image a field of its own that changes slowly, in its own directions."""
    rows = torch.linspace(0, math.pi, height)[:, None, None]
    columns = torch.linspace(0, math.pi, width)[None, :, None]
    phase = 6 * noise(images, 1, 1, channels, seed=seed)
    return torch.cos(rows * 0.7 + columns * noise(images, 1, 1, channels, seed=seed + 1) + phase)


def test_perfect_locality_and_none() -> None:
    local, shuffled = smooth(6, 9, 7, 24), smooth(6, 9, 7, 24).flatten(1, 2)
    order = torch.randperm(63, generator=torch.Generator().manual_seed(0))
    shuffled = shuffled[:, order].reshape(local.shape)
    assert health.locality(local) > 0.8
    assert health.locality(shuffled) == pytest.approx(0, abs=0.06)
    assert health.locality(noise(6, 9, 7, 24)) == pytest.approx(0, abs=0.03)
    assert health.within_variance(shuffled) == pytest.approx(health.within_variance(local))  # blind to places
    curve = health.similarity_by_distance(local).cosine.mean(dim=0)
    assert (curve[1:5] < curve[:4]).all()  # falls with distance


def test_an_offset_common_to_all_patches_leaves_locality_alone() -> None:
    local = torch.nn.functional.normalize(smooth(4, 8, 5, 16), dim=-1)
    local = torch.cat((local, torch.zeros(4, 8, 5, 1)), dim=-1)
    offset = local + 2 * torch.eye(17)[16]
    assert health.far_cosine(offset) > health.far_cosine(local) + 0.3
    assert health.locality(offset) == pytest.approx(health.locality(local), abs=1e-5)


def test_constant_patches_have_no_locality_to_speak_of() -> None:
    values = dense_health(Features(torch.full((3, 4, 5, 6), 0.3), torch.ones(3, 6), torch.zeros(3, 0, 6)))
    for name in ("locality", "within_variance", "positional_share"):
        assert math.isnan(values[f"health/{name}"]), name


def test_a_pure_position_code() -> None:
    code = smooth(1, 6, 9, 16)
    assert health.positional_share(code.expand(5, -1, -1, -1)) == pytest.approx(1, abs=1e-6)
    assert health.positional_match(code, health.position_code(code)).item() == pytest.approx(1, abs=1e-6)
    content = noise(40, 6, 9, 16)
    assert health.positional_share(content) == pytest.approx(0, abs=0.01)
    assert health.positional_match(content, health.position_code(code)).max() < 0.02
    code = code - code.mean(dim=(1, 2))
    half = code / code.norm() * content.norm() / math.sqrt(40) + content  # as much code as content
    assert health.positional_share(half) == pytest.approx(0.5, abs=0.05)


def test_few_images_do_not_raise_the_positional_share() -> None:
    shares = [health.positional_share(noise(3, 5, 4, 8, seed=seed)) for seed in range(60)]
    assert abs(sum(shares) / len(shares)) < 0.02


def test_one_great_channel() -> None:
    patches = noise(3, 6, 5, 32)
    assert health.outlier_dimensions(patches) == 0
    patches[..., 7] += math.sqrt(32)  # as long as all others together
    assert health.outlier_dimensions(patches) == pytest.approx(0.5, abs=0.2)
    few = noise(3, 6, 5, 32)
    few[:, 0, 0, 7] += 100  # one patch is strange, not the channel
    assert health.outlier_dimensions(few) == 0
    relu = torch.zeros(2, 3, 3, 9)
    relu[..., :3] = 1
    assert health.outlier_dimensions(relu) == 0  # channels that are never used are no yardstick


def test_a_gram_distance_asks_for_the_same_grid() -> None:
    assert health.gram_distance(noise(2, 3, 4, 5), noise(2, 3, 4, 5)) == 0
    for wrong in (noise(1, 3, 4, 5), noise(2, 4, 3, 5)):
        with pytest.raises(ValueError, match="same grid"):
            health.gram_distance(noise(2, 3, 4, 5), wrong)
    with pytest.raises(ValueError, match="position_code"):
        health.positional_match(noise(2, 3, 4, 5), noise(4, 3, 5))


# --- the list of gauges ----------------------------------------------------------------------------------------------


def test_the_list_names_what_is_measured() -> None:
    features = Features(noise(4, 3, 2, 5), noise(4, 5), noise(4, 0, 5))
    code = health.position_code(features.patches)
    measured = dense_health(features, reference=features, code=code, views=noise(4, 3, 5))
    listed = {gauge.key: gauge for gauge in GAUGES}
    assert len(listed) == len(GAUGES)
    assert set(measured) == {key for key, gauge in listed.items() if gauge.needs != "labels"}
    alone = {key for key, gauge in listed.items() if gauge.needs == "features"}
    assert set(dense_health(features)) == alone
    assert {key for key, gauge in listed.items() if gauge.level == "image"} == {"health/rankme", "health/lidar"}
    for gauge in GAUGES:
        assert all((gauge.en, gauge.zh, gauge.range, gauge.source, gauge.failure)), gauge.key
        assert "|" not in "".join((gauge.en, gauge.zh, gauge.range, gauge.source, gauge.failure))


def test_the_renderer_calls_the_gauges_by_the_same_names() -> None:
    english, chinese = (ROOT / "workbench" / "static" / "renderer.js").read_text(encoding="utf-8").split("\n  zh: {")
    for gauge in GAUGES:
        assert f'"{gauge.key}": "{gauge.en}"' in english
        assert f'"{gauge.key}": "{gauge.zh}"' in chinese


def test_the_page_holds_the_table_of_the_list() -> None:
    assert gauge_table() in (ROOT / "docs" / "dense-health.md").read_text(encoding="utf-8")
