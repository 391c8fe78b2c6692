"""Which step makes a good Gram teacher? Read from a run's evaluations and what the detector made of them. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from workbench.analysis.onset import LABELLED, OnsetConfig, Verdict, curve, smoothed


def fork_command(path: str, teacher_step: int, role: str = "") -> str:
    """One shell command that goes on with Gram anchoring from the newest resume checkpoint of the run in `path`.

    `teacher_step` of its `role` (its main one if empty) is the Gram teacher. Names are quoted.
    """
    teacher = f"run:{path}@step={teacher_step}" + (f":{role}" if role else "")
    return shlex.join(["python", "-m", "training", "fork", path, "--teacher", teacher])


def without_command(text: str) -> str:
    """The words of a detector's event without the command that older runs have at their end.

    A command out of a file would be somebody else's text in a person's shell.
    """
    return text.partition("; to fork with it:")[0]


class Candidate(NamedTuple):
    """One step that could teach."""

    step: int
    value: float
    """The deciding score there, averaged with its neighbours."""


class Advice(NamedTuple):
    """The Gram teacher that the evaluations speak for."""

    key: str
    """The score that decided."""
    best: Candidate
    runner_up: Candidate | None
    """The best step that is no neighbour of `best`; None where there is no other."""
    error: float
    """Standard error of the difference of two such values."""
    now: Candidate
    """The newest evaluation."""

    @property
    def clear(self) -> bool:
        """Whether the runner-up is worse by more than two standard errors."""
        return self.runner_up is None or self.best.value - self.runner_up.value > 2 * self.error

    def reason(self) -> str:
        """Why this step, in words: its value, that of now, and how far behind the runner-up is."""
        best, other = self.best, self.runner_up
        text = (
            f"advised Gram teacher: step {best.step} ({self.key} {best.value:.3f} averaged with its neighbours, "
            f"now {self.now.value:.3f}, standard error {self.error:.3f})"
        )
        if other is None:
            return text
        apart = f"{best.value - other.value:.3f} behind" + ("" if self.clear else ", which is no clear difference")
        return f"{text}, before step {other.step} ({apart})"


def advise(
    rows: Sequence[Mapping[str, Any]],
    verdict: Verdict,
    published: Collection[int],
    config: OnsetConfig | None = None,
) -> Advice | None:
    """The best Gram teacher among the `published` steps of the run whose evaluations are `rows`.

    The score that showed the decline decides (patch k-NN where none did): each row is averaged with its neighbours,
    because one lucky evaluation is no reason. Rows of the warm-up take no part. A published step without an evaluation
    takes no part either. None when no row is left. Source: DINOv3 section 4.2 takes an early teacher whose dense
    features are better than the present ones; that it should be the best one is this project's reading.
    """
    config = config or OnsetConfig()
    key = next((turn.key for turn in verdict.turns), next(iter(LABELLED)))
    found = curve(rows, key, config)
    candidates = [
        Candidate(step, value)
        for step, value in zip(found.steps, smoothed(found.values), strict=True)
        if step in published
    ]
    if not candidates:
        return None
    best = max(candidates, key=lambda candidate: candidate.value)
    place = found.steps.index(best.step)
    beside = set(found.steps[max(0, place - 1) : place + 2])
    others = [candidate for candidate in candidates if candidate.step not in beside]
    error = next((turn.error for turn in verdict.turns if turn.key == key), config.typical_noise)
    return Advice(
        key=key,
        best=best,
        runner_up=max(others, key=lambda candidate: candidate.value, default=None),
        error=error,
        now=Candidate(found.steps[-1], smoothed(found.values)[-1]),
    )
