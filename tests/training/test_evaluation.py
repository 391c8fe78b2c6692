"""Evaluations against scikit-learn, scipy and loops; the suite on scenes whose right answer is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from training.data.sources import ScenesConfig
from training.evaluation import segmentation
from training.evaluation.knn import (
    AMBIGUOUS,
    PatchSample,
    Voting,
    at_boundary,
    balanced_sample,
    class_fractions,
    global_knn,
    patch_knn,
    patch_labels,
    weighted_patch_knn,
)
from training.evaluation.plan import EvaluationConfig, EvaluationPlan
from training.evaluation.raw_pixels import RawPixels
from training.evaluation.segmentation import (
    LinearProbe,
    fit_linear_probe,
    mean_iou,
    predict_pixels,
    weighted_mean_iou,
)
from training.evaluation.suite import Suite, SuiteConfig
from workbench.analysis.health import GAUGES
from workbench.analysis.health.bootstrap import resampled_shares
from workbench.backbones import VisionTransformer, ViTConfig
from workbench.features import Backbone, Features
from workbench.scenes import SceneConfig, Scenes, builtin_library

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- patch labels and samples -------------------------------------------------------------------------------------


def test_fractions_equal_a_loop() -> None:
    classes = torch.randint(0, 4, (2, 12, 20), generator=seeded())
    fractions = class_fractions(classes, 4, 4)
    assert fractions.shape == (2, 3, 5, 4)
    for image, row, column, label in np.ndindex(2, 3, 5, 4):
        patch = classes[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert fractions[image, row, column, label] == pytest.approx((patch == label).float().mean().item())


def test_labels_need_purity() -> None:
    fractions = torch.tensor([[[[0.75, 0.25], [0.74, 0.26], [0.0, 1.0]]]])
    assert patch_labels(fractions, purity=0.75).tolist() == [[[0, AMBIGUOUS, 1]]]


def test_samples_are_balanced_seeded_and_leave_the_background_out() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 4 + [AMBIGUOUS] * 9).reshape(1, 3, 31)
    sample = balanced_sample(labels, 10, 4, seeded())
    assert sample.labels.bincount().tolist() == [0, 10, 4]
    assert torch.equal(labels.flatten()[sample.index], sample.labels)
    assert len(sample.index.unique()) == 14
    again = balanced_sample(labels, 10, 4, seeded())
    assert torch.equal(sample.index, again.index)
    assert not torch.equal(sample.index, balanced_sample(labels, 10, 4, seeded(1)).index)


# --- k-NN ---------------------------------------------------------------------------------------------------------


def test_patch_knn_equals_the_balanced_accuracy_of_scikit_learn() -> None:
    """One neighbour by cosine, classes of unlike size, a few patches that do not take part."""
    bank_labels = torch.randint(1, 4, (4, 5, 3), generator=seeded())
    labels = torch.randint(-1, 6, (5, 5, 3), generator=seeded(1)).clamp(max=3)
    train, test = (torch.randn(*x.shape, 4, generator=seeded(3)) + x[..., None] * 0.3 for x in (bank_labels, labels))
    bank, queries = balanced_sample(bank_labels, 99, 4, seeded()), balanced_sample(labels, 99, 4, seeded())
    neighbour = KNeighborsClassifier(1, metric="cosine")
    neighbour.fit(train.flatten(0, 2)[bank.index].numpy(), bank.labels.numpy())
    named = neighbour.predict(test.flatten(0, 2)[queries.index].numpy())
    expected = balanced_accuracy_score(queries.labels.numpy(), named)
    assert 0.3 < expected < 0.9
    assert patch_knn(train, bank, test, queries, Voting(1, 0.07, 4)) == pytest.approx(expected)


def test_patch_knn_of_separable_and_of_meaningless_features() -> None:
    labels = torch.randint(1, 5, (8, 6, 6), generator=seeded())
    sample = balanced_sample(labels, 40, 5, seeded())
    voting = Voting(k=5, temperature=0.07, classes=5)
    telling = F.one_hot(labels, 5).float() + 0.01 * torch.randn(8, 6, 6, 5, generator=seeded(1))
    assert patch_knn(telling, sample, telling.flip(-1).flip(-1), sample, voting) == 1
    noise, more = torch.randn(2, 8, 6, 6, 5, generator=seeded(2))
    assert patch_knn(noise, sample, more, sample, voting) == pytest.approx(0.25, abs=0.12)


def test_patch_knn_without_patches_is_undefined() -> None:
    none = PatchSample(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long))
    patches = torch.ones(1, 2, 2, 3)
    assert np.isnan(patch_knn(patches, none, patches, none, Voting(5, 0.07, 3)))


def test_global_knn_takes_the_whole_bank_when_it_is_small() -> None:
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    assert global_knn(bank, labels, bank[[2, 0]], torch.tensor([2, 1]), Voting(20, 0.07, 3)) == 0.5


# --- linear probe -------------------------------------------------------------------------------------------------


def probe_problem(classes: int = 3) -> tuple[Tensor, Tensor]:
    """Noisy features of patches that mix classes, the first class most common."""
    fractions = torch.rand(6, 5, 7, classes, generator=seeded()).pow(6) * torch.tensor([5.0, 1.0, 0.5][:classes])
    fractions = fractions / fractions.sum(dim=-1, keepdim=True)
    mixing = torch.randn(classes, 8, generator=seeded(1))
    return 3 + fractions @ mixing + 0.4 * torch.randn(6, 5, 7, 8, generator=seeded(2)), fractions


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_probe_equals_scikit_learn(balance: float) -> None:
    """A soft target is three weighted copies of a patch, one a class: that is what scikit-learn can fit."""
    patches, fractions = probe_problem()
    probe = fit_linear_probe(patches, fractions, iterations=400, l2=1e-3, balance=balance)
    x = patches.flatten(0, 2).double().numpy()
    x = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    shares = fractions.flatten(0, 2).double().numpy()
    weights = shares * shares.mean(axis=0) ** -balance
    reference = LogisticRegression(C=1e3, tol=1e-10, max_iter=5000)
    reference.fit(np.repeat(x, 3, axis=0), np.tile([0, 1, 2], len(x)), (weights / weights.sum()).flatten())
    mine = probe.logits(patches).softmax(dim=-1).flatten(0, 2).numpy()
    np.testing.assert_allclose(mine, reference.predict_proba(x), atol=5e-3)


def test_probe_is_deterministic_and_needs_no_outer_gradient() -> None:
    patches, fractions = probe_problem()
    with torch.no_grad():
        first = fit_linear_probe(patches, fractions)
    second = fit_linear_probe(patches, fractions)
    assert torch.equal(first.weight, second.weight)
    assert not first.weight.requires_grad


def test_probe_survives_constant_channels_and_absent_classes() -> None:
    patches, fractions = probe_problem()
    patches[..., 0] = 4.0
    padded = F.pad(fractions, (0, 2))
    probe = fit_linear_probe(patches, padded)
    logits = probe.logits(patches)
    assert torch.isfinite(logits).all()
    assert logits.argmax(dim=-1).max() < 3


def test_pixels_are_bilinear_between_patch_centres(monkeypatch: pytest.MonkeyPatch) -> None:
    patches = torch.randn(3, 4, 5, 2, generator=seeded())
    probe = LinearProbe(torch.zeros(2), torch.ones(2), torch.eye(2), torch.zeros(2))
    monkeypatch.setattr(segmentation, "_IMAGES_AT_ONCE", 2)
    predicted = predict_pixels(probe, patches, (32, 40))
    rows, columns = np.meshgrid((np.arange(32) + 0.5) / 8 - 0.5, (np.arange(40) + 0.5) / 8 - 0.5, indexing="ij")
    for image, expected in zip(patches.numpy(), predicted.numpy(), strict=True):
        maps = [map_coordinates(image[..., k], [rows, columns], order=1, mode="nearest") for k in range(2)]
        clear = np.abs(maps[0] - maps[1]) > 1e-4
        assert (np.argmax(maps, axis=0) == expected)[clear].all()


@pytest.mark.parametrize("seed", range(4))
def test_mean_iou_equals_scikit_learn(seed: int) -> None:
    target = torch.randint(0, 5, (3, 8, 9), generator=seeded(seed))
    predicted = torch.where(torch.rand(3, 8, 9, generator=seeded(seed + 9)) < 0.5, target, (target + 1) % 6)
    present = sorted(set(target.unique().tolist()) | set(predicted.unique().tolist()))
    expected = jaccard_score(target.flatten(), predicted.flatten(), average="macro", labels=present)
    assert mean_iou(predicted, target, classes=8) == pytest.approx(expected)


def test_mean_iou_of_perfect_and_of_wrong() -> None:
    target = torch.tensor([[0, 1], [1, 0]])
    assert mean_iou(target, target, 9) == 1
    assert mean_iou(1 - target, target, 2) == 0


# --- raw pixels ---------------------------------------------------------------------------------------------------


def test_raw_pixels_are_the_unfolded_image() -> None:
    backbone: Backbone = RawPixels(4)
    images = torch.randn(2, 3, 8, 12, generator=seeded())
    patches, cls, registers, attention = backbone.features(images)
    unfolded = F.unfold(images, 4, stride=4).transpose(1, 2).reshape(2, 2, 3, 48)
    assert torch.equal(patches, unfolded)
    assert torch.allclose(cls, unfolded.mean(dim=(1, 2)))
    assert registers.shape == (2, 0, 48)
    assert attention is None
    assert isinstance(backbone, Backbone)


def test_raw_pixels_say_what_they_have_not() -> None:
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="one layer"):
        RawPixels(4).features(images, layer=3)
    with pytest.raises(ValueError, match="attention"):
        RawPixels(4).features(images, attention=True)
    with pytest.raises(ValueError, match="multiples"):
        RawPixels(5).features(images)


# --- the suite ----------------------------------------------------------------------------------------------------


class PaintedScene(NamedTuple):
    """A scene whose colours are its classes: raw pixels know everything."""

    image: Tensor
    classes: Tensor
    labels: tuple[int, ...]


COLOURS = torch.tensor([[128, 128, 128], [255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)


def painted(seed: int, objects: int) -> PaintedScene:
    classes = torch.zeros(32, 48, dtype=torch.long)
    labels = tuple(torch.randint(1, 4, (objects,), generator=seeded(seed)).tolist())
    for number, label in enumerate(labels):
        classes[8:24, 16 * number + 8 * (objects == 1) : 16 * number + 8 + 8] = label
    return PaintedScene(COLOURS[classes].permute(2, 0, 1), classes, labels)


def painted_suite(**changes) -> Suite:
    several, single = [painted(seed, 3) for seed in range(12)], [painted(seed, 1) for seed in range(100, 140)]
    shapes = {"classes": 4, "patch_size": 8, "mean": MEAN, "std": STD}
    return Suite(several, several[6:], single, single[20:], **shapes, config=SuiteConfig(**changes))


def network(seed: int = 0, patch_size: int = 8) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(ViTConfig(patch_size=patch_size, embed_dim=24, depth=2, num_heads=2, drop_path=0.3))


VALUES = {gauge.key for gauge in GAUGES if gauge.needs != "reference"} | {"global/knn"}
NAMES = VALUES | {name + ":se" for name in VALUES}
SLOW = {"dense/linear_miou", "global/knn", "health/lidar"}


def test_features_that_know_everything_get_everything() -> None:
    values = dict(painted_suite(probe_iterations=200, probe_l2=1e-6)(RawPixels(8)))
    assert set(values) == NAMES
    assert values["dense/patch_knn"] == values["dense/boundary_knn"] == 1
    assert values["dense/patch_knn:se"] == 0  # nothing is wrong in any resample
    assert values["dense/linear_miou"] > 0.95  # bilinear logits round off the corners of the squares
    assert values["global/knn"] == 1


class Blind:
    """A backbone that returns the same features for every image."""

    patch_size, embed_dim, depth = 8, 6, 1

    def __init__(self) -> None:
        self.batches: list[int] = []

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        assert not torch.is_grad_enabled()
        self.batches.append(len(images))
        patches = torch.ones(len(images), images.shape[2] // 8, images.shape[3] // 8, 6)
        return Features(patches, patches[:, 0, 0], patches[:, 0, :0])


def test_features_that_know_nothing_stay_at_chance_and_batches_stay_small() -> None:
    backbone = Blind()
    values = dict(painted_suite(batch_size=5)(backbone))
    assert values["dense/patch_knn"] == pytest.approx(1 / 3)
    assert values["dense/linear_miou"] < 0.3
    assert values["global/knn"] < 0.7
    assert max(backbone.batches) == 5


def test_a_call_repeats_exactly_and_quick_is_a_part_of_it() -> None:
    suite, backbone = painted_suite(), network()
    first, second, quick = dict(suite(backbone)), dict(suite(backbone)), dict(suite(backbone, quick=True))
    assert first == second
    assert dict(painted_suite()(backbone)) == first
    assert quick == {name: value for name, value in first.items() if name in quick}
    assert set(quick) == NAMES - SLOW - {name + ":se" for name in SLOW}


def test_training_state_is_as_before_at_every_value() -> None:
    backbone = network()
    backbone.train()
    backbone.blocks[1].eval()
    flags = [module.training for module in backbone.modules()]
    before, torch_state = {k: v.clone() for k, v in backbone.state_dict().items()}, torch.get_rng_state()
    for _ in painted_suite()(backbone):
        assert [module.training for module in backbone.modules()] == flags
        assert torch.is_grad_enabled()
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_evaluation_mode_is_used() -> None:
    """Stochastic depth of 0.3 would make two calls in training mode differ."""
    backbone = network().train()
    suite = painted_suite()
    assert dict(suite(backbone, quick=True)) == dict(suite(backbone.eval(), quick=True))


def test_errors_of_scores_equal_drawing_test_images_and_scoring_again() -> None:
    """Patch k-NN and mean IoU over resampled images, one by one."""
    torch.manual_seed(0)
    train, test = torch.randn(5, 3, 4, 6), torch.randn(7, 3, 4, 6)
    labels, truth = torch.randint(1, 4, (5, 3, 4)), torch.randint(-1, 4, (7, 3, 4))
    bank, queries = balanced_sample(labels, 99, 4, seeded(0)), balanced_sample(truth, 99, 4, seeded(1))
    voting = Voting(3, 0.1, 4)
    shares = resampled_shares(7, 40, seeded(2))
    scores = weighted_patch_knn(train, bank, test, queries, voting)(shares)
    ious = weighted_mean_iou(labels.new_ones(7, 3, 4), truth.clamp_min(0), 4)(shares)
    for row, score, iou in zip((7 * shares).round().long(), scores.tolist(), ious.tolist(), strict=True):
        drawn = torch.repeat_interleave(torch.arange(7), row)
        again = balanced_sample(truth[drawn], 999, 4, seeded(1))
        assert score == pytest.approx(patch_knn(train, bank, test[drawn], again, voting))
        assert iou == pytest.approx(mean_iou(labels.new_ones(7, 3, 4), truth[drawn].clamp_min(0), 4))


def test_boundary_patches_touch_another_class() -> None:
    classes = torch.zeros(1, 24, 40, dtype=torch.long)
    classes[0, 8:16, 16:32] = 2  # two patches of a 3 x 5 grid
    touches = at_boundary(class_fractions(classes, 8, 3))
    expected = ["00110", "01111", "00110"]
    assert touches[0].int().tolist() == [[int(digit) for digit in row] for row in expected]
    assert not at_boundary(class_fractions(torch.ones(1, 8, 8, dtype=torch.long), 8, 2)).any()


def test_mistakes_are_told() -> None:
    scene = painted(0, 3)
    good = {"classes": 4, "patch_size": 8, "mean": MEAN, "std": STD}
    with pytest.raises(ValueError, match="patch size 8, the backbone has 16"):
        list(painted_suite()(network(patch_size=16)))
    with pytest.raises(ValueError, match="no test scenes"):
        Suite([scene], [], [scene], [scene], **good)
    with pytest.raises(ValueError, match="32 x 48"):
        Suite([scene], [scene], [scene], [scene], **{**good, "patch_size": 7})
    with pytest.raises(ValueError, match="classes is 2"):
        Suite([scene], [scene], [scene], [scene], **{**good, "classes": 2})


def test_real_scenes_and_a_real_network() -> None:
    library = builtin_library()
    scenes = Scenes(library, SceneConfig(size=(48, 48)), seed=3)
    suite = Suite(
        [scenes[index] for index in range(16)],
        [scenes[index] for index in range(100, 110)],
        [scenes.single(index) for index in range(40)],
        [scenes.single(index) for index in range(100, 110)],
        classes=len(library.classes),
        patch_size=8,
        mean=MEAN,
        std=STD,
    )
    for backbone in (network(), RawPixels(8)):
        values = dict(suite(backbone))
        assert set(values) == NAMES
        assert all(np.isfinite(value) for value in values.values())
        assert all(0 <= value <= 1 for name, value in values.items() if name.startswith(("dense", "global")))


def test_another_offset_draws_other_scenes_and_the_same_one_the_same():
    config = EvaluationConfig(suite=SuiteConfig(train_scenes=2, test_scenes=2, bank=2, queries=2, size=16))
    plan = EvaluationPlan(config, ScenesConfig(backgrounds=2), patch_size=8)
    first, again, other = (plan.suite((0.5,) * 3, (0.5,) * 3, offset=offset) for offset in (0, 0, 1000))
    for images in ("_train", "_test", "_bank", "_queries"):
        assert torch.equal(getattr(first, images), getattr(again, images))
        assert not torch.equal(getattr(first, images), getattr(other, images))
