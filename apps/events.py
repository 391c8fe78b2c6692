"""Events of a run as a page is told them: known fields only, of known kinds and sizes."""

from __future__ import annotations

from typing import Any

from workbench.analysis.advice import fork_command, without_command

TEXTS = {"level": 20, "kind": 100, "text": 2000, "time": 40, "series": 200}
"""Fields that are text, and how many characters of each travel."""
REQUIRED_TEXTS = ("level", "kind", "text", "time")
STEPS = ("peak_step", "since", "advised_step")
"""Fields that are steps: of the peak, of the decline's start, and of the advised Gram teacher."""
MAX_STEP = 2**53


def told_event(row: dict[str, Any], path: str | None) -> dict[str, Any]:
    """{"step", "level", "kind", "text", "time"} of a row of events.jsonl, and what a detector added, where valid.

    A detector's fields: `peak_step`, `since`, `advised_step` (whole numbers from 0), `confidence` (0 to 1) and `series`
    (the metric it speaks of). With an advised step comes `command`, the fork it advises, made here for the run in
    `path`: a command in the file would be somebody else's text in a person's shell, and does not travel. None where
    `path` is None, because the run has nothing to fork from.
    """
    event = {"step": row["step"], **{name: str(row.get(name, ""))[: TEXTS[name]] for name in REQUIRED_TEXTS}}
    event["text"] = without_command(event["text"])
    if isinstance(series := row.get("series"), str) and series:
        event["series"] = series[: TEXTS["series"]]
    for name in STEPS:
        if is_step(value := row.get(name)):
            event[name] = value
    if "advised_step" in event and path is not None:
        event["command"] = fork_command(path, event["advised_step"])
    confidence = row.get("confidence")
    if isinstance(confidence, int | float) and not isinstance(confidence, bool) and 0 <= confidence <= 1:
        event["confidence"] = confidence
    return event


def told_parent(parent: Any) -> dict[str, Any] | None:
    """{"run": name, "step": int} of the run another was forked from, or None when `parent` says nothing of the kind."""
    if not isinstance(parent, dict) or not isinstance(name := parent.get("run"), str) or not name:
        return None
    step = parent.get("step")
    return {"run": name[:200].encode("utf-8", "replace").decode(), "step": step} if is_step(step) else None


def is_step(value: Any) -> bool:
    """Whether `value` is a whole number from 0 that a browser can hold exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_STEP
