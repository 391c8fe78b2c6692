"""Crops and colours equal torchvision's; the draws have its distribution; randomness comes from the generator alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torchvision.transforms.v2 as v2
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from training.data import augment, colour
from training.data.augment import AugmentConfig, MultiCrop, blur_kernel, crop_boxes, resized_crops

SMALL = AugmentConfig(global_size=48, local_size=24, local_crops=4)
QUIET = AugmentConfig(
    global_size=32, local_size=16, local_crops=3, flip=0, jitter=0, grayscale=0, blur_global2=0, blur_local=0,
    solarize=0, mean=(0, 0, 0), std=(1, 1, 1),
)  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int, height: int = 40, width: int = 56, seed: int = 0) -> list[Tensor]:
    """Smooth random uint8 images, each with its own cast, and a grey, a black and a saturated one among them."""
    coarse = torch.rand(count, 3, 5, 7, generator=seeded(seed))
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    images[0] = images[0, :1]
    images[1] = 0
    images[2, 0], images[2, 1:] = 1, 0
    return list((images * 255).round().to(torch.uint8))


@pytest.fixture(scope="module")
def floats() -> Tensor:
    """[12, 3, 40, 56] in [0, 1]"""
    return torch.stack(photos(12)).float() / 255


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (colour.adjust_brightness, tv.adjust_brightness, 0.0, 2.0),
        (colour.adjust_contrast, tv.adjust_contrast, 0.0, 2.0),
        (colour.adjust_saturation, tv.adjust_saturation, 0.0, 2.0),
        (colour.adjust_hue, tv.adjust_hue, -0.5, 0.5),
        (
            lambda images, sigma: colour.gaussian_blur(images, 9, sigma),
            lambda x, s: tv.gaussian_blur(x, [9, 9], s),
            0.1,
            2,
        ),
        (
            lambda images, sigma: colour.gaussian_blur(images, 3, sigma),
            lambda x, s: tv.gaussian_blur(x, [3, 3], s),
            0.1,
            2,
        ),
        (lambda images, _: colour.grayscale(images), lambda x, _: tv.rgb_to_grayscale(x, 3), 0, 1),
        (lambda images, _: colour.solarize(images, 128 / 255), lambda x, _: tv.solarize(x, 128 / 255), 0, 1),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "blur-9", "blur-3", "grey", "solarize"],
)
def test_every_operation_equals_torchvision(floats, ours, theirs, low, high):
    strength = torch.linspace(low, high, len(floats))
    expected = torch.stack([theirs(image, float(value)) for image, value in zip(floats, strength, strict=True)])
    before = floats.clone()
    assert (ours(floats, strength) - expected).abs().max() < 1e-5
    assert torch.equal(floats, before), "the input must not change"


def test_blur_reflects_at_the_border_when_the_kernel_nearly_fills_the_image():
    images = torch.rand(2, 3, 5, 8, generator=seeded())
    expected = tv.gaussian_blur(images, [9, 9], 1.7)
    assert (colour.gaussian_blur(images, 9, torch.full((2,), 1.7)) - expected).abs().max() < 1e-5
    with pytest.raises(ValueError, match="9 pixels does not fit images of 4 x 8"):
        colour.gaussian_blur(images[:, :, :4], 9, torch.ones(2))


def test_colour_jitter_applies_each_image_s_own_order_and_strengths(floats):
    count = len(floats)
    factors = torch.rand(count, 4, generator=seeded(1)) * torch.tensor([1.5, 1.5, 1.5, 0.2]) + torch.tensor(
        [0.2] * 3 + [-0.1]
    )
    order = torch.rand(count, 4, generator=seeded(2)).argsort(1)
    apply = torch.arange(count) % 3 != 0
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    expected = []
    for number, image in enumerate(floats):
        for operation in order[number].tolist() if apply[number] else ():
            image = operations[operation](image, float(factors[number, operation]))
        expected.append(image)
    ours = colour.colour_jitter(floats.clone(), factors, order, apply)
    assert (ours - torch.stack(expected)).abs().max() < 1e-5
    assert len({tuple(row) for row in order.tolist()}) > 4, "the test must see many orders"


@pytest.mark.parametrize("size", [16, 48])
def test_resized_crops_equal_torchvision_exactly(size):
    images = [*photos(4), *photos(4, 90, 33, seed=1)]
    boxes = torch.tensor([[3, 5, 20, 30], [0, 0, 40, 56], [10, 1, 7, 50], [39, 55, 1, 1]] + [[2, 4, 80, 21]] * 4)
    ours = resized_crops(images, boxes, size)
    for crop, image, box in zip(ours, images, boxes.tolist(), strict=True):
        theirs = tv.resized_crop(image, *box, [size, size], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(crop, theirs)


def test_without_distortions_a_crop_is_the_resized_box_in_crop_major_order():
    images = [*photos(3), *photos(3, 64, 30, seed=3)]
    multicrop = MultiCrop(QUIET)
    draws = multicrop.draw(6, seeded(4))
    crops = multicrop.render(images, draws)
    sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.float64)
    for uniforms, scale, rendered in (
        (draws.globals_, QUIET.global_scale, crops.globals_),
        (draws.locals_, QUIET.local_scale, crops.locals_),
    ):
        for row, crop in enumerate(rendered):
            number, sample = divmod(row, 6)
            box = crop_boxes(uniforms[number, sample : sample + 1], sizes[sample : sample + 1], scale, QUIET.aspect)[0]
            size = [crop.shape[-1]] * 2
            expected = tv.resized_crop(images[sample], *box.tolist(), size, interpolation=v2.InterpolationMode.BICUBIC)
            assert (crop - expected / 255).abs().max() < 1e-6
    assert crops.globals_.shape == (12, 3, 32, 32)
    assert crops.locals_.shape == (18, 3, 16, 16)


def test_normalisation_uses_mean_and_std():
    images = photos(4)
    plain = MultiCrop(QUIET)(images, seeded())
    fields = {**vars(QUIET), "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
    scaled = MultiCrop(AugmentConfig(**fields))(images, seeded())
    expected = v2.functional.normalize(plain.globals_, [0.4, 0.5, 0.6], [0.1, 0.2, 0.3])
    assert (scaled.globals_ - expected).abs().max() < 1e-5


def test_the_generator_alone_decides():
    images, multicrop = photos(6), MultiCrop(SMALL)
    state = torch.get_rng_state()
    first, again, other = multicrop(images, seeded(1)), multicrop(images, seeded(1)), multicrop(images, seeded(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.globals_, again.globals_)
    assert torch.equal(first.locals_, again.locals_)
    assert not torch.equal(first.globals_, other.globals_)


def test_a_sample_s_crops_do_not_depend_on_its_neighbours():
    """Ranks render slices of one batch; channels-last input is only faster."""
    images, multicrop = photos(6), MultiCrop(SMALL)
    draws = multicrop.draw(6, seeded(1))
    whole = multicrop.render(images, draws)
    last = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in images]
    part = multicrop.render(last[2:4], draws.samples(2, 4))
    assert (whole.globals_.unflatten(0, (2, 6))[:, 2:4].flatten(0, 1) - part.globals_).abs().max() < 1e-5
    assert (whole.locals_.unflatten(0, (4, 6))[:, 2:4].flatten(0, 1) - part.locals_).abs().max() < 1e-5


def test_boxes_have_the_distribution_of_random_resized_crop():
    """Two-sample Kolmogorov-Smirnov against torchvision, for an image in which some tries do not fit."""
    count, height, width, scale, aspect = 4000, 60, 100, (0.32, 1.0), (3 / 4, 4 / 3)
    uniforms = MultiCrop(SMALL).draw(count, seeded(5)).globals_[0]
    ours = crop_boxes(uniforms, torch.tensor([[height, width]] * count), scale, aspect)
    transform = v2.RandomResizedCrop(10, scale=scale, ratio=aspect)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        image = [torch.empty(3, height, width)]
        drawn = [transform.make_params(image) for _ in range(count)]
    theirs = torch.tensor([[box[name] for name in ("top", "left", "height", "width")] for box in drawn])
    limit = 1.95 * math.sqrt(2 / count)  # the 0.1 % point
    for column in range(4):
        assert kolmogorov_smirnov(ours[:, column], theirs[:, column]) < limit
    assert kolmogorov_smirnov(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < limit


def test_boxes_keep_scale_and_aspect_and_stay_inside():
    count = 3000
    sizes = torch.tensor([[200, 150], [150, 400], [97, 97]]).repeat(count // 3, 1)
    uniforms = MultiCrop(SMALL).draw(count, seeded(7)).locals_[0]
    top, left, height, width = crop_boxes(uniforms, sizes, (0.05, 0.32), (3 / 4, 4 / 3)).double().unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= sizes[:, 0]).all()
    assert (left + width <= sizes[:, 1]).all()
    share = height * width / sizes.prod(1)
    assert 0.045 < share.min() < 0.06
    assert 0.30 < share.max() < 0.33
    assert abs(share.mean() - (0.05 + 0.32) / 2) < 0.005
    ratio = (width / height).log()
    assert ratio.abs().max() < math.log(4 / 3) + 0.06
    assert abs(ratio.mean()) < 0.01


def test_impossible_aspects_fall_back_to_the_centre():
    """A 4 x 400 image admits no box of that area and aspect; torchvision falls back to the tallest centred one."""
    uniforms = MultiCrop(SMALL).draw(50, seeded(8)).globals_[0]
    boxes = crop_boxes(uniforms, torch.tensor([[4, 400]] * 50), (0.9, 1.0), (3 / 4, 4 / 3))
    assert torch.equal(boxes.unique(dim=0), torch.tensor([[0, 197, 4, 5]]))
    narrow = crop_boxes(uniforms, torch.tensor([[400, 3]] * 50), (0.9, 1.0), (3 / 4, 4 / 3))
    assert torch.equal(narrow.unique(dim=0), torch.tensor([[198, 0, 4, 3]]))


def test_effective_blur_probabilities_per_view():
    assert blurred_shares(AugmentConfig(local_crops=1)) == pytest.approx([0.0, 0.9, 0.5], abs=0.03)
    assert blurred_shares(AugmentConfig.paper_blur(local_crops=1)) == pytest.approx([1.0, 0.1, 0.5], abs=0.03)


@pytest.mark.parametrize(("size", "kernel"), [(16, 3), (24, 3), (48, 3), (56, 5), (90, 9), (96, 9), (224, 9), (512, 9)])
def test_the_blur_kernel_shrinks_with_tiny_crops(size, kernel):
    assert blur_kernel(AugmentConfig(), size) == kernel


def test_only_the_second_global_crop_is_solarised():
    fields = {**vars(QUIET), "solarize": 1.0}
    images = photos(4)
    plain, solarised = MultiCrop(QUIET)(images, seeded()), MultiCrop(AugmentConfig(**fields))(images, seeded())
    assert torch.equal(plain.globals_[:4], solarised.globals_[:4])
    assert torch.equal(plain.locals_, solarised.locals_)
    assert (solarised.globals_[4:] - tv.solarize(plain.globals_[4:], 128 / 255)).abs().max() < 1e-6


def test_flip_mirrors_left_and_right():
    fields = {**vars(QUIET), "flip": 1.0}
    images = photos(4)
    plain, mirrored = MultiCrop(QUIET)(images, seeded()), MultiCrop(AugmentConfig(**fields))(images, seeded())
    assert torch.equal(plain.globals_, mirrored.globals_.flip(-1))


def test_no_local_crops():
    crops = MultiCrop(AugmentConfig(global_size=32, local_size=16, local_crops=0))(photos(3), seeded())
    assert crops.locals_.shape == (0, 3, 16, 16)
    assert crops.globals_.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_crops": 0}, "at least 1 global"),
        ({"local_size": 2}, "local_size is 2 pixels"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"hue": 0.6}, "from 0 to 0.5"),
        ({"global_scale": (0.5, 0.2)}, r"global_scale is \(0.5, 0.2\)"),
        ({"blur_kernel": 8}, "odd number"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
    ],
)
def test_wrong_configs_say_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**fields)


@pytest.mark.parametrize("image", [torch.rand(3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)])
def test_wrong_images_are_named(image):
    with pytest.raises(ValueError, match="Image 2 of the batch"):
        MultiCrop(SMALL)([*photos(3)[:2], image], seeded())


def kolmogorov_smirnov(first: Tensor, second: Tensor) -> float:
    """Largest distance between two empirical distribution functions."""
    points = torch.cat([first, second]).unique()
    shares = [torch.searchsorted(values.sort().values, points, right=True) / len(values) for values in (first, second)]
    return float((shares[0] - shares[1]).abs().max())


def blurred_shares(config: AugmentConfig) -> list[float]:
    """How often global crop 1, global crop 2 and a local crop come out blurred, by what a blur does to white noise."""
    fields = {**vars(config), "global_size": 16, "local_size": 16, "blur_sigma": (9.0, 9.0), "jitter": 0, "solarize": 0,
              "grayscale": 0, "flip": 0, "global_scale": (1, 1), "local_scale": (1, 1), "aspect": (1, 1)}  # fmt: skip
    noise = list(torch.randint(0, 256, (1500, 3, 16, 16), generator=seeded(3), dtype=torch.uint8))
    crops = MultiCrop(AugmentConfig(**fields))(noise, seeded(9))
    views = [*crops.globals_.chunk(2), crops.locals_]
    return [float((view.std(dim=(1, 2, 3)) < 0.9).float().mean()) for view in views]


# Crops for a Gram teacher

LARGE = AugmentConfig(global_size=32, local_size=16, local_crops=2, gram_size=56, solarize=1.0, grayscale=0.5)


def uniform_crops(config: AugmentConfig):
    images = [*photos(3), *photos(3, 64, 30, seed=3)]
    return images, MultiCrop(config).render(images, MultiCrop(config).draw(6, seeded(4)))


def flips(config: AugmentConfig) -> Tensor:
    """[G*B] bool: which global crops are flipped."""
    return (MultiCrop(config).draw(6, seeded(4)).globals_[..., augment._FLIP] < config.flip).flatten()


@pytest.mark.parametrize("gram_size", [56, 32, 24])
def test_a_gram_crop_is_the_box_of_its_global_crop_resized_flipped_and_normalised(gram_size: int):
    config = dataclasses.replace(LARGE, gram_size=gram_size)
    images, crops = uniform_crops(config)
    draws = MultiCrop(config).draw(6, seeded(4))
    sides = torch.tensor([image.shape[1:] for image in images], dtype=torch.float64).repeat(2, 1)
    boxes = crop_boxes(draws.globals_.flatten(0, 1), sides, config.global_scale, config.aspect)
    assert crops.gram.shape == (12, 3, gram_size, gram_size)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    flipped = flips(config)
    assert flipped.any()
    assert not flipped.all()
    for number, box in enumerate(boxes.tolist()):
        base = tv.resized_crop(images[number % 6], *box, [max(32, gram_size)] * 2, v2.InterpolationMode.BICUBIC)
        base = tv.resize(base, [gram_size] * 2, v2.InterpolationMode.BICUBIC)
        base = tv.horizontal_flip(base) if flipped[number] else base
        torch.testing.assert_close(crops.gram[number], (base.float() / 255 - mean) / std, rtol=0, atol=1e-5)


def test_the_student_sees_the_same_base_made_smaller_then_distorted():
    """Without colours and blur: the base at the Gram size, resized on uint8 to the global size, normalised."""
    config = dataclasses.replace(QUIET, gram_size=56)
    _, crops = uniform_crops(config)
    base = (crops.gram * 255).round().to(torch.uint8)
    expected = tv.resize(base, [32, 32], v2.InterpolationMode.BICUBIC, antialias=True).float() / 255
    torch.testing.assert_close(crops.globals_, expected, rtol=0, atol=1e-6)
    assert (crops.globals_ - uniform_crops(dataclasses.replace(config, gram_size=None))[1].globals_).abs().max() > 1e-3


def test_with_distortions_both_come_from_one_distorted_base():
    config = dataclasses.replace(LARGE, gram_distortions=True)
    _, crops = uniform_crops(config)
    torch.testing.assert_close(
        crops.globals_, tv.resize(crops.gram, [32, 32], v2.InterpolationMode.BICUBIC, antialias=True)
    )
    _, at_gram_size = uniform_crops(dataclasses.replace(LARGE, global_size=56, gram_size=None))
    assert torch.equal(crops.gram, at_gram_size.globals_), "distorted at the larger size, blur and all"
    _, clean = uniform_crops(LARGE)
    assert (clean.gram - crops.gram).abs().mean() > 0.05


def test_gram_crops_change_nothing_else():
    """Same locals, and at the global size the same globals; without a size there are none."""
    _, without = uniform_crops(dataclasses.replace(LARGE, gram_size=None))
    _, with_gram = uniform_crops(dataclasses.replace(LARGE, gram_size=32))
    assert torch.equal(without.locals_, with_gram.locals_)
    assert torch.equal(without.globals_, with_gram.globals_)
    assert without.gram.shape == (0, 3, 0, 0)
    with pytest.raises(ValueError, match="gram_size is 2"):
        AugmentConfig(gram_size=2)
