"""What the run doctor says about a run, in the words of the page's routes: bounded, plain text, both languages."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from threading import Lock
from typing import Any

from apps.events import is_step
from apps.feed import RunFeed
from workbench.runs import Run

SECONDS_BETWEEN = 5.0
"""A growing run is examined at most once per this many seconds, however many viewers it has."""
MOST_LOOKED_AT = 2000
MOST_FINDINGS = 100
"""Findings that are sorted, and of these that travel, gravest first."""
MOST_STEPS = 50
LEVELS = ("error", "warn", "info", "fine")
"""From the gravest on; "fine" is said of what looks alarming and is not."""
LENGTHS = {"rule": 100, "metric": 200, "source": 500}
"""Characters of each plain field that travel; a text in two languages has WORDS."""
WORDS = 2000


def examine(run: Run) -> Iterable[Any]:
    """The findings of the run doctor. Imported here, so that a page that nobody asks for findings never loads it."""
    from workbench.doctor import examine as look

    return look(run)


def told_finding(finding: Any) -> dict[str, Any]:
    """One finding as JSON: rule, level, title, text and fix as {"en", "zh"}, metric, steps, source."""
    level = str(getattr(finding, "level", "info"))
    steps = [step for step in list(getattr(finding, "steps", None) or ())[:MOST_STEPS] if is_step(step)]
    return {
        "level": level if level in LEVELS else "info",
        **{name: str(getattr(finding, name, None) or "")[:most] for name, most in LENGTHS.items()},
        **{name: _both(getattr(finding, name, None)) for name in ("title", "text", "fix")},
        "steps": steps,
    }


def _both(words: Any) -> dict[str, str]:
    if not isinstance(words, dict):
        words = {"en": words}
    english = str(words.get("en") or "")[:WORDS]
    return {"en": english, "zh": str(words.get("zh") or "")[:WORDS] or english}


class FindingsCache:
    """The findings of each run, made anew when its records changed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[str, tuple[tuple, float, dict[str, Any]]] = {}

    def of(self, feed: RunFeed) -> dict[str, Any]:
        """{"findings": [...]}, errors first. Raises ValueError when the doctor itself fails on this run."""
        state = (feed.version, feed.cursor, feed.status)
        with self._lock:
            known = self._kept.get(feed.identity)
            now = time.monotonic()
            if known and known[0][0] == feed.version and (known[0] == state or now - known[1] < SECONDS_BETWEEN):
                return known[2]
            answer = {"findings": self._examined(feed.run)}
            self._kept[feed.identity] = state, now, answer
            return answer

    def _examined(self, run: Run) -> list[dict[str, Any]]:
        try:
            found = [told_finding(finding) for finding in islice(examine(run), MOST_LOOKED_AT)]
        except Exception as error:  # a rule that fails on an odd run must not take the page with it
            raise ValueError(f"the run doctor failed on this run: {type(error).__name__}: {error}") from error
        return sorted(found, key=lambda finding: LEVELS.index(finding["level"]))[:MOST_FINDINGS]
