"""Does `cpu_continue` keep features that `cpu_continue_naive` loses? Dense scores along both, from the same weights.

    python -m training pretrain cpu_demo --run runs/demo
    for recipe in cpu_continue cpu_continue_naive; do
        python -m training pretrain $recipe --start.weights run:runs/demo@step=800 --run runs/$recipe
    done
    python benchmarks/cpu_continue.py runs/cpu_continue runs/cpu_continue_naive

Writes docs/images/cpu_continue.png and prints the table of docs/log.md. Give the runs in any number, of several seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import tyro

from workbench.runs import Run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = {"dense/patch_knn": "patch k-NN", "dense/linear_miou": "linear-probe mIoU", "global/knn": "global k-NN"}
COLOURS = {"cpu_continue": "#0d9488", "cpu_continue_naive": "#e11d48"}
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "cpu_continue.png"


def main(runs: tuple[Path, ...], /, picture: Path = PICTURE) -> None:
    """Draw the finished `runs` and print their scores at the start, at the lowest point and at the end."""
    opened = [Run(path) for path in runs]
    strangers = [run.name for run in opened if run.info["recipe"] not in COLOURS]
    starts = {run.config["start"]["weights"] for run in opened}
    if not opened or strangers or len(starts) > 1:
        raise SystemExit(f"name runs of {' and '.join(COLOURS)} from the same weights; got {strangers or starts}")
    draw(opened, picture)
    print("| run | " + " | ".join(f"{title}: start, lowest, end" for title in SHOWN.values()) + " |")
    print("|---|" + "---|" * len(SHOWN))
    for run in opened:
        print(f"| {run.info['recipe']}, seed {run.info['seed']} | {' | '.join(cell(run, key) for key in SHOWN)} |")


def cell(run: Run, key: str) -> str:
    values = [row[key] for row in run.evaluations()[0]]
    return f"{values[0]:.3f}, {min(values):.3f}, {values[-1]:.3f}"


def draw(runs: list[Run], path: Path) -> None:
    """A panel a score, a line a run; dashed: the score of the given weights."""
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(10.5, 3.2), layout="constrained")
    for axis, (key, title) in zip(axes, SHOWN.items(), strict=True):
        for run in runs:
            rows, recipe = run.evaluations()[0], run.info["recipe"]
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], color=COLOURS[recipe], label=recipe)
        axis.axhline(runs[0].evaluations()[0][0][key], color="#94a3b8", linestyle="--", linewidth=1.2)
        axis.set_title(title, loc="left", color="#0f172a")
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    axes[0].legend(handles.values(), handles.keys(), frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
