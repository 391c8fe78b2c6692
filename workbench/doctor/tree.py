"""Numbers and words out of JSON that nobody vouches for: a value of another kind reads as absent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LARGEST = 1e15
"""A number beyond it, either way, is no setting of a training and reads as absent."""


def value_at(tree: Any, path: str) -> Any:
    """What stands at a dotted path, None where the path leads nowhere."""
    for key in path.split("."):
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def as_number(value: Any) -> float | None:
    """A finite number of sane size, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return None
    return float(value)


def number_at(tree: Any, path: str) -> float | None:
    """The number at `path`."""
    return as_number(value_at(tree, path))


def count_at(tree: Any, path: str) -> int | None:
    """The whole number of at least 0 at `path`."""
    value = number_at(tree, path)
    return int(value) if value is not None and value >= 0 and value == int(value) else None


def text_at(tree: Any, path: str) -> str:
    """The text at `path`, empty where there is none."""
    value = value_at(tree, path)
    return value if isinstance(value, str) else ""


def numbers_at(tree: Any, path: str, count: int) -> tuple[float, ...] | None:
    """`count` numbers at `path`."""
    value = value_at(tree, path)
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    found = [as_number(each) for each in value]
    return None if None in found else tuple(each for each in found if each is not None)


def steps_at(tree: Any, path: str, total: int | None) -> int | None:
    """A number of steps at `path`; a fraction (strictly between 0 and 1) is one of `total` steps."""
    value = number_at(tree, path)
    if value is None or value < 0:
        return None
    if 0 < value < 1:
        return None if total is None else round(value * total)
    return math.floor(value)


def schedule_levels(tree: Any, path: str) -> tuple[float, ...]:
    """The levels between which a schedule's values lie: its peak, `start` if it warms up, `end`; a bare number is one.

    Empty where there is no schedule.
    """
    constant = number_at(tree, path)
    if constant is not None:
        return (constant,)
    peak = number_at(tree, f"{path}.peak")
    if peak is None:
        return ()
    start = number_at(tree, f"{path}.start") if number_at(tree, f"{path}.warmup_steps") else None
    return tuple(level for level in (peak, start, number_at(tree, f"{path}.end")) if level is not None)
