"""python -m workbench runs DIR: what runs are there, and how they do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.runs import Run, scan_runs

_STYLES = {"live": "green", "ended": "cyan", "stopped": "yellow", "crashed": "red", "silent": "magenta"}
_SCORES = {"patch k-NN": "dense/patch_knn", "mIoU": "dense/linear_miou", "k-NN": "global/knn"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, or 2 after a mistake (told in one line on standard error)."""
    parser = argparse.ArgumentParser(prog="python -m workbench", description="Look at runs of the workbench.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{runs}")
    runs = commands.add_parser("runs", help="list the runs in a folder", description="List the runs in a folder.")
    runs.add_argument("folder", metavar="DIR", nargs="?", default="runs", help="folder of runs (default: runs)")
    choice = parser.parse_args(arguments)
    try:
        return show_runs(choice.folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def show_runs(folder: str) -> int:
    """Print a table of the runs in `folder`, and a line for each run that cannot be opened."""
    listing = scan_runs(folder)
    console = Console()
    if listing.runs:
        console.print(_table(listing.runs))
    elif not listing.problems:
        console.print(_plain(f"no runs in {folder} yet; python -m training pretrain RECIPE starts one"))
    for name, problem in listing.problems.items():
        console.print(_plain(f"{name}: {problem}"), style="red")
    return 0


def _table(runs: Sequence[Run]) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("run", "recipe", "state", "step", "last record", *_SCORES):
        table.add_column(name, justify="left" if name in ("run", "recipe", "state") else "right")
    for run in runs:
        state = run.status()
        table.add_row(
            _plain(run.name),
            _plain(run.info.get("recipe") or "-"),
            Text(state, style=_STYLES[state]),
            _plain(f"{_last_step(run)} / {run.info.get('steps', '?')}"),
            _age(run.age()),
            *_scores(run),
        )
    return table


def _last_step(run: Run) -> int | str:
    rows, _ = run.metrics()
    return rows[-1]["step"] if rows else "-"


def _scores(run: Run) -> list[str]:
    """The newest scores of the backbone that is looked at, in per cent."""
    rows = [row for row in run.evaluations()[0] if row.get("backbone") == run.main_role]
    newest = rows[-1] if rows else {}
    return [_percent(newest.get(name)) for name in _SCORES.values()]


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "-"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _plain(value: object) -> Text:
    """`value` as text: no markup is read in it, and no control character reaches the terminal."""
    return Text(
        "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(value))
    )


if __name__ == "__main__":
    sys.exit(main())
