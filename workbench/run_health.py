"""The label-free gauges of a run from the features it keeps of its probe images: any step, against any reference."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from workbench.analysis.health import ERROR_SUFFIX, dense_health_with_errors, with_error_names
from workbench.features import Features
from workbench.runs import Run

NAME_WIDTH, CELL_WIDTH = 22, 17
"""Characters of the printed table."""


def run_health(run: Run, reference: int | None = None) -> Iterator[dict[str, Any]]:
    """A row for each step with probe features: {"step", "health/…", "health/…:se"}, errors over the probe images.

    `reference` adds the Gram distance to the features of that step. The probe images are few: the errors say how few.
    Where an evaluation was written, its gauges rest on more images. Raises ValueError when the run has no probe
    features, or none of `reference`.
    """
    steps = run.probe_steps()
    if not steps:
        raise ValueError(f"{run.path} has no probe features (yet); they come with its first evaluation.")
    base = None if reference is None else _features(run, reference)
    for step in steps:
        yield {"step": step, **with_error_names(dense_health_with_errors(_features(run, step), reference=base))}


def health_table(rows: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Gauges as rows, as many steps as columns as fit into `width` characters, spread from the first to the last."""
    count = min(len(rows), max(2, (width - NAME_WIDTH) // CELL_WIDTH))
    shown = [rows[round(k * (len(rows) - 1) / max(1, count - 1))] for k in range(count)]
    table = Table(box=None, header_style="bold")
    table.add_column("gauge")
    for row in shown:
        table.add_column(f"step {row['step']}", justify="right", no_wrap=True)
    for name in rows[0]:
        if name != "step" and not name.endswith(ERROR_SUFFIX):
            cells = (f"{row[name]:.3f} ± {row[name + ERROR_SUFFIX]:.3f}" for row in shown)
            table.add_row(name.removeprefix("health/").replace("_", " "), *cells)
    return table


def save_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows to the new file `path`. Raises FileExistsError when there is one."""
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _features(run: Run, step: int) -> Features:
    found = run.probe_features(step)
    return Features(found.patches.float(), found.cls.float(), found.registers.float())
