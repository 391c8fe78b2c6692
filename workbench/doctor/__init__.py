"""The run doctor: what is wrong with a config before it runs, or with a run while it runs, and what only looks so.

`examine(run)` is what a page calls every few seconds; `diagnose(case)` is the same without a file. Each rule is a
pure function of a `Case` (case.py) in a file named after its theme; `read.py` alone opens files. docs/doctor.md lists
the rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from workbench.doctor import (
    batch,
    calm,
    collapse,
    crops,
    dense,
    environment,
    gram,
    history,
    schedules,
    stability,
)
from workbench.doctor.case import Case
from workbench.doctor.finding import LEVELS, LONGEST_TEXT, Finding, Note, Rule, both, plain
from workbench.doctor.read import config_case, run_case
from workbench.runs import Run

__all__ = ["LEVELS", "RULES", "THEMES", "Case", "Finding", "Rule", "config_case", "diagnose", "examine", "run_case"]

THEMES = (environment, batch, crops, schedules, gram, collapse, stability, history, dense, calm)
RULES: tuple[Rule, ...] = tuple(rule for theme in THEMES for rule in theme.RULES)
MOST_NOTES = 5
"""Findings of one rule at most."""


def examine(run: Run) -> list[Finding]:
    """What the doctor finds in `run`, gravest first. Never raises for what stands in the run's folder.

    Reads some MiB at most, nothing outside the folder, and remembers nothing: some tens of milliseconds a call.
    """
    return diagnose(run_case(run))


def diagnose(case: Case) -> list[Finding]:
    """What the rules find in `case`, gravest first, in the order of RULES among equals."""
    found = [finding for rule in RULES for finding in findings(rule, case)]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def findings(rule: Rule, case: Case) -> Iterator[Finding]:
    """What one rule finds. A rule that breaks on a foreign record says so instead of taking the page down."""
    try:
        notes = list(islice(rule.check(case), MOST_NOTES))
    except Exception as error:  # whatever a hostile record brings about: a page that watches runs goes on
        notes = [_broken(error)]
    for note in notes:
        yield Finding(
            rule=rule.name,
            level=note.level,
            title=rule.title,
            text=note.text,
            fix=note.fix,
            metric=note.metric if _nameable(note.metric) else None,
            steps=note.steps,
            source=str(rule.source),
        )


def _nameable(metric: str | None) -> bool:
    """Whether a page may ask for this curve by name: records of others can hold any key."""
    return metric is not None and metric.isprintable() and len(metric) <= LONGEST_TEXT


def _broken(error: Exception) -> Note:
    return Note(
        "info",
        both(
            f"this rule could not judge the record: {type(error).__name__}: {plain(error)}",
            f"这条规则无法判断该记录：{type(error).__name__}：{plain(error)}",
        ),
        both("check config.json and the record by hand", "请人工检查 config.json 与记录"),
    )
