"""Rows handled at once, so that several passes over wide rows find them in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

CACHED = {"cpu": 2**18, "cuda": 2**25}
"""Entries for elementwise work: a CPU core's second-level cache holds them, a GPU has enough to do."""

MULTIPLIED = {"cpu": 2**23, "cuda": 2**26}
"""Entries of a matrix product that is made, used and thrown away: large enough to multiply at full speed."""


def row_slices(rows: int, columns: int, device: torch.device, entries: dict[str, int]) -> Iterator[slice]:
    """Slices that cover `rows` rows of `columns` entries each, about `entries` (by device type) in one."""
    step = max(1, entries.get(device.type, 2**24) // max(1, columns))
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))
