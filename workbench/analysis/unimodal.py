"""Least-squares fits of a rise, and of a rise followed by a fall. Plain numbers in time order.

Source: Stout 2008, "Unimodal regression via prefix isotonic regression", Computational Statistics & Data Analysis 53:
one pass of pool-adjacent-violators gives the error of the isotonic fit of every prefix, so all peaks cost O(n).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Unimodal(NamedTuple):
    """The best fit that rises, then falls."""

    fitted: list[float]
    """n values: not falling up to the peak, not rising after it."""
    gain: float
    """Squared error of the best fit that never falls, minus that of this one; 0 where a rise alone fits as well."""


def isotonic(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The best non-falling fit of n `values`, and for k = 0..n the squared error of the best one of the first k."""
    blocks: list[tuple[float, int, float]] = []  # mean, rows, squared error of the row and of all blocks before it
    errors = [0.0]
    for value in values:
        mean, rows, spread = value, 1, 0.0
        while blocks and blocks[-1][0] >= mean:
            other, count, _, inside = (*blocks[-1][:2], 0.0, _inside(blocks))
            spread += inside + (mean - other) ** 2 * rows * count / (rows + count)
            mean, rows = (mean * rows + other * count) / (rows + count), rows + count
            blocks.pop()
        blocks.append((mean, rows, (blocks[-1][2] if blocks else 0.0) + spread))
        errors.append(blocks[-1][2])
    return [mean for mean, rows, _ in blocks for _ in range(rows)], errors


def _inside(blocks: list[tuple[float, int, float]]) -> float:
    """Squared error inside the last block alone."""
    return blocks[-1][2] - (blocks[-2][2] if len(blocks) > 1 else 0.0)


def unimodal(values: Sequence[float]) -> Unimodal:
    """The best unimodal fit of `values` (at least one); of peaks that fit equally well, the latest."""
    count = len(values)
    rise, before = isotonic(values)
    _, after = isotonic(values[::-1])
    costs = [before[k] + after[count - k] for k in range(count + 1)]  # k values rise, the others fall
    k = min(range(count, 0, -1), key=lambda k: costs[k])
    if costs[k] >= before[count] - 1e-12:
        return Unimodal(rise, 0.0)
    left, right = isotonic(values[:k])[0], isotonic(values[k:][::-1])[0][::-1]
    return Unimodal(left + right, before[count] - costs[k])
