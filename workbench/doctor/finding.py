"""What the doctor says: findings, and the rules that make them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from workbench.doctor.case import Case

Level = Literal["error", "warn", "info", "fine"]
LEVELS: tuple[Level, ...] = ("error", "warn", "info", "fine")
"""From the gravest on. "fine" is said of what looks alarming and is not."""
LONGEST_TEXT = 120
"""Characters of foreign text in a finding at most."""


def both(en: str, zh: str) -> dict[str, str]:
    """A text in both languages."""
    return {"en": en, "zh": zh}


def printable(text: object) -> str:
    """Foreign text on one line, without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def plain(text: object) -> str:
    """`printable`, cut at LONGEST_TEXT characters."""
    words = printable(str(text)[: 2 * LONGEST_TEXT])
    return words if len(words) <= LONGEST_TEXT else words[: LONGEST_TEXT - 1] + "…"


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def flag(field: str, value: object) -> str:
    """The option of `python -m training` that sets `field` of the config."""
    words = (number(value) if isinstance(value, float) else str(value),)
    words = tuple(str(each) for each in value) if isinstance(value, tuple | list) else words
    return " ".join((f"--{field.replace('_', '-')}", *words))


def run_spec(path: str | Path, step: int) -> str:
    """run:PATH@step=N as one word of a shell command."""
    return shlex.quote(f"run:{printable(path)}@step={step}")


class Source(NamedTuple):
    """Where a rule comes from."""

    title: str
    """Of the thread, or paper and section."""
    url: str | None = None

    def __str__(self) -> str:
        return self.url or self.title


class Note(NamedTuple):
    """What a rule saw in one case."""

    level: Level
    text: dict[str, str]
    """The evidence in words and numbers, by language."""
    fix: dict[str, str]
    """What to do, with the exact option or command, by language."""
    metric: str | None = None
    """The curve that shows it: a key of metrics.jsonl or evaluations.jsonl."""
    steps: tuple[int, int] | None = None
    """First and last step that it was seen at."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing the doctor looks for."""

    name: str
    title: dict[str, str]
    source: Source
    check: Callable[[Case], Iterable[Note]]
    """Pure, and never raises: a value of another kind than expected reads as absent."""


def rule(name: str, en: str, zh: str, source: Source, check: Callable[[Case], Iterable[Note]]) -> Rule:
    """A rule whose title is `en` in English and `zh` in Chinese."""
    return Rule(name=name, title=both(en, zh), source=source, check=check)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing the doctor found. Texts are plain words: show them, never interpret them."""

    rule: str
    level: Level
    title: dict[str, str]
    """By language: "en", "zh"."""
    text: dict[str, str]
    fix: dict[str, str]
    metric: str | None = None
    steps: tuple[int, int] | None = None
    source: str
    """URL of the thread it was learned from, or paper and section."""
