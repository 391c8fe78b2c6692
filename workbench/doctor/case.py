"""What the rules look at: a config, and what a run wrote so far. Nothing here opens a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from workbench.doctor.tree import as_number, count_at, number_at

Rows = Sequence[Mapping[str, Any]]


class Curve(NamedTuple):
    """The finite values of one metric, in the order of the record."""

    steps: list[int]
    values: list[float]

    def since(self, step: float) -> Curve:
        """What stands at `step` or later."""
        kept = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if s >= step]
        return Curve([s for s, _ in kept], [v for _, v in kept])

    def until(self, step: float) -> Curve:
        """What stands at `step` or earlier."""
        kept = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if s <= step]
        return Curve([s for s, _ in kept], [v for _, v in kept])

    def newest(self, share: float) -> Curve:
        """The last `share` of the rows, at least one if there is one."""
        start = min(int(len(self.steps) * (1 - share)), max(len(self.steps) - 1, 0))
        return Curve(self.steps[start:], self.values[start:])

    @property
    def middle(self) -> float:
        """The median of the values, of which there is at least one."""
        return median(self.values)

    @property
    def span(self) -> tuple[int, int]:
        """First and last step; there is at least one."""
        return self.steps[0], self.steps[-1]


class Machine(NamedTuple):
    """Where the doctor runs."""

    versions: Mapping[str, str] = {}
    """Installed packages, by name."""
    free_bytes: int | None = None
    """On the disk that holds the run."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A config, and the record of a run if there is one. All of it may be foreign: rules read it through `tree`."""

    config: Mapping[str, Any]
    """The resolved TrainConfig as JSON; empty when it could not be read."""
    machine: Machine = field(default_factory=Machine)
    path: str = ""
    """The run's folder; empty for a config alone."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """run.json."""
    state: str = ""
    """As `Run.status`: live, ended, stopped, crashed or silent; empty for a config alone."""
    metrics: Rows = ()
    gap: int | None = None
    """Step of the first row after rows that were left out, when a record is too long to read whole."""
    evaluations: Rows = ()
    """Of the backbone that is looked at."""
    events: Rows = ()
    probe_steps: Sequence[int] = ()
    can_fork: bool = True
    """Whether it has its resume checkpoints."""
    weight_steps: Sequence[int] = ()
    """Steps at which the backbone that is looked at was saved."""
    snapshot_bytes: int = 0
    """Weights and probe features of the newest step together."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """architecture.json of that backbone; empty before it is saved."""
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """"input" in the run.json of the runs that the config names, by path, where they can be read."""
    kept: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """"loop" in the config.json of those runs, by path."""
    damaged: Mapping[str, int] = field(default_factory=dict)
    """Lines of the append-only files that are no records, by file."""
    unreadable: Sequence[str] = ()
    """What could not be read, and why."""

    @property
    def total(self) -> int | None:
        """Steps of the whole run, from the config or run.json."""
        planned = count_at(self.config, "loop.steps")
        return count_at(self.info, "steps") if planned is None else planned

    @property
    def step(self) -> int:
        """The last step that the metrics tell of."""
        return max((row["step"] for row in self.metrics[-1:]), default=0)

    @property
    def progress(self) -> float:
        """Share of the run that is done; 0 when its length is not known."""
        return self.step / self.total if self.total else 0.0

    def curve(self, name: str) -> Curve:
        """One metric of training."""
        return _curve(self.metrics, name)

    def score(self, name: str) -> Curve:
        """One metric of the evaluations."""
        return _curve(self.evaluations, name)

    def event_steps(self, kind: str) -> list[int]:
        """Steps of the events of a kind."""
        return [event["step"] for event in self.events if event.get("kind") == kind]

    @property
    def from_scratch(self) -> bool:
        """Whether the run starts with random weights."""
        start = self.config.get("start")
        return not (isinstance(start, Mapping) and (start.get("fork") or start.get("weights")))

    @property
    def self_distils(self) -> bool:
        """Whether the objective is DINO's: prototypes and an EMA teacher."""
        return number_at(self.config, "objective.dino_head.prototypes") is not None


def _curve(rows: Rows, name: str) -> Curve:
    pairs = [(row["step"], as_number(row.get(name))) for row in rows]
    return Curve([s for s, v in pairs if v is not None], [v for _, v in pairs if v is not None])
