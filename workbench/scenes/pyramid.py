"""Pictures resampled under affine maps, and a bounded cache of them.

Coordinates are continuous pixels (x to the right, y downwards): the centre of the top-left pixel is (0.5, 0.5).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from PIL import Image

Affine = np.ndarray
"""float64 [3, 3], maps column vectors (x, y, 1)."""


class Pyramid:
    """One picture and its halvings, each with a transparent or repeated border of one pixel.

    Resampling from the level next above the wanted scale keeps bilinear interpolation free of aliasing.
    """

    def __init__(self, image: Image.Image) -> None:
        """`image`: mode RGB, or RGBa (premultiplied alpha)."""
        self.size = image.size  # (w, h) of level 0, pixels
        self._levels: list[Image.Image] = []
        while True:
            self._levels.append(_bordered(image))
            if min(image.size) < 8:
                break
            half = ((image.width + 1) // 2, (image.height + 1) // 2)
            image = image.resize(half, Image.Resampling.BOX)

    @property
    def nbytes(self) -> int:
        return sum(level.width * level.height * 4 for level in self._levels)

    def warp(self, matrix: Affine, box: tuple[int, int, int, int]) -> np.ndarray:
        """Pixels uint8 [h, w, C] of the frame's `box` (left, top, right, bottom); `matrix` maps picture to frame."""
        scale = math.sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
        wanted = math.floor(math.log2(1 / scale) + 1e-6) if scale < 1 else 0
        level = self._levels[min(wanted, len(self._levels) - 1)]
        left, top, right, bottom = box
        to_level = np.diag([(level.width - 2) / self.size[0], (level.height - 2) / self.size[1], 1.0])
        to_level[:2, 2] = 1.0
        a = to_level @ np.linalg.inv(matrix) @ translation(left, top)
        size = (right - left, bottom - top)
        coefficients = tuple(float(value) for value in a[:2].ravel())
        return np.asarray(level.transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR))


class PyramidCache:
    """Least recently used pyramids, bounded in bytes. Pickles as empty: each worker fills its own."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._held: OrderedDict[str, Pyramid] = OrderedDict()
        self._bytes = 0

    def get(self, key: str, make: Callable[[], Pyramid]) -> Pyramid:
        """The pyramid called `key`, made now if it is not held."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        pyramid = self._held[key] = make()
        self._bytes += pyramid.nbytes
        while self._bytes > self.limit_bytes and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return pyramid

    @property
    def nbytes(self) -> int:
        return self._bytes

    def __reduce__(self) -> tuple[type[PyramidCache], tuple[int]]:
        return PyramidCache, (self.limit_bytes,)


def cutout_pyramid(rgba: np.ndarray, longest_side: int) -> Pyramid:
    """Pyramid of uint8 [h, w, 4] (straight alpha), cropped to what is visible, at most `longest_side` pixels long."""
    rows = np.flatnonzero((rgba[..., 3] >= 16).any(axis=1))
    columns = np.flatnonzero((rgba[..., 3] >= 16).any(axis=0))
    if not rows.size:
        raise ValueError("A cut-out is wholly transparent. Remove it from the library.")
    tight = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(np.ascontiguousarray(tight)).convert("RGBa")
    return Pyramid(_limited(image, longest_side / max(image.size)))


def background_pyramid(rgb: np.ndarray, short_side: int) -> Pyramid:
    """Pyramid of uint8 [h, w, 3], its short side at most `short_side` pixels."""
    image = Image.fromarray(rgb)
    return Pyramid(_limited(image, short_side / min(image.size)))


def translation(x: float, y: float) -> Affine:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def similarity(scale: float, degrees: float, *, flip: bool = False) -> Affine:
    """Scale, rotation (clockwise as seen), and a left-right flip applied first; about the origin."""
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    sign = -1.0 if flip else 1.0
    return np.array([[c * sign, -s, 0.0], [s * sign, c, 0.0], [0.0, 0.0, 1.0]])


def _limited(image: Image.Image, scale: float) -> Image.Image:
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX, reducing_gap=None)


def _bordered(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if image.mode == "RGB":
        return Image.fromarray(np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge"))
    bordered = Image.new(image.mode, (image.width + 2, image.height + 2))
    bordered.paste(image, (1, 1))
    return bordered
