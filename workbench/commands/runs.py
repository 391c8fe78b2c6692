"""Commands that read run directories: list, judge, write as a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from workbench.commands import Commands, plain
from workbench.runs import Run, scan_runs

_STYLES = {"live": "green", "ended": "cyan", "stopped": "yellow", "crashed": "red", "silent": "magenta"}
_SCORES = {"patch k-NN": "dense/patch_knn", "mIoU": "dense/linear_miou", "k-NN": "global/knn"}


def add(commands: Commands) -> None:
    """Give `commands` those of this module."""
    parser = commands.add_parser("runs", help="list the runs in a folder", description="List the runs in a folder.")
    parser.add_argument("folder", metavar="DIR", nargs="?", default="runs", help="folder of runs (default: runs)")
    parser.set_defaults(do=show_runs)
    text = "Write a run as one HTML file: click patches and scrub through the steps, without a server or a network."
    parser = commands.add_parser("page", help="write a run as one HTML file", description=text)
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("file", metavar="FILE", help="where to; must be new")
    parser.add_argument("--most-steps", metavar="N", type=int, default=100, help="spread over the run (default: 100)")
    parser.add_argument("--dtype", choices=("int8", "float16"), default="int8", help="of features (default: int8)")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="(default: en)")
    parser.set_defaults(do=write_page)
    text = "Say what is wrong with a run or a config, and what only looks so. Exit code 1: a warning or an error."
    parser = commands.add_parser("doctor", help="say what is wrong with a run or a config", description=text)
    parser.add_argument("place", metavar="RUN|CONFIG", help="a run's folder, a config.json, or - for standard input")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="(default: en)")
    parser.set_defaults(do=judge)
    text = "Print the label-free gauges of every step that keeps features of the probe images, with standard errors."
    parser = commands.add_parser("health", help="print the label-free gauges of a run's steps", description=text)
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--reference", metavar="STEP", type=int, help="add the Gram distance to this step")
    parser.add_argument("--out", metavar="FILE", help="write a CSV file instead; must be new")
    parser.set_defaults(do=show_health)
    text = "Say whether the dense features of a run have peaked, and which step makes the best Gram teacher."
    parser = commands.add_parser("onset", help="say whether dense features have peaked", description=text)
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.set_defaults(do=show_onset)


def show_runs(choice: argparse.Namespace) -> int:
    """Print a table of the runs in a folder, and a line for each run that is damaged or cannot be opened."""
    listing = scan_runs(choice.folder)
    console = Console()
    if listing.runs:
        console.print(_table(listing.runs))
    elif not listing.problems:
        console.print(plain(f"no runs in {choice.folder} yet; python -m training pretrain RECIPE starts one"))
    for run in listing.runs:
        if damage := _damage(run):
            console.print(plain(f"{run.name}: {damage}"), style="yellow")
    for name, problem in listing.problems.items():
        console.print(plain(f"{name}: {problem}"), style="red")
    return 0


def write_page(choice: argparse.Namespace) -> int:
    """Write the HTML file of a run and print its size."""
    from workbench.run_source import run_page, spread

    if choice.most_steps < 1:
        raise ValueError(f"--most-steps {choice.most_steps}: a page needs 1 step or more")
    run = Run(choice.run)
    steps = spread(run.probe_steps(), choice.most_steps) if choice.most_steps > 1 else run.probe_steps()[-1:]
    text = run_page(run, steps, dtype=choice.dtype, language=choice.language)
    with Path(choice.file).open("x", encoding="utf-8") as file:
        file.write(text)
    Console().print(
        plain(f"wrote {choice.file}: {len(steps)} steps, {len(text.encode()) / 1e6:.1f} MB"), soft_wrap=True
    )
    return 0


def judge(choice: argparse.Namespace) -> int:
    """Print what the doctor finds; the exit code: 1 with a warning or an error."""
    from workbench.doctor.report import doctor

    return doctor(choice.place, choice.language)


def show_health(choice: argparse.Namespace) -> int:
    """Print the gauges of a run's steps, or write them to a CSV file."""
    from workbench.run_health import health_table, run_health, save_csv

    run = Run(choice.run)
    rows = list(run_health(run, choice.reference))
    if choice.out is not None:
        save_csv(rows, Path(choice.out))
        return 0
    console = Console()
    about = f"{run.name}, {run.main_role}, on its probe images (what each gauge is: docs/dense-health.md)"
    console.print(plain(about), soft_wrap=True)
    console.print(health_table(rows, console.width))
    return 0


def show_onset(choice: argparse.Namespace) -> int:
    """Print the verdict on a run's evaluations, what each curve says, and the Gram teacher they speak for."""
    from workbench.analysis.advice import advise
    from workbench.analysis.onset import config_for, onset

    run, console = Run(choice.run), Console()
    start = run.config.get("start")
    start = start if isinstance(start, dict) else {}
    config = config_for("fork" if start.get("fork") else "weights" if start.get("weights") else "random")
    rows = [row for row in run.evaluations()[0] if row.get("backbone") == run.main_role]
    verdict = onset(rows, config)
    console.print(plain(f"{run.name}, {len(rows)} evaluations up to step {verdict.step}: {verdict.state}"))
    if verdict.peak_step is not None:
        console.print(plain(f"peak near step {verdict.peak_step}, declining since step {verdict.since}"))
    for turn in (*verdict.turns, *verdict.gauges):
        text = f"  {turn.key}: {turn.state}; best two {turn.peak:.3f}, newest two {turn.now:.3f}"
        console.print(plain(f"{text}, confidence of a decline {turn.confidence:.3f}"))
    if verdict.early_warning:
        console.print(plain("early warning: several label-free gauges have turned"))
    advice = advise(rows, verdict, run.steps(), config)
    console.print(plain("no published step was judged, so none is advised" if advice is None else advice.reason()))
    return 0


def _table(runs: Sequence[Run]) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("run", "recipe", "state", "step", "last record", *_SCORES):
        table.add_column(name, justify="left" if name in ("run", "recipe", "state") else "right")
    for run in runs:
        state = run.status()
        table.add_row(
            plain(run.name),
            plain(run.info.get("recipe") or "-"),
            Text(state, style=_STYLES[state]),
            plain(f"{_last_step(run)} / {run.info.get('steps', '?')}"),
            _age(run.age()),
            *_scores(run),
        )
    return table


def _damage(run: Run) -> str:
    """What is no record in the append-only files, by file; empty when there is nothing to say."""
    for read in (run.metrics, run.evaluations, run.events):
        read()
    found = [
        f"{name} has {count} damaged {'line' if count == 1 else 'lines'}, left out"
        for name, count in run.skipped.items()
        if count
    ]
    if run.status() != "live":  # a living writer may just be writing that line
        found += [
            f"{name} ends in half a record of {size} bytes, which a resume cuts"
            for name, size in run.torn().items()
            if size
        ]
    return "; ".join(found)


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
