"""Do plain losses, without any stress, lose dense quality while image-level scores rise?

    python benchmarks/natural.py RUN [RUN ...]

Reads finished runs of any recipe without a stressor and writes docs/natural-search.md: for every run its command, the
scores at its start, best and end, what the detector said, and a curve. It trains and measures nothing itself: figures
are those that a run wrote while it trained.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import tyro
from finished_runs import DOCS, INK, plt
from matplotlib.ticker import NullLocator

from training.config import as_tree, differences
from training.recipes import RECIPES
from workbench.analysis.onset import onset
from workbench.runs import Run

SCORES = {
    "dense/patch_knn": "patch k-NN",
    "dense/linear_miou": "linear-probe mIoU",
    "global/knn": "global k-NN",
    "health/within_variance": "within-image variance",
}
TICKS = (0.4, 0.6, 0.8, 1, 1.5, 2, 3)
COLOURS = ("#0d9488", "#7c3aed", "#d97706", "#64748b")
SHOWN_FIELDS = ("optim.", "objective.", "augment.", "loop.steps", "loop.evaluate_every", "data.count", "data.skip")
"""Fields whose difference from the recipe is worth telling."""


def main(runs: tuple[Path, ...], /, docs: Path = DOCS) -> None:
    """Write the page about `runs`."""
    opened = [Run(path) for path in runs]
    stressed = [run.name for run in opened if run.config["objective"].get("stress", {}).get("leak_weight")]
    if not opened or stressed:
        raise SystemExit(f"name runs without an induced stress{': not ' + ', '.join(stressed) if stressed else ''}")
    page = docs / "natural-search.md"
    before, mark, rest = page.read_text(encoding="utf-8").partition("<!-- runs -->\n")
    _, end, after = rest.partition("<!-- end of runs -->")
    body = "\n".join([*table(opened), "", *commands(opened)])
    page.write_text(f"{before}{mark}{body}\n{end}{after}", encoding="utf-8")
    draw(opened, docs / "images" / "natural-search.png")
    print(body)


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.evaluations()[0] if row.get("backbone") == run.main_role]


def table(runs: list[Run]) -> list[str]:
    """One line a run: start, best after step 0 with its step, end."""
    lines = [
        f"| run | steps | {' | '.join(list(SCORES.values())[:3])} | detector |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        rows = rows_of(run)
        cells = []
        for key in list(SCORES)[:3]:
            best = max(rows[1:], key=lambda row, key=key: row[key])
            cells.append(f"{rows[0][key]:.3f}, {best[key]:.3f} ({best['step']}), {rows[-1][key]:.3f}")
        lines.append(f"| {run.path.name} | {rows[-1]['step']} | {' | '.join(cells)} | {verdicts(rows)} |")
    return [*lines, "", "Scores: at step 0, the best after it with its step, at the end."]


def verdicts(rows: list[dict[str, Any]]) -> str:
    """The first alarm if there was one, and the verdict at the end."""
    found = [onset(rows[: count + 1]) for count in range(len(rows))]
    alarm = next((each for each in found if each.state == "peaked"), None)
    fallen = next((each for each in found if each.state == "falling"), None)
    parts = [f"peaked at {alarm.peak_step}, said at {alarm.step}" if alarm else ""]
    parts += [f"falling, said at {fallen.step}" if fallen else "", f"at the end {found[-1].state}"]
    return "; ".join(filter(None, parts))


def commands(runs: list[Run]) -> list[str]:
    """The command of every run: its recipe, and where its config differs from it."""
    lines = ["```bash"]
    for run in runs:
        base = as_tree(RECIPES[run.info["recipe"]].build().resolve())
        changed = [line for line in differences(base, run.config) if line.startswith(SHOWN_FIELDS)]
        changed = [line for line in changed if "(absent)" not in line and "total_steps" not in line]
        options = [option(line) for line in changed]
        words = ["python", "-m", "training", "pretrain", run.info["recipe"], "--data.library", "PACK"]
        words += ["--seed", str(run.info["seed"]), "--run", f"runs/{run.path.name}"]
        lines.append(" ".join([shlex.join(words), *options]))
    return [*lines, "```"]


def option(line: str) -> str:
    """ "optim.lr.peak: 0.004 -> 0.008" as an option of the command line."""
    path, _, values = line.partition(": ")
    return f"--{path.replace('_', '-')} {values.rpartition(' -> ')[2]}"


def draw(runs: list[Run], path: Path) -> None:
    """A panel a run, every score relative to its own value at step 0, on one logarithmic scale for all."""
    columns = 4
    lines = -(-len(runs) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(13, 2.5 * lines), squeeze=False, sharey=True, layout="constrained"
    )
    for axis in axes.flat[len(runs) :]:
        axis.set_visible(False)
    for axis, run in zip(axes.flat, runs, strict=False):
        rows = rows_of(run)
        for (key, name), colour in zip(SCORES.items(), COLOURS, strict=True):
            values = [row[key] / rows[0][key] for row in rows]
            axis.plot([row["step"] for row in rows], values, color=colour, linewidth=1.6, label=name)
        axis.axhline(1, color="#cbd5e1", linewidth=0.8)
        axis.set_title(run.path.name, loc="left", color=INK, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_yticks(TICKS, [f"{tick:g}" for tick in TICKS], minor=False)
    axes[0, 0].yaxis.set_minor_locator(NullLocator())
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
