"""Multi-crop augmentation of DINO in batched tensor operations, with all randomness drawn up front.

The distribution is that of the official recipes: random resized crops (antialiased bicubic, on uint8), flip, colour
jitter, grey, blur on some views, solarisation on the second global crop. Photometric operations run in float32 and
do not round in between, unlike a pipeline on PIL images (see colour.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from training.data import colour
from training.data.boxes import BOX_COLUMNS, channels_last, crop_boxes, resized, resized_crops

# Columns of the uniform numbers that decide one crop: its box comes first.
_FACTORS = slice(BOX_COLUMNS, BOX_COLUMNS + 4)
_ORDER = slice(_FACTORS.stop, _FACTORS.stop + 4)
_FLIP, _JITTER, _GRAYSCALE, _BLUR, _SIGMA, _SOLARIZE = range(_ORDER.stop, _ORDER.stop + 6)
_COLUMNS = _SOLARIZE + 1

# Photometric operations go over pieces of this many floats, so that a piece stays in the processor's cache.
_PIECE = 1 << 18


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Multi-crop augmentation (DINO sec. 3.1; DINOv3 app. C). Sizes in pixels, scales as shares of the image's area.

    The blur probabilities are the *effective* ones, per view. The official DINOv2 and DINOv3 code means to blur
    global crops 1 and 2 with probability 1.0 and 0.1 and local crops with 0.5, as the DINO paper says, but its blur
    wrapper hands 1 - p to RandomApply. What really happened, and what the released weights were trained with, is 0.0,
    0.9 and 0.5: the defaults here. `AugmentConfig.paper_blur(...)` gives the intended 1.0, 0.1 and 0.5.

    The blur kernel never spans more than a tenth of a crop (odd, at least 3 pixels), and sigma shrinks with it: 9
    pixels from 90-pixel crops up, as published, 3 pixels for 48-pixel crops and below.
    """

    global_size: int = 224
    local_size: int = 96
    global_crops: int = 2
    local_crops: int = 8
    gram_size: int | None = None
    """Also cut each global crop at this size, for a Gram teacher that sees more pixels; None makes no such crops."""
    gram_distortions: bool = False
    """Gram crops get the colours and blur of their global crop too; without, they are resized and flipped only."""
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width / height, drawn log-uniformly."""
    flip: float = 0.5
    """Probability of a horizontal flip (0 for the published 7B recipe)."""
    jitter: float = 0.8
    """Probability of colour jitter, whose strengths are the next four."""
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    """In full turns, at most 0.5."""
    grayscale: float = 0.2
    """Probability of dropping colour."""
    blur_global1: float = 0.0
    blur_global2: float = 0.9
    """Also that of further global crops."""
    blur_local: float = 0.5
    blur_kernel: int = 9
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Pixels, for the full kernel."""
    solarize: float = 0.2
    """Probability on global crop 2 of inverting values >= 128 of 255."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """What pixels in [0, 1] are normalised with, by channel."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_ranges(self)

    @classmethod
    def paper_blur(cls, **fields) -> AugmentConfig:
        """The blur the papers intend (1.0 on global 1, 0.1 on global 2, 0.5 on locals), other fields as given."""
        return cls(blur_global1=1.0, blur_global2=0.1, blur_local=0.5, **fields)


class Crops(NamedTuple):
    """Normalised crops, crop-major: row crop * B + sample."""

    globals_: Tensor
    """[G*B, 3, g, g] float32"""
    locals_: Tensor
    """[L*B, 3, l, l] float32"""
    gram: Tensor
    """[G*B, 3, gg, gg] float32: the boxes of the global crops at the Gram teacher's size; [0, 3, 0, 0] without one"""


class Draws(NamedTuple):
    """The uniform numbers that decide every crop of a batch of B samples."""

    globals_: Tensor
    """[G, B, columns]"""
    locals_: Tensor
    """[L, B, columns]"""

    def samples(self, start: int, stop: int) -> Draws:
        """The numbers of samples start..stop-1 alone."""
        return Draws(self.globals_[:, start:stop], self.locals_[:, start:stop])


class _View(NamedTuple):
    """What global and local crops differ in; the probabilities are per crop."""

    size: int
    scale: tuple[float, float]
    blur: tuple[float, ...]
    solarize: tuple[float, ...]


class _Parameters(NamedTuple):
    """What happens to each of N crops."""

    flip: Tensor  # [N] bool
    jitter: Tensor  # [N] bool
    factors: Tensor  # [N, 4] strengths by operation, see colour_jitter
    order: Tensor  # [N, 4] operations by turn
    grayscale: Tensor  # [N] bool
    blur: Tensor  # [N] bool
    sigma: Tensor  # [N] pixels
    solarize: Tensor  # [N] bool

    def rows(self, start: int, stop: int) -> _Parameters:
        return _Parameters(*(values[start:stop] for values in self))


class MultiCrop:
    """Turns images into global and local crops.

    `draw` takes every random number from the generator, `render` is deterministic, and calling does both.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        others = max(config.global_crops - 1, 0)
        self._globals = _View(
            size=config.global_size,
            scale=config.global_scale,
            blur=((config.blur_global1,) + (config.blur_global2,) * others)[: config.global_crops],
            solarize=((0.0, config.solarize) + (0.0,) * others)[: config.global_crops],
        )
        self._locals = _View(
            size=config.local_size,
            scale=config.local_scale,
            blur=(config.blur_local,) * config.local_crops,
            solarize=(0.0,) * config.local_crops,
        )

    def __call__(self, images: Sequence[Tensor], generator: torch.Generator) -> Crops:
        """Crops of B images, uint8 [3, h, w] each of any size, with randomness from `generator` (on the CPU)."""
        return self.render(images, self.draw(len(images), generator))

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The random numbers for `count` samples."""
        config = self.config
        return Draws(
            torch.rand(config.global_crops, count, _COLUMNS, generator=generator),
            torch.rand(config.local_crops, count, _COLUMNS, generator=generator),
        )

    def render(self, images: Sequence[Tensor], draws: Draws) -> Crops:
        """Crops of B images, uint8 [3, h, w] each of any size, decided by `draws` of B samples.

        Raises ValueError naming the first image with another dtype or shape.
        """
        _check_images(images)
        sizes = torch.tensor([tuple(image.shape[1:]) for image in images], dtype=torch.float64).view(-1, 2)
        images = [channels_last(image) for image in images]
        globals_, gram = self._render_globals(images, sizes, draws.globals_)
        pixels = self._pixels(images, sizes, draws.locals_, self._locals, self._locals.size)
        return Crops(globals_, self._distorted(pixels, draws.locals_, self._locals), gram)

    def _render_globals(self, images: list[Tensor], sizes: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Global crops and Gram crops of the same boxes. Both come from one base cut at the larger of the two sizes.

        Without distortions the base is resized to each size first; with them it is distorted at its own size, then
        resized. All resizing is antialiased bicubic, as released (DINOv3 section 4.3 and its code).
        """
        config, view = self.config, self._globals
        if config.gram_size is None:
            pixels = self._pixels(images, sizes, uniforms, view, view.size)
            return self._distorted(pixels, uniforms, view), torch.empty(0, 3, 0, 0)
        base = self._pixels(images, sizes, uniforms, view, max(view.size, config.gram_size))
        if config.gram_distortions:
            distorted = self._distorted(base, uniforms, view)
            return resized(distorted, view.size), resized(distorted, config.gram_size)
        gram = resized(base, config.gram_size).float().div_(255)
        gram = colour.on_rows(gram, uniforms[..., _FLIP].flatten() < config.flip, lambda chosen: chosen.flip(-1))
        return self._distorted(resized(base, view.size), uniforms, view), self._normalised(gram)

    def _pixels(self, images: list[Tensor], sizes: Tensor, uniforms: Tensor, view: _View, size: int) -> Tensor:
        """uint8 [C*B, 3, size, size]: the boxes of a view in B images of sizes [B, 2]; uniforms [C, B, columns]."""
        uniforms = uniforms.flatten(0, 1)
        boxes = crop_boxes(uniforms, sizes.repeat(len(view.blur), 1), view.scale, self.config.aspect)
        return resized_crops(images, boxes, size)

    def _distorted(self, pixels: Tensor, uniforms: Tensor, view: _View) -> Tensor:
        """Normalised float32 of the shape of `pixels`, flipped and with changed colours; uniforms [C, B, columns]."""
        size = pixels.shape[-1]
        parameters = self._parameters(uniforms, view, size)
        crops = torch.empty(pixels.shape)
        step = max(_PIECE // (3 * size**2), 1)
        for start in range(0, len(crops), step):
            stop = start + step
            crops[start:stop] = self._photometric(pixels[start:stop], parameters.rows(start, stop))
        return crops

    def _parameters(self, uniforms: Tensor, view: _View, size: int) -> _Parameters:
        """What uniforms [C, B, columns] mean for the C*B crops of a view, distorted at `size` pixels."""
        config = self.config
        blur, solarize = uniforms.new_tensor(view.blur)[:, None], uniforms.new_tensor(view.solarize)[:, None]
        low, high = config.blur_sigma
        shrink = blur_kernel(config, size) / config.blur_kernel
        spread = uniforms.new_tensor([config.brightness, config.contrast, config.saturation, config.hue])
        centre = uniforms.new_tensor([1.0, 1.0, 1.0, 0.0])
        lowest = (centre - spread).clamp_min(uniforms.new_tensor([0.0, 0.0, 0.0, -0.5]))
        parameters = _Parameters(
            flip=uniforms[..., _FLIP] < config.flip,
            jitter=uniforms[..., _JITTER] < config.jitter,
            factors=lowest + (centre + spread - lowest) * uniforms[..., _FACTORS],
            order=uniforms[..., _ORDER].argsort(-1),
            grayscale=uniforms[..., _GRAYSCALE] < config.grayscale,
            blur=uniforms[..., _BLUR] < blur,
            sigma=(low + (high - low) * uniforms[..., _SIGMA]) * shrink,
            solarize=uniforms[..., _SOLARIZE] < solarize,
        )
        return _Parameters(*(values.flatten(0, 1) for values in parameters))

    def _photometric(self, pixels: Tensor, parameters: _Parameters) -> Tensor:
        """uint8 [N, 3, s, s] to normalised float32 of that shape: flip, jitter, grey, blur, solarise, normalise."""
        kernel = blur_kernel(self.config, pixels.shape[-1])
        images = pixels.float().div_(255)
        images = colour.on_rows(images, parameters.flip, lambda chosen: chosen.flip(-1))
        images = colour.colour_jitter(images, parameters.factors, parameters.order, parameters.jitter)
        images = colour.on_rows(images, parameters.grayscale, colour.grayscale)
        images = colour.on_rows(
            images, parameters.blur, lambda chosen, sigma: colour.gaussian_blur(chosen, kernel, sigma), parameters.sigma
        )
        images = colour.on_rows(images, parameters.solarize, lambda chosen: colour.solarize(chosen, 128 / 255))
        return self._normalised(images)

    def _normalised(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1] to normalised ones, in place."""
        mean, std = images.new_tensor(self.config.mean), images.new_tensor(self.config.std)
        return images.sub_(mean[:, None, None]).div_(std[:, None, None])


def blur_kernel(config: AugmentConfig, size: int) -> int:
    """Side in pixels of the blur kernel for crops of `size` pixels: odd, from 3 to min(blur_kernel, size / 10)."""
    limit = max(min(config.blur_kernel, size // 10), 3)
    return limit - 1 + limit % 2


def _check_images(images: Sequence[Tensor]) -> None:
    for number, image in enumerate(images):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(
                f"Image {number} of the batch is {image.dtype} of shape {list(image.shape)}; "
                f"the augmentation takes uint8 images of shape [3, h, w]."
            )


def _check_sizes(config: AugmentConfig) -> None:
    for name in ("global_size", "local_size", "gram_size"):
        size = getattr(config, name)
        if size is not None and size < 4:
            raise ValueError(f"AugmentConfig.{name} is {size} pixels; crops need at least 4.")
    if config.global_crops < 1 or config.local_crops < 0:
        raise ValueError(
            f"AugmentConfig has global_crops={config.global_crops} and local_crops={config.local_crops}; "
            f"at least 1 global and 0 local crops are needed."
        )
    if config.blur_kernel < 3 or config.blur_kernel % 2 == 0:
        raise ValueError(f"AugmentConfig.blur_kernel is {config.blur_kernel} pixels; choose an odd number >= 3.")


def _check_ranges(config: AugmentConfig) -> None:
    probabilities = ("flip", "jitter", "grayscale", "blur_global1", "blur_global2", "blur_local", "solarize")
    strengths = {"brightness": math.inf, "contrast": math.inf, "saturation": math.inf, "hue": 0.5}
    for name, highest in {**dict.fromkeys(probabilities, 1.0), **strengths}.items():
        if not 0 <= getattr(config, name) <= highest:
            raise ValueError(
                f"AugmentConfig.{name} is {getattr(config, name)}; allowed are numbers from 0 to {highest:g}."
            )
    ranges = {"global_scale": 1.0, "local_scale": 1.0, "aspect": math.inf, "blur_sigma": math.inf}
    for name, highest in ranges.items():
        low, high = getattr(config, name)
        if not 0 < low <= high <= highest:
            raise ValueError(f"AugmentConfig.{name} is ({low}, {high}); allowed are 0 < low <= high <= {highest:g}.")
    if min(config.std) <= 0:
        raise ValueError(f"AugmentConfig.std is {config.std}; every channel needs a number above 0.")
