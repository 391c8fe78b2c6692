"""The renderer's two colour maps for pictures made without a browser: the same 256 colours, byte for byte."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def _linear_from_oklch(lightness: float, chroma: float, degrees: float) -> tuple[float, float, float]:
    """Linear sRGB; the matrices are those of OKLab (Ottosson 2020)."""
    a, b = chroma * math.cos(math.radians(degrees)), chroma * math.sin(math.radians(degrees))
    l_ = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    m_ = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s_ = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3
    return (
        4.0767416621 * l_ - 3.3077115913 * m_ + 0.2309699292 * s_,
        -1.2684380046 * l_ + 2.6097574011 * m_ - 0.3413193965 * s_,
        -0.0041960863 * l_ - 0.7034186147 * m_ + 1.707614701 * s_,
    )


def _srgb(lightness: float, chroma: float, degrees: float) -> list[int]:
    """8-bit sRGB of an OKLCh colour, chroma lowered until it lies inside the gamut."""
    linear, lowered = _linear_from_oklch(lightness, chroma, degrees), chroma
    while lowered > 0 and any(value < -1e-4 or value > 1.0001 for value in linear):
        linear = _linear_from_oklch(lightness, max(lowered, 0), degrees)
        lowered -= 0.004
    inside = [min(1.0, max(0.0, value)) for value in linear]
    curved = [12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055 for x in inside]
    return [math.floor(255 * x + 0.5) for x in curved]


def _table(colour: Callable[[float], list[int]]) -> np.ndarray:
    return np.array([colour(i / 255) for i in range(256)], dtype=np.uint8)


SEQUENTIAL = _table(lambda t: _srgb(0.14 + 0.82 * t, 0.04 + 0.145 * math.sin(math.pi * t**0.9), 285 + 165 * t))
"""uint8 [256, 3]: even steps of lightness from near black through violet and red to pale yellow."""
DIVERGING = _table(lambda t: _srgb(0.96 - 0.92 * abs(t - 0.5), 0.3 * abs(t - 0.5), 250 if t < 0.5 else 50))
"""uint8 [256, 3]: blue below the middle, orange above it, a neutral middle."""


def colour(values: np.ndarray, low: float, high: float, table: np.ndarray = SEQUENTIAL) -> np.ndarray:
    """Colours uint8 [..., 3] of `values` [...], linear from `low` to `high`, cut off outside; NaN takes the lowest."""
    if not high > low:
        raise ValueError(f"a colour range needs low below high, got {low} and {high}.")
    scaled = np.nan_to_num((np.asarray(values, dtype=np.float64) - low) * (255 / (high - low)))
    return table[(scaled.clip(0, 255) + 0.5).astype(np.int64).clip(0, 255)]
