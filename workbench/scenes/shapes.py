"""Outlines of the shapes that the built-in library cuts photographs into."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

_SUPERSAMPLING = 4


def shape_alpha(shape: str, side: int, variant: int = 0) -> np.ndarray:
    """Anti-aliased coverage uint8 [side, side] of a shape of `SHAPES`; `variant` picks the outline of a blob."""
    if shape not in SHAPES:
        raise ValueError(f"No shape {shape!r}. Shapes: {', '.join(SHAPES)}.")
    outer, *holes = SHAPES[shape][1](variant)
    big = side * _SUPERSAMPLING
    canvas = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(canvas)
    draw.polygon(_scaled(outer, big), fill=255)
    for hole in holes:
        draw.polygon(_scaled(hole, big), fill=0)
    return np.array(canvas.resize((side, side), Image.Resampling.BOX))


def _scaled(points: np.ndarray, side: int) -> list[tuple[float, float]]:
    """Points [n, 2] (x, y) in [-1, 1], y downwards, as pixels."""
    return [(float(x), float(y)) for x, y in (points + 1) / 2 * (side - 1)]


def _polar(radius: Callable[[np.ndarray], np.ndarray], count: int = 240) -> np.ndarray:
    angle = np.arange(count) * (2 * np.pi / count)
    return np.stack([np.sin(angle), -np.cos(angle)], axis=1) * radius(angle)[:, None]


def _circle(radius: float) -> np.ndarray:
    return _polar(lambda angle: np.full_like(angle, radius))


def _disk(variant: int) -> list[np.ndarray]:
    return [_circle(1.0)]


def _ring(variant: int) -> list[np.ndarray]:
    return [_circle(1.0), _circle(0.5)]


def _triangle(variant: int) -> list[np.ndarray]:
    return [np.array([(0, -0.9), (1, 0.85), (-1, 0.85)])]


def _square(variant: int) -> list[np.ndarray]:
    return [np.array([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)])]


def _star(variant: int) -> list[np.ndarray]:
    angle = np.arange(10) * (np.pi / 5)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    return [np.stack([np.sin(angle) * radius, -np.cos(angle) * radius], axis=1)]


def _cross(variant: int) -> list[np.ndarray]:
    quarter = np.array([(-0.36, -1.0), (0.36, -1.0), (0.36, -0.36)])
    turn = np.array([(0.0, -1.0), (1.0, 0.0)])  # a quarter turn
    return [np.concatenate([quarter @ np.linalg.matrix_power(turn, k).T for k in range(4)])]


def _crescent(variant: int) -> list[np.ndarray]:
    return [_circle(1.0), _circle(0.85) + np.array([0.5, 0.0])]


def _heart(variant: int) -> list[np.ndarray]:
    t = np.arange(200) * (2 * np.pi / 200)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
    return [np.stack([x, y * 0.95 - 0.08], axis=1)]


def _arrow(variant: int) -> list[np.ndarray]:
    return [np.array([(-1, -0.32), (0.1, -0.32), (0.1, -0.85), (1, 0), (0.1, 0.85), (0.1, 0.32), (-1, 0.32)])]


def _blob(variant: int) -> list[np.ndarray]:
    rng = np.random.default_rng([20, variant])
    waves = list(zip((2, 3, 5), (0.16, 0.14, 0.08), rng.uniform(0, 2 * np.pi, 3), strict=True))

    def radius(angle: np.ndarray) -> np.ndarray:
        return 0.62 + np.sum([height * np.cos(k * angle + phase) for k, height, phase in waves], axis=0)

    return [_polar(radius)]


SHAPES: dict[str, tuple[str, Callable[[int], list[np.ndarray]]]] = {
    "arrow": ("箭头", _arrow),
    "blob": ("斑块", _blob),
    "crescent": ("月牙", _crescent),
    "cross": ("十字", _cross),
    "disk": ("圆盘", _disk),
    "heart": ("心形", _heart),
    "ring": ("圆环", _ring),
    "square": ("方块", _square),
    "star": ("星形", _star),
    "triangle": ("三角形", _triangle),
}
"""name -> (Chinese name, outline function: variant -> [outer points [n, 2], hole points [m, 2]…])."""
