"""Photometric operations on batches of images, one strength per image.

All work on float images [N, 3, h, w] with values in [0, 1] (row 0 is the top) and return new tensors of that shape.
The formulas are those of torchvision.transforms.v2.functional on *float* images (equal to 1e-5). On uint8 images
torchvision rounds after every operation and floors the mean grey of `adjust_contrast`, so chains differ from it by a
few grey levels there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Luma of ITU-R BT.601, the weights of "L" images everywhere.
_LUMA = (0.2989, 0.587, 0.114)


def grayscale(images: Tensor) -> Tensor:
    """The luma of every pixel in all three channels."""
    return _luma(images).repeat(1, 3, 1, 1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale by factor [N] >= 0: 0 is black, 1 the image itself."""
    return (images * _per_image(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with each image's mean luma by factor [N] >= 0: 0 is flat grey, 1 the image itself."""
    mean = _luma(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(images, mean, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luma by factor [N] >= 0: 0 is a grey image, 1 the image itself."""
    return _blend(images, _luma(images), factor)


def adjust_hue(images: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue of HSV by factor [N] full turns, in [-0.5, 0.5]; value and chroma stay.

    A colour of hue H (in sixths of a turn), value V and chroma C has the channels V - C clamp(2 - |d|, 0, 1) where d
    is H minus the hue opposite to the channel's primary, wrapped to [-3, 3]: red 3, green 5, blue 1.
    """
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    hue = _hue(images, value, chroma).add_(_per_image(factor) * 6)
    distance = hue - hue.new_tensor([3.0, 5.0, 1.0]).view(3, 1, 1)
    distance.sub_(torch.round(distance / 6), alpha=6)
    weight = distance.abs_().neg_().add_(2).clamp_(0, 1)
    return weight.mul_(chroma).neg_().add_(value)


def solarize(images: Tensor, threshold: float) -> Tensor:
    """Invert every value at or above `threshold`, in [0, 1]."""
    return torch.where(images >= threshold, 1 - images, images)


def gaussian_blur(images: Tensor, kernel: int, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur with an odd `kernel` (pixels) and sigma [N] > 0 (pixels), borders reflected.

    Each axis is one product with a band matrix into which the reflected border is folded, which beats depthwise
    convolution on CPUs up to about 256 pixels; its cost per pixel grows with the side beyond that.

    Raises ValueError for an even kernel or one whose half does not fit into the image.
    """
    height, width = images.shape[-2:]
    if kernel < 1 or kernel % 2 == 0 or kernel // 2 >= min(height, width):
        raise ValueError(
            f"A blur kernel of {kernel} pixels does not fit images of {height} x {width} pixels: "
            f"it must be odd, and half of it smaller than the image."
        )
    offsets = torch.arange(kernel, dtype=images.dtype, device=images.device) - kernel // 2
    weights = torch.softmax(-0.5 * (offsets / sigma.to(images.dtype)[:, None]) ** 2, dim=1)
    rows = _band(weights, height)[:, None]
    columns = rows if width == height else _band(weights, width)[:, None]
    return rows @ (images @ columns.mT)


def colour_jitter(images: Tensor, factors: Tensor, order: Tensor, apply: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue (operations 0 to 3), in an order of its own for every image.

    factors [N, 4] are the strengths by operation, order [N, 4] the operations by turn, apply [N] bool which images
    are touched at all (ColorJitter inside RandomApply).
    """
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    for turn in range(len(operations)):
        for number, operation in enumerate(operations):
            rows = apply & (order[:, turn] == number)
            images = on_rows(images, rows, operation, factors[:, number])
    return images


def on_rows(images: Tensor, rows: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Apply `operation(images, *parameters)` to the images whose entry in rows [N] bool is true, in place.

    Returns the tensor with the result; where every image is chosen that is a new one.
    """
    chosen = rows.nonzero().squeeze(1)
    if len(chosen) == 0:
        return images
    if len(chosen) == len(images):
        return operation(images, *parameters)
    images[chosen] = operation(images[chosen], *(parameter[chosen] for parameter in parameters))
    return images


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _luma(images: Tensor) -> Tensor:
    """[N, 1, h, w]"""
    red, green, blue = images.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor * images + (1 - factor) * other, clamped to [0, 1]."""
    return torch.lerp(other, images, _per_image(factor).to(images.dtype)).clamp_(0, 1)


def _hue(images: Tensor, value: Tensor, chroma: Tensor) -> Tensor:
    """Hue [N, 1, h, w] in sixths of a turn, in [-1, 5]; arbitrary but finite where chroma is 0."""
    red, green, blue = images.split(1, dim=1)
    by_red = green - blue
    by_green = blue - red
    by_blue = red - green
    divisor = chroma.clamp_min(torch.finfo(images.dtype).tiny)
    hue = torch.where(value == green, by_green.div_(divisor).add_(2), by_blue.div_(divisor).add_(4))
    return torch.where(value == red, by_red.div_(divisor), hue)


def _band(weights: Tensor, side: int) -> Tensor:
    """Matrices [N, side, side] that filter an axis of `side` pixels with weights [N, kernel], borders reflected."""
    kernel = weights.shape[1]
    axis, offsets = (torch.arange(count, device=weights.device) for count in (side, kernel))
    rows = axis.repeat_interleave(kernel)
    columns = (axis[:, None] + offsets - kernel // 2).flatten().abs()
    columns = torch.minimum(columns, 2 * (side - 1) - columns)
    band = weights.new_zeros(len(weights), side * side)
    band.index_add_(1, rows * side + columns, weights.repeat(1, side))
    return band.view(-1, side, side)
