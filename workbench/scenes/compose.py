"""Turn a layout into pixels, masks and flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from workbench.scenes.layout import Layout, Placement
from workbench.scenes.pyramid import Affine, Pyramid

MIN_VISIBLE_PIXELS = 16
MIN_VISIBLE_SHARE = 0.15  # of what the object covers inside the frame


class Layer(NamedTuple):
    """One warped object, cut to the part of the frame it can touch."""

    box: tuple[int, int, int, int]
    """left, top, right, bottom in pixels."""
    pixels: np.ndarray
    """uint8 [h, w, 4], premultiplied."""


def warp_objects(
    placements: Sequence[Placement], size: tuple[int, int], cutout: Callable[[int], Pyramid]
) -> list[Layer]:
    """Warp every object into a frame of `size` (h, w); front to back, like `placements`."""
    layers = []
    for placement in placements:
        pyramid = cutout(placement.cutout)
        box = _touched(placement.matrix, pyramid.size, size)
        empty = box[0] >= box[2] or box[1] >= box[3]
        pixels = np.zeros((0, 0, 4), np.uint8) if empty else pyramid.warp(placement.matrix, box)
        layers.append(Layer((0, 0, 0, 0) if empty else box, pixels))
    return layers


def instance_mask(layers: Sequence[Layer], size: tuple[int, int]) -> np.ndarray:
    """int64 [h, w]: 1..n for the front-most object that covers at least half of the pixel, else 0."""
    mask = np.zeros(size, np.int64)
    for number in range(len(layers), 0, -1):
        (left, top, right, bottom), pixels = layers[number - 1]
        mask[top:bottom, left:right][pixels[..., 3] >= 128] = number
    return mask


def drop_hidden(layout: Layout, layers: list[Layer], size: tuple[int, int]) -> tuple[Layout, list[Layer]]:
    """Leave out objects of which next to nothing is seen; the one most in view always stays."""
    seen = np.bincount(instance_mask(layers, size).ravel(), minlength=len(layers) + 1)[1:]
    own = np.array([int((layer.pixels[..., 3] >= 128).sum()) for layer in layers])
    keep = (seen >= MIN_VISIBLE_PIXELS) & (seen >= MIN_VISIBLE_SHARE * own)
    keep[int(seen.argmax())] = True
    kept = [number for number in range(len(layers)) if keep[number]]
    placements = tuple(layout.placements[number] for number in kept)
    return replace(layout, placements=placements), [layers[number] for number in kept]


def paint(layout: Layout, layers: Sequence[Layer], size: tuple[int, int], background: Pyramid) -> np.ndarray:
    """uint8 [3, h, w]: the background faded to its contrast, the objects over it from back to front, then the light."""
    height, width = size
    canvas = _planes(background.warp(layout.background_matrix, (0, 0, width, height)))
    mean = canvas.mean(axis=(1, 2), keepdims=True)
    canvas -= mean
    canvas *= np.float32(layout.background_contrast)
    canvas += mean
    for placement, (box, pixels) in zip(reversed(layout.placements), reversed(layers), strict=True):
        left, top, right, bottom = box
        planes = _planes(pixels)
        colour, alpha = planes[:3] * _per_channel(placement.gain), planes[3:]
        region = canvas[:, top:bottom, left:right]
        region *= 1 - alpha / 255
        region += np.minimum(colour, alpha, out=colour)
    canvas *= _per_channel(layout.gain)
    canvas += _per_channel(layout.offset) + np.float32(0.5)
    return canvas.clip(0, 255, out=canvas).astype(np.uint8)


def _planes(pixels: np.ndarray) -> np.ndarray:
    """uint8 [h, w, C] as float32 [C, h, w]."""
    return pixels.transpose(2, 0, 1).astype(np.float32, order="C")


def _per_channel(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)[:, None, None]


def flow_between(
    first: np.ndarray, second: np.ndarray, motions: Sequence[Affine], camera: Affine
) -> tuple[np.ndarray, np.ndarray]:
    """Flow float32 [h, w, 2] and validity bool [h, w] between two instance masks [h, w] under known maps of the frame.

    `motions[k - 1]` moves instance k, `camera` moves instance 0.
    """
    height, width = first.shape
    y, x = np.mgrid[:height, :width] + 0.5
    maps = np.stack([camera, *motions])[first]  # [h, w, 3, 3]
    landed = maps[..., :2, 0] * x[..., None] + maps[..., :2, 1] * y[..., None] + maps[..., :2, 2]
    column, row = (np.floor(landed[..., axis]).astype(np.int64) for axis in (0, 1))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    valid = inside & (second[row.clip(0, height - 1), column.clip(0, width - 1)] == first)
    return (landed - np.stack([x, y], axis=-1)).astype(np.float32), valid


def _touched(matrix: Affine, picture: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels (left, top, right, bottom) of a frame (h, w) that a picture of (w, h) can touch under `matrix`."""
    width, height = picture
    corners = matrix @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]], dtype=float)
    low = np.floor(corners[:2].min(axis=1)).astype(int) - 1
    high = np.ceil(corners[:2].max(axis=1)).astype(int) + 1
    return (
        max(int(low[0]), 0),
        max(int(low[1]), 0),
        min(int(high[0]), frame[1]),
        min(int(high[1]), frame[0]),
    )
