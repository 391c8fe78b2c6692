"""Does `cpu_real` learn dense features? Trained teachers against their own step 0 and against raw pixels.

The commands stand in the page it writes, docs/cpu-real.md, beside docs/images/cpu_real.png (curves) and
docs/images/cpu-real-pca.png. Every number of the tables comes from scenes that neither a training nor the choice of the
recipe has seen; the linear probe and the voting patches always come from known identities.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import tyro
from finished_runs import (
    DOCS,
    INK,
    SHOWN,
    cell,
    check,
    class_pictures,
    draw_rows,
    fresh_suite,
    own_suite,
    plan_of,
    score,
)

from training.evaluation.plan import EvaluationPlan, Split
from training.evaluation.raw_pixels import RawPixels
from workbench.analysis.pca import color_range, fit_pca, project, to_rgb
from workbench.runs import Run

COMMANDS = """\
for seed in 0 1 2; do
    python -m training pretrain cpu_real --data.library PACK --seed $seed --run runs/real-$seed
done
python benchmarks/cpu_real.py runs/real-0 runs/real-1 runs/real-2
"""
ACCENT, GREY = "#0d9488", "#94a3b8"


def main(runs: tuple[Path, ...], /, docs: Path = DOCS) -> None:
    """Evaluate finished `runs` of cpu_real, one a seed, and write table, curves and PCA pictures into `docs`."""
    opened = [Run(path) for path in runs]
    check(opened)
    plan = plan_of(opened[0])
    splits: tuple[Split, ...] = ("known", "held-out")
    scores = {split: measure(opened, plan, split) for split in splits}
    (docs / "images").mkdir(parents=True, exist_ok=True)
    (docs / "cpu-real.md").write_text(report(opened, plan, scores), encoding="utf-8")
    draw_curves(opened, score(own_suite(opened[0]), RawPixels(plan.patch_size)), docs / "images" / "cpu_real.png")
    draw_maps(opened[0], docs / "images" / "cpu-real-pca.png")
    print((docs / "cpu-real.md").read_text(encoding="utf-8"))


def measure(runs: list[Run], plan: EvaluationPlan, split: Split) -> dict[str, list[dict[str, float]]]:
    """Scores by backbone; one entry a seed (raw pixels have no seed: one entry)."""
    suite = fresh_suite(runs[0], plan, split)
    last = runs[0].steps()[-1]
    return {
        f"EMA teacher, step {last}": [score(suite, run.backbone(step=last)) for run in runs],
        "same network, step 0 (random)": [score(suite, run.backbone(step=0)) for run in runs],
        "raw pixels": [score(suite, RawPixels(plan.patch_size))],
    }


def report(runs: list[Run], plan: EvaluationPlan, scores: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """The page as Markdown."""
    sizes, minutes = plan.config.suite, [run.metrics()[0][-1]["seconds"] / 60 for run in runs]
    lines = [
        "# What `cpu_real` learns",
        "",
        "<!-- Written by benchmarks/cpu_real.py. -->",
        "",
        "```bash",
        *COMMANDS.splitlines(),
        "```",
        "",
        f"{len(runs)} seeds (initial weights, order, crops), {runs[0].info['steps']} steps of "
        f"{runs[0].config['batch']['batch_size']} images, {runs[0].info['machine']['threads']} CPU thread(s) and "
        f"{runs[0].config['batch']['workers']} loader process(es) a seed; "
        f"{', '.join(f'{m:.0f}' for m in minutes)} minutes by the clock (docs/log.md says what else the machine did).",
        "",
        f"Training draws {len(plan.known.cutouts)} cut-outs of {len(plan.known.present)} categories. Tested on "
        f"{sizes.test_scenes} new scenes and {sizes.queries} new single-object images; the probe learns from "
        f"{sizes.train_scenes} others. Chance is {1 / len(plan.known.present):.3f} for both k-NN scores. Mean over "
        "seeds, with the smallest and largest seed in brackets. These scenes were drawn for this page: neither a "
        "training nor the choice of the recipe saw them.",
    ]
    for split, title in (("known", "New scenes of known identities"), ("held-out", "Held-out identities")):
        lines += ["", f"## {title}", "", f"| features | {' | '.join(SHOWN.values())} |"]
        lines.append(f"|---|{'---|' * len(SHOWN)}")
        lines += [
            f"| {name} | {' | '.join(cell(rows, key) for key in SHOWN)} |" for name, rows in scores[split].items()
        ]
    lines += ["", *verdict(scores["known"]), "", "## Along training, and in pictures", ""]
    lines += [
        "The curves, and the dashed line of raw pixels, are on the scenes that a run is evaluated on as it trains.",
        "",
    ]
    lines += ["![Scores over training, by seed](images/cpu_real.png)", ""]
    lines += [
        "Top: the classes of eight probe scenes. Middle: PCA of the patches at step 0. Bottom: at the end. One basis, "
        "fitted on both steps together; one fixed colour range.",
        "",
        "![PCA maps at step 0 and at the end under one joint basis](images/cpu-real-pca.png)",
        "",
    ]
    return "\n".join(lines)


def verdict(known: dict[str, list[dict[str, float]]]) -> list[str]:
    """One line a dense score: the margin over the better baseline, and the spread over seeds."""
    (_, trained), (_, random), (_, raw) = known.items()
    lines = []
    for key in ("dense/linear_miou", "dense/patch_knn"):
        values, others = [row[key] for row in trained], [[row[key] for row in rows] for rows in (random, raw)]
        margin, spread = statistics.mean(values) - max(map(statistics.mean, others)), max(values) - min(values)
        word = "more" if margin > spread else "NOT more"
        apart = "above" if min(values) > max(map(max, others)) else "NOT above"
        lines.append(
            f"- {SHOWN[key]}: {margin:+.3f} over the better baseline, {word} than the spread of {spread:.3f} over "
            f"seeds; the worst trained seed is {apart} the best seed of any baseline."
        )
    return lines


def draw_curves(runs: list[Run], raw: dict[str, float], path: Path) -> None:
    """Three panels over training steps, a line a seed; raw pixels dashed."""
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(10.5, 3.2), layout="constrained")
    for axis, (key, title) in zip(axes, SHOWN.items(), strict=True):
        for run in runs:
            rows = run.evaluations()[0]
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], color=ACCENT, linewidth=1.6)
        axis.axhline(raw[key], color=GREY, linestyle="--", linewidth=1.2)
        axis.annotate("raw pixels", (0.98, raw[key]), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        axis.set_title(title, loc="left", color=INK)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def draw_maps(run: Run, path: Path) -> None:
    """Classes, and PCA maps of the probes at the first and the last step under one basis fitted on both."""
    steps = run.probe_steps()
    before, after = (run.probe_features(step).patches.float() for step in (steps[0], steps[-1]))
    tokens = torch.cat([before.flatten(0, 2), after.flatten(0, 2)])
    basis = fit_pca(tokens)
    limits = color_range(project(basis, tokens))
    maps = [to_rgb(project(basis, patches), limits) for patches in (before, after)]
    draw_rows({"classes": class_pictures(run), "step 0": maps[0], f"step {steps[-1]}": maps[1]}, path)


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
