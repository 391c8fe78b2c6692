"""A live, shared reader of one run: many viewers, one pass over the bytes that were appended."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from apps.events import told_event, told_parent
from apps.pictures import Pictures
from workbench.runs import Run

POLL_SECONDS = 0.4
"""At most one look at the files per this many seconds, however many viewers a run has."""
NOT_METRICS = frozenset({"step", "seconds", "backbone"})
STANDARD_ERROR = ":se"
"""The series "KEY:se" holds the standard errors of the series "KEY"."""


@dataclass(frozen=True)
class Cursor:
    """How far a viewer has read. Another `generation` (records were cut, the run was made anew) means: read all."""

    generation: int = 0
    row: int = 0
    event: int = 0

    def __str__(self) -> str:
        return f"{self.generation}.{self.row}.{self.event}"

    @classmethod
    def parse(cls, text: str | None) -> Cursor:
        """The cursor written by `str`; the start when the text is absent or malformed."""
        parts = (text or "").split(".")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 16 for part in parts):
            return cls()
        return cls(*map(int, parts))


@dataclass
class Series:
    """One metric: step, training seconds and value of every record, and the number of the row each came from."""

    row: array = field(default_factory=lambda: array("q"))
    step: array = field(default_factory=lambda: array("q"))
    seconds: array = field(default_factory=lambda: array("d"))
    value: array = field(default_factory=lambda: array("d"))

    def kept(self, first_row: int = 0, points: int | None = None) -> Sequence[int]:
        """Places of the records from row `first_row` on, thinned to about `points` of them."""
        start = bisect_left(self.row, first_row)
        if points is not None and len(self.row) - start > points:
            return thin(self.value, start, points)
        return range(start, len(self.row))

    def columns(self, kept: Sequence[int] | None = None) -> dict[str, list]:
        """{"step", "seconds", "value"} of the records at the places `kept`, all when None."""
        kept = range(len(self.row)) if kept is None else kept
        return {
            "step": [self.step[i] for i in kept],
            "seconds": [_finite(self.seconds[i]) for i in kept],
            "value": [_finite(self.value[i]) for i in kept],
        }


def thin(values: array, start: int, points: int) -> list[int]:
    """Indices of about `points` of `values[start:]`: first, last, and the least and greatest of even buckets.

    Spikes stay visible, which a plain stride would lose. Values that are no numbers stay only at the ends.
    """
    end = len(values)
    buckets = max(1, (points - 2) // 2)
    edges = [start + (end - start) * k // buckets for k in range(buckets + 1)]
    kept = {start, end - 1}
    for left, right in itertools.pairwise(edges):
        inside = [i for i in range(left, right) if not math.isnan(values[i])]
        if inside:
            kept.update((min(inside, key=values.__getitem__), max(inside, key=values.__getitem__)))
    return sorted(kept)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


class RunFeed:
    """Follows the append-only files of a run by byte offset and keeps them as columns.

    `refresh` may be called from any thread. Raises what `Run` raises when the folder is gone (FileNotFoundError) or
    unreadable (ValueError).
    """

    def __init__(self, path: Path, identity: str, version: str) -> None:
        self.path, self.identity, self.version = path, identity, version
        self.run = Run(path)
        self.pictures = Pictures()
        self._lock = Lock()
        self._turn = asyncio.Lock()
        self._looked = -math.inf
        # the time in milliseconds: no cursor of an earlier server process fits
        self._restart(generation=time.time_ns() // 1_000_000)

    def _restart(self, generation: int) -> None:
        self.generation = generation
        self.series: dict[str, Series] = {}
        self.events: list[dict[str, Any]] = []
        self.steps: list[int] = []
        self.status = ""
        self._rows = 0
        self._last_step = -1
        self._bytes = {"metrics": 0, "evaluations": 0, "events": 0}

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.generation, self._rows, len(self.events))

    async def follow(self) -> None:
        """`refresh` in a worker thread, at most once per POLL_SECONDS for all viewers together."""
        async with self._turn:
            if time.monotonic() - self._looked >= POLL_SECONDS:
                await asyncio.to_thread(self.refresh)
                self._looked = time.monotonic()

    def refresh(self) -> None:
        """Reads what was appended since the last call."""
        with self._lock:
            self.run = Run(self.path)
            try:
                if not self._read_on():
                    self._restart(self.generation + 1)
                    self._read_on()
            except Exception:  # some of the new records may count as read: the next look reads all again
                self._restart(self.generation + 1)
                raise
            self.steps = self.run.probe_steps()
            self.status = self.run.status()

    def _read_on(self) -> bool:
        """Takes new records; False when a resumed writer cut what was read, so that all must be read again."""
        metrics, evaluations, events = (self._new(name) for name in ("metrics", "evaluations", "events"))
        if metrics is None or evaluations is None or events is None:
            return False
        if metrics and metrics[0]["step"] <= self._last_step:
            return False
        for row in metrics:
            self._add(row, prefix="")
        self._last_step = metrics[-1]["step"] if metrics else self._last_step
        main = self.run.main_role  # its evaluations keep their plain names, those of others get the backbone's
        for row in evaluations:
            backbone = str(row.get("backbone", main))
            self._add(row, prefix="" if backbone == main else f"{backbone}/")
        source = str(self.run.path) if self.run.can_fork else None
        self.events.extend(told_event(row, source) for row in events)
        return True

    def _new(self, name: str) -> list[dict[str, Any]] | None:
        start = self._bytes[name]
        rows, self._bytes[name] = getattr(self.run, name)(start)
        return rows if self._bytes[name] >= start else None

    def _add(self, row: dict[str, Any], prefix: str) -> None:
        seconds = _number(row.get("seconds"))
        for name, value in row.items():
            if name in NOT_METRICS or not (value is None or isinstance(value, int | float)):
                continue
            series = self.series.setdefault(prefix + name, Series())
            series.row.append(self._rows)
            series.step.append(row["step"])
            series.seconds.append(seconds)
            series.value.append(_number(value))
        self._rows += 1

    # -- what viewers are told -----------------------------------------------------------------------------------------
    def about(self) -> dict[str, Any]:
        """The run in small: identity, name, phase, status, steps done and planned, age of the last record."""
        info, planned = self.run.info, self.run.info.get("steps")
        return {
            "id": self.identity,
            "name": self.run.name,
            "phase": str(info.get("phase") or ""),
            "status": self.status,
            "version": self.version,
            "backbone": self.run.main_role,
            "parent": told_parent(self.run.parent),
            "step": max(self._last_step, 0),
            "steps": planned if isinstance(planned, int) else None,
            "age": self.run.age(),
        }

    def state(self) -> tuple:
        """What a viewer must be told about besides new records."""
        return self.status, tuple(self.steps)

    def series_columns(self, first_row: int = 0, points: int | None = None) -> dict[str, dict[str, list]]:
        """{name: {"step", "seconds", "value"}} of the records from row `first_row` on; empty series are left out."""
        columns = {
            name: series.columns(self._kept(name, series, first_row, points)) for name, series in self.series.items()
        }
        return {name: column for name, column in columns.items() if column["step"]}

    def _kept(self, name: str, series: Series, first_row: int, points: int | None) -> Sequence[int]:
        """A standard error goes with the records of its metric that are kept, so that each value has its own."""
        kept = series.kept(first_row, points)
        base = self.series.get(name.removesuffix(STANDARD_ERROR)) if name.endswith(STANDARD_ERROR) else None
        if base is None or isinstance(kept, range):
            return kept
        rows = {base.row[place] for place in base.kept(first_row, points)}
        return [place for place, row in enumerate(series.row) if row in rows]

    def curves(self, points: int) -> dict[str, Any]:
        """All series, thinned to about `points` records each, and the cursor of the same moment."""
        with self._lock:
            return {"series": self.series_columns(points=points), "cursor": str(self.cursor)}

    def values(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of every record of one series, values that are no numbers left out."""
        with self._lock:
            series = self.series.get(name, Series())
            pairs = zip(series.step, series.value, strict=True)
            return [(step, value) for step, value in pairs if math.isfinite(value)]

    def summary(self, points: int) -> dict[str, Any]:
        """All a page needs but arrays; series thinned to about `points` records each."""
        with self._lock:
            return {
                "run": self.about(),
                "probes": self.pictures.about(self.run, self.steps),
                "steps": self.steps,
                "series": self.series_columns(points=points),
                "events": self.events,
                "cursor": str(self.cursor),
            }

    def delta(self, seen: Cursor) -> tuple[Cursor, str]:
        """(cursor to go on from, what came after `seen` as JSON text on one line), both of the same moment.

        The text is {"reset": true} with that cursor when `seen` is of another generation.
        """
        with self._lock:
            return self.cursor, self._since(seen)

    def _since(self, seen: Cursor) -> str:
        if seen.generation != self.generation or seen.row > self._rows or seen.event > len(self.events):
            return json.dumps({"reset": True, "cursor": str(self.cursor)})
        return json.dumps(
            {
                "cursor": str(self.cursor),
                "run": self.about(),
                "steps": self.steps,
                "probes": self.pictures.about(self.run, self.steps),
                "series": self.series_columns(first_row=seen.row),
                "events": self.events[seen.event :],
            }
        )


def _number(value: Any) -> float:
    """`value` as a float; anything that is no number is not-a-number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
