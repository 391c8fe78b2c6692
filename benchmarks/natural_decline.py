"""Does a decline that came by itself hold on scenes that nobody has seen, and does Gram bring it back?

    python benchmarks/natural_decline.py RUN [RUN ...]

Reads finished runs without a stressor (and forks of them), scores their published teachers on fresh scenes and writes
the part of docs/natural-search.md between its marks, and docs/images/natural-decline.png. A fork's steps are counted
from its parent's first. Scores are kept in RUN.scores.json beside each run.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro
from finished_runs import DOCS, FRESH, INK, plan_of, plt, score
from lab_scores import DRAWS, SIZES

from training.evaluation.plan import EvaluationPlan
from workbench.analysis.onset import config_for, onset
from workbench.runs import Run

SCORES = {
    "dense/patch_knn": "patch k-NN",
    "dense/linear_miou": "linear-probe mIoU",
    "global/knn": "global k-NN",
    "health/cls_patch_cosine": "cos(CLS, patch)",
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#64748b", "#000000")
SMOOTH = 3
"""Checkpoints that a peak or an end is averaged over."""


NOTE = """\
Teachers on {draws} draws of {scenes} fresh scenes, every {every} steps. Peak, and the end it is compared with: {smooth}
checkpoints averaged; ± is the standard error over draws of scenes, not over trainings. A peak is chosen as the best of
many, so a fall after it is a little flattered. Live: what the detector wrote while the run trained, on the run's own
smaller evaluations."""


class Curve:
    """A run's scores on fresh scenes: {key: [[draw, draw, …] a step]}."""

    def __init__(self, run: Run, every: int) -> None:
        self.run, self.every = run, every
        parent = run.parent or {}
        self.begin = int(parent.get("step", 0))
        self.steps = [step for step in run.steps() if step % every == 0]
        self.scores = self._measured()

    def _measured(self) -> dict[str, list[list[float]]]:
        path = self.run.path.with_name(f"{self.run.path.name}.scores.json")
        made_from = {"created": self.run.info["created"], "draws": DRAWS, **SIZES}
        known = json.loads(path.read_text()) if path.exists() else {}
        rows = known.get("rows", {}) if known.get("made_from") == made_from else {}
        if missing := [step for step in self.steps if str(step) not in rows]:
            plan = plan_of(self.run, None)
            config = replace(plan.config, suite=replace(plan.config.suite, **SIZES))
            plan = EvaluationPlan(config, plan.scenes, patch_size=plan.patch_size)
            mean, std = (tuple(self.run.info["input"][name]) for name in ("mean", "std"))
            suites = [plan.suite(mean, std, offset=FRESH * (draw + 1)) for draw in range(DRAWS)]
            for step in missing:
                found = [score(suite, self.run.backbone(step=step)) for suite in suites]
                rows[str(step)] = {key: [one[key] for one in found] for key in SCORES}
                path.write_text(json.dumps({"made_from": made_from, "rows": rows}))
        return {key: [rows[str(step)][key] for step in self.steps] for key in SCORES}

    def mean(self, key: str) -> list[float]:
        return [statistics.mean(draws) for draws in self.scores[key]]

    def window(self, key: str, place: int) -> list[float]:
        """Each draw's mean over the checkpoints around `place`."""
        rows = self.scores[key][max(0, place - SMOOTH // 2) : place + SMOOTH // 2 + 1]
        return [statistics.mean(row[draw] for row in rows) for draw in range(DRAWS)]

    def change(self, key: str, place: int) -> tuple[float, float]:
        """(last SMOOTH checkpoints less those around `place`, standard error over draws of scenes), paired by draw."""
        last = self.window(key, len(self.steps) - 1 - SMOOTH // 2)
        gaps = [end - begin for end, begin in zip(last, self.window(key, place), strict=True)]
        return statistics.mean(gaps), statistics.stdev(gaps) / math.sqrt(DRAWS)

    def peak(self) -> int:
        """The place of the best patch k-NN, each averaged with its neighbours; the untrained network apart."""
        places = range(1, len(self.steps) - 1)
        return max(places, key=lambda place: statistics.mean(self.window("dense/patch_knn", place)))


def main(runs: tuple[Path, ...], /, every: int = 400, docs: Path = DOCS) -> None:
    curves = [Curve(Run(path), every) for path in runs]
    body = table(curves)
    page = docs / "natural-search.md"
    before, mark, rest = page.read_text(encoding="utf-8").partition("<!-- decline -->\n")
    _, end, after = rest.partition("<!-- end of decline -->")
    if mark and end:
        page.write_text(f"{before}{mark}{body}\n{end}{after}", encoding="utf-8")
    draw(curves, docs / "images" / "natural-decline.png")
    print(body)


def table(curves: list[Curve]) -> str:
    """Runs from random weights, each since its own peak; then forks, each beside its parent over the same steps."""
    since = " | ".join(f"{name} since" for name in SCORES.values())
    lines = [f"| run | peak of patch k-NN | {since} | live |", f"|---|---|{'---|' * len(SCORES)}---|"]
    for curve in curves:
        if curve.begin:
            continue
        place = curve.peak()
        cells = [shown(curve.change(key, place)) for key in SCORES]
        peak = f"{statistics.mean(curve.window('dense/patch_knn', place)):.3f} at {curve.steps[place]}"
        lines.append(f"| {curve.run.path.name}, to {curve.steps[-1]} | {peak} | {' | '.join(cells)} | {said(curve)} |")
    note = NOTE.format(draws=DRAWS, scenes=SIZES["test_scenes"], every=curves[0].every, smooth=SMOOTH)
    return "\n".join([*lines, "", note, "", *fork_table(curves)])


def fork_table(curves: list[Curve]) -> list[str]:
    """What Gram anchoring changed in as many steps as its parent went on without it."""
    by_name = {curve.run.name: curve for curve in curves}
    lines = [
        f"| fork, and its parent over the same steps | {' | '.join(SCORES.values())} |",
        f"|---|{'---|' * len(SCORES)}",
    ]
    for fork in curves:
        parent = by_name.get(str((fork.run.parent or {}).get("run")))
        if parent is None:
            continue
        weight = fork.run.config["objective"]["gram"]["weight"]["peak"]
        end = fork.begin + fork.steps[-1]
        own = [shown(gain(fork, key, 0, len(fork.steps) - 1)) for key in SCORES]
        if end in parent.steps:
            places = [parent.steps.index(step) for step in (fork.begin, end)]
            kept = [shown(gain(parent, key, *places)) for key in SCORES]
        else:
            kept = [f"stopped at {parent.steps[-1]}"] * len(SCORES)
        lines.append(
            f"| {fork.run.path.name}: Gram, weight {weight:g}, from {fork.begin} to {end} | {' | '.join(own)} |"
        )
        lines.append(f"| {parent.run.path.name}, the same steps | {' | '.join(kept)} |")
    return lines if len(lines) > 2 else []


def gain(curve: Curve, key: str, begin: int, end: int) -> tuple[float, float]:
    """(mean of two checkpoints up to `end`, less the one at `begin`; standard error over draws), paired by draw."""
    rows = curve.scores[key]
    gaps = [(rows[end - 1][draw] + rows[end][draw]) / 2 - rows[begin][draw] for draw in range(DRAWS)]
    return statistics.mean(gaps), statistics.stdev(gaps) / math.sqrt(DRAWS)


def shown(change: tuple[float, float]) -> str:
    return f"{change[0]:+.3f} ± {change[1]:.3f}"


def said(curve: Curve) -> str:
    """The events of the detector, with the steps at which it wrote them."""
    rows: list[dict[str, Any]] = curve.run.events()[0]
    found = [
        (row["step"], row["kind"], row.get("peak_step")) for row in rows if str(row.get("kind")).startswith("dense-")
    ]
    parts = [
        f"peak {curve.begin + peak}, said at {curve.begin + step}"
        if kind == "dense-peak"
        else f"warned at {curve.begin + step}"
        for step, kind, peak in found
    ]
    verdict = onset(curve.run.evaluations()[0], config_for("fork" if curve.begin else "random")).state
    return "; ".join([*parts, f"at the end {verdict}"])


def draw(curves: list[Curve], path: Path) -> None:
    """A panel a score; a fork is dashed, in the colour of its parent."""
    roots = [curve.run.name for curve in curves if not curve.begin]
    colours = dict(zip(roots, COLOURS * 3, strict=False))
    figure, axes = plt.subplots(1, len(SCORES), figsize=(15, 3.9), layout="constrained")
    for axis, (key, name) in zip(axes, SCORES.items(), strict=True):
        for curve in curves:
            colour = colours.get(str((curve.run.parent or {}).get("run", curve.run.name)), "#64748b")
            steps = [curve.begin + step for step in curve.steps]
            rows = curve.scores[key]
            mean = curve.mean(key)
            error = [statistics.stdev(draws) / math.sqrt(len(draws)) for draws in rows]
            axis.plot(
                steps,
                mean,
                color=colour,
                linewidth=1.5,
                label=curve.run.path.name,
                linestyle="--" if curve.begin else "-",
            )
            axis.fill_between(
                steps,
                [a - b for a, b in zip(mean, error, strict=True)],
                [a + b for a, b in zip(mean, error, strict=True)],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        axis.set_title(name, loc="left", color=INK)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
