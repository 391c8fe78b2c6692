"""Findings on a terminal: evidence, the curve in one line, what to do, where it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from rich.console import Console
from rich.text import Text

from workbench.doctor import RULES, diagnose
from workbench.doctor.case import Case, Curve
from workbench.doctor.finding import LEVELS, Finding, both, number, plain, printable
from workbench.doctor.read import case_at

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
WIDTH = 32
"""Characters of a curve."""
_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {"error": "bold red", "warn": "yellow", "info": "cyan", "fine": "green"}
_WORDS = {
    "error": both("error", "错误"),
    "warn": both("warning", "警告"),
    "info": both("note", "提示"),
    "fine": both("fine", "无妨"),
}
_FIX, _FROM = both("do", "处理"), both("from", "来源")


def doctor(place: str, language: Language = "en") -> int:
    """Print what the doctor finds at `place`: a run's folder, a config.json, or "-" for a config on standard input.

    The exit code: 0 when nothing is graver than a note, 1 when there is a warning or an error. Raises ValueError, in
    one line, when there is neither run nor config.
    """
    case = case_at(place)
    found = diagnose(case)
    console = Console()
    for finding in found:
        _print(console, case, finding, language)
    console.print(Text(_summary(case, found, language), style="bold"))
    return 1 if any(finding.level in ("error", "warn") for finding in found) else 0


def _print(console: Console, case: Case, finding: Finding, language: Language) -> None:
    head = Text(f"{_WORDS[finding.level][language]}: {finding.title[language]}", style=_STYLES[finding.level])
    console.print(head.append(f"  [{finding.rule}]", style="dim"))
    _line(console, finding.text[language])
    if picture := _picture(case, finding):
        _line(console, picture)
    _line(console, f"{_FIX[language]}: {finding.fix[language]}")
    titles = {rule.name: rule.source.title for rule in RULES}
    url = f" · {finding.source}" if finding.source.startswith("https://") else ""
    _line(console, f"{_FROM[language]}: {titles[finding.rule]}{url}", style="dim")
    console.print()


def _line(console: Console, words: str, style: str = "") -> None:
    """Whole, whatever the width of the terminal: a command that wraps cannot be copied."""
    console.print(Text(f"  {printable(words)}", style=style), soft_wrap=True)


def _picture(case: Case, finding: Finding) -> str:
    """The finding's curve in one line, with its ends and the steps that the finding is about."""
    if finding.metric is None:
        return ""
    curve = case.curve(finding.metric)
    curve = curve if curve.steps else case.score(finding.metric)
    if len(curve.steps) < 2:
        return ""
    about = f" · {finding.steps[0]}-{finding.steps[1]}" if finding.steps else ""
    ends = f"{number(curve.values[0])} → {number(curve.values[-1])}, {curve.steps[0]}-{curve.steps[-1]}"
    return f"{finding.metric} {sparkline(curve)} {ends}{about}"


def sparkline(curve: Curve, width: int = WIDTH) -> str:
    """The values as bars, lowest to highest; a longer curve is sampled at even distances, its ends included."""
    count = min(width, len(curve.values))
    rows = [round(i * (len(curve.values) - 1) / max(count - 1, 1)) for i in range(count)]
    values = [curve.values[row] for row in rows]
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] for value in values)


def _summary(case: Case, found: Sequence[Finding], language: Language) -> str:
    counts = Counter(finding.level for finding in found)
    said = ", ".join(f"{counts[level]} × {_WORDS[level][language]}" for level in LEVELS if counts[level])
    nothing = both("nothing found", "没有发现问题")[language]
    what = plain(case.path) if case.path else both("config", "配置")[language]
    step = f" · {case.step} / {case.total or '?'} · {case.state}" if case.path else ""
    return f"{what}{step}: {said or nothing} ({len(RULES)} {both('rules', '条规则')[language]})"
