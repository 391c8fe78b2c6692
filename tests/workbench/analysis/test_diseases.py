"""Diseases put into healthy features one by one and together: every verdict right, every number by another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from workbench.analysis import health
from workbench.analysis.diseases import DISEASES, POSITION, diagnose
from workbench.backbones import VisionTransformer, ViTConfig
from workbench.images import normalize
from workbench.scenes import SceneConfig, Scenes, builtin_library

H, W, D = 9, 14, 48
TOKENS, CHANNELS, POSITIONAL, LOCALITY = (disease.key for disease in DISEASES)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def objects(seed: int = 0) -> torch.Tensor:
    """Healthy: six regions, each its own vector, a little detail, and something common to all: [H, W, D]."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(6, 2, generator=generator) * torch.tensor([H, W])
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    region = torch.cdist(torch.stack((rows, columns), dim=-1).reshape(-1, 2).float(), centres).argmin(dim=1)
    vectors = noise(6, D, seed=seed + 50)
    return vectors[region].reshape(H, W, D) + 0.3 * noise(H, W, D, seed=seed + 60) + 0.5 * noise(D, seed=seed + 70)


def code(scale: float = 2.0) -> torch.Tensor:
    """What position adds: slow waves along rows, columns and a diagonal."""
    rows, columns = torch.arange(H)[:, None, None], torch.arange(W)[None, :, None]
    waves = [noise(1, 1, D, seed=90 + i) for i in range(3)]
    slow = (torch.cos(rows / 2.5), torch.sin(columns / 3), torch.cos((rows + columns) / 4))
    return scale * sum(wave * place for wave, place in zip(waves, slow, strict=True))


def sick(*diseases: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(patches with the diseases, healthy ones, features of eight noise images of the same sick network)."""
    healthy = objects(seed)
    patches, empty = healthy.clone(), 0.7 * noise(8, H, W, D, seed=seed + 80)
    if LOCALITY in diseases:
        patches = noise(H, W, D, seed=seed + 81)
    if POSITIONAL in diseases:
        patches, empty = patches + code(), empty + code()
    if CHANNELS in diseases:
        patches[..., 5] += 25
        empty[..., 5] += 25
    if TOKENS in diseases:
        patches[2, 3] *= 6
        patches[7, 11] *= -9
    return patches, healthy, empty


def states(verdicts) -> dict[str, str]:
    return {name: verdict.state for name, verdict in verdicts.items()}


EVERY_MIX = [mix for size in range(5) for mix in itertools.combinations((TOKENS, CHANNELS, POSITIONAL, LOCALITY), size)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mix", EVERY_MIX, ids="+".join)
def test_every_mix_is_told_apart_with_references(mix: tuple[str, ...], seed: int) -> None:
    patches, healthy, empty = sick(*mix, seed=seed)
    verdicts = diagnose(patches, healthy=healthy, noise=empty)
    assert states(verdicts) == {name: "present" if name in mix else "absent" for name in verdicts}
    for verdict in verdicts.values():
        assert (verdict.margin > 0) == (verdict.state == "present")
        assert (verdict.value >= verdict.threshold) == (verdict.state == "present")


@pytest.mark.parametrize("mix", EVERY_MIX, ids="+".join)
def test_one_image_alone_is_never_judged_wrongly(mix: tuple[str, ...]) -> None:
    verdicts = diagnose(sick(*mix)[0])
    for name, state in states(verdicts).items():
        assert state != ("absent" if name in mix else "present"), name
    assert verdicts[TOKENS].state != "undecided"
    assert verdicts[CHANNELS].state != "undecided"


def test_constant_patches_have_lost_their_order_and_nothing_else() -> None:
    washed = objects()[:1, :1] + 0.05 * objects(1)
    for patches in (torch.ones(H, W, D), washed):
        for healthy in (None, objects()):
            verdicts = diagnose(patches, healthy=healthy, noise=noise(8, H, W, D))
            assert states(verdicts) == {
                **dict.fromkeys((TOKENS, CHANNELS, POSITIONAL), "absent"),
                LOCALITY: "present",
            }
            assert diagnose(patches, healthy=healthy)[LOCALITY].state == "present"


def test_one_outlier_token() -> None:
    patches = objects()
    patches[4, 6] *= 7
    verdict = diagnose(patches)[TOKENS]
    norms = np.linalg.norm(patches.double().numpy(), axis=2)
    median = np.sort(norms.ravel())[(norms.size - 1) // 2]
    assert verdict.value == pytest.approx(norms.max() / median, rel=1e-6)
    assert (verdict.numbers["outliers"], verdict.numbers["share"]) == (1, 1 / (H * W))
    torch.testing.assert_close(verdict.picture, torch.from_numpy(norms / median).float())
    assert verdict.picture.flatten().argmax() == 4 * W + 6


def test_a_pure_position_code_is_positional_and_nothing_else() -> None:
    pure = code()
    with_code = diagnose(pure, noise=pure.expand(3, -1, -1, -1))
    assert with_code[POSITIONAL].value == pytest.approx(1, abs=1e-6)
    assert with_code[POSITIONAL].picture.min() > 0.999
    assert states(with_code) == {
        **dict.fromkeys((TOKENS, CHANNELS), "absent"),
        POSITIONAL: "present",
        LOCALITY: "undecided",  # the code is local, and nothing is left under it
    }
    rows, columns = noise(H, 1, D), noise(1, W, D, seed=1)
    assert diagnose(rows + columns)[POSITIONAL].value == pytest.approx(1, abs=0.03)
    assert diagnose(noise(H, W, D))[POSITIONAL].value < 0.1


def test_the_share_of_a_code_equals_least_squares() -> None:
    patches, _, empty = sick(POSITIONAL)
    expected = health.positional_match(patches[None], health.position_code(empty)).item()
    maps = [x / x.norm(dim=-1, keepdim=True) for x in (patches.double(), empty.double())]
    y, x = maps[0] - maps[0].mean(dim=(0, 1)), maps[1].mean(dim=0)
    x = (x - x.mean(dim=(0, 1))).numpy().reshape(-1, 1)
    fit = LinearRegression(fit_intercept=False).fit(x, y.numpy().ravel())
    assert expected == pytest.approx(fit.score(x, y.numpy().ravel()), abs=1e-6)  # y has mean 0
    assert diagnose(patches, noise=empty)[POSITIONAL].value == pytest.approx(expected, abs=1e-6)


def test_rows_and_columns_equal_a_regression_on_indicators() -> None:
    patches = objects() + 0.5 * code()
    unit = (patches / patches.norm(dim=-1, keepdim=True)).double().reshape(-1, D).numpy()
    rows, columns = (index.ravel() for index in np.indices((H, W)))
    indicators = np.hstack([np.eye(H)[rows], np.eye(W)[columns]])
    left = np.square(unit - LinearRegression().fit(indicators, unit).predict(indicators)).sum()
    total = np.square(unit - unit.mean(axis=0)).sum()
    adjusted = 1 - (left / ((H - 1) * (W - 1))) / (total / (H * W - 1))
    assert diagnose(patches)[POSITIONAL].value == pytest.approx(adjusted, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_locality_is_that_of_the_gauges(dtype: torch.dtype) -> None:
    patches, healthy = noise(H, W, D).to(dtype) + 0.8 * objects().to(dtype), objects().to(dtype)
    verdict = diagnose(patches, healthy=healthy)[LOCALITY]
    own, sound = (health.locality(x[None]) for x in (patches, healthy))
    assert verdict.numbers["locality"] == pytest.approx(own, abs=1e-5)
    spread = (1 - health.far_cosine(patches[None])) / (1 - health.far_cosine(healthy[None]))
    assert verdict.value == pytest.approx(max(1 - own / sound, 1 - spread, 0), abs=1e-5)
    assert verdict.picture.shape == (H, W)


def test_the_picture_of_outlier_dimensions_is_the_map_without_them() -> None:
    patches, healthy, _ = sick(CHANNELS)
    verdict = diagnose(patches, query=(3, 8))[CHANNELS]
    assert verdict.numbers["channels"] == 1
    assert verdict.before is not None
    assert verdict.before.min() > 0.8  # one colour: the channel's
    others = [channel for channel in range(D) if channel != 5]
    cosines = health.cosines.unit(healthy[..., others]) @ health.cosines.unit(healthy[..., others])[3, 8]
    torch.testing.assert_close(verdict.picture, cosines)
    assert verdict.picture.min() < 0.3


def test_a_stronger_disease_has_a_wider_margin() -> None:
    healthy, empty = objects(), 0.7 * noise(8, H, W, D)
    margins = [diagnose(healthy + code(s), noise=empty + code(s))[POSITIONAL].margin for s in (0.0, 0.3, 1.5, 3.0)]
    assert margins == sorted(margins)
    assert margins[0] < -0.9
    assert margins[-1] > 0.5
    mixes = [s * noise(H, W, D, seed=3) + healthy for s in (0.0, 0.4, 4.0)]
    margins = [diagnose(mix, healthy=healthy)[LOCALITY].margin for mix in mixes]
    assert margins == sorted(margins)
    assert margins[0] == -1 < 0 < margins[-1]


def test_between_the_limits_nothing_is_decided() -> None:
    assert POSITION.read(POSITION.sick) == ("present", 0.0)
    assert POSITION.read(POSITION.well) == ("absent", 0.0)
    assert POSITION.read((POSITION.sick + POSITION.well) / 2) == ("undecided", 0.0)
    assert POSITION.read(1.0) == ("present", 1.0)


def test_a_network_at_random_initialisation_has_no_disease() -> None:
    """Real scenes, non-square, several networks; with features of noise images and without."""
    scenes = Scenes(builtin_library(), SceneConfig(size=(72, 104)), seed=5)
    images = normalize(torch.stack([scenes[index].image for index in range(6)]), MEAN, STD)
    pixels = torch.rand(8, 3, 72, 104, generator=torch.Generator().manual_seed(1))
    for seed in range(2):
        torch.manual_seed(seed)
        network = VisionTransformer(ViTConfig(patch_size=8, embed_dim=48, depth=3, num_heads=3)).eval()
        with torch.no_grad():
            patches, empty = network.features(images).patches, network.features((pixels - 0.5) / 0.25).patches
        for image in patches:
            for verdicts in (diagnose(image), diagnose(image, noise=empty)):
                assert "present" not in states(verdicts).values()


def test_pictures_are_finite_and_lie_on_the_grid() -> None:
    patches, healthy, empty = sick(TOKENS, CHANNELS, POSITIONAL, LOCALITY)
    for verdict in diagnose(patches.half(), healthy=healthy, noise=empty.half()).values():
        assert verdict.picture.shape == (H, W)
        assert torch.isfinite(verdict.picture).all()
        low, high = verdict.range
        assert math.isfinite(low)
        assert low < high
    for verdict in diagnose(torch.zeros(2, 3, 4)).values():  # nothing at all breaks nothing
        assert torch.isfinite(verdict.picture).all()


def test_mistakes_are_told() -> None:
    patches = objects()
    cases = {
        "one image": {"patches": patches[None]},
        r"H >= 2": {"patches": patches[:1]},
        "grid": {"patches": patches, "healthy": patches[1:]},
        "same network": {"patches": patches, "noise": patches},
        "not a patch": {"patches": patches, "query": (H, 0)},
        "finite": {"patches": torch.full((H, W, D), math.nan)},
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            diagnose(**arguments)
