"""Does `cpu_real` learn dense features? Trained teachers against their own step 0 and against raw pixels.

The commands stand in the page it writes, docs/cpu-real.md, beside docs/images/cpu_real.png (curves) and
docs/images/cpu-real-pca.png. Every number of the tables comes from scenes that neither a training nor the choice of the
recipe has seen; the linear probe and the voting patches always come from known identities.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib
import torch
import tyro
from torch import Tensor

from training.data.sources import ScenesConfig
from training.evaluation.plan import EvaluationConfig, EvaluationPlan, Split
from training.evaluation.raw_pixels import RawPixels
from training.evaluation.suite import Suite, SuiteConfig
from workbench.analysis.pca import color_range, fit_pca, project, to_rgb
from workbench.features import Backbone
from workbench.runs import Run
from workbench.scenes import SceneConfig

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = {
    "dense/linear_miou": "linear-probe mIoU",
    "dense/patch_knn": "patch k-NN",
    "global/knn": "global k-NN",
}
COMMANDS = """\
for seed in 0 1 2; do
    python -m training pretrain cpu_real --data.library PACK --seed $seed --run runs/real-$seed
done
python benchmarks/cpu_real.py runs/real-0 runs/real-1 runs/real-2
"""
FRESH = 1000
"""Offset of the tables' scenes from those a run is evaluated on, by which variants of the recipe were compared."""
TEST_SCENES = 400
"""More than a run looks at, for smaller errors."""
DOCS = Path(__file__).resolve().parents[1] / "docs"
INK, ACCENT, GREY = "#0f172a", "#0d9488", "#94a3b8"


def main(runs: tuple[Path, ...], /, docs: Path = DOCS) -> None:
    """Evaluate finished `runs` of cpu_real, one a seed, and write table, curves and PCA pictures into `docs`."""
    opened = [Run(path) for path in runs]
    check(opened)
    plan = plan_of(opened[0])
    splits: tuple[Split, ...] = ("known", "held-out")
    scores = {split: measure(opened, plan, split) for split in splits}
    (docs / "images").mkdir(parents=True, exist_ok=True)
    (docs / "cpu-real.md").write_text(report(opened, plan, scores), encoding="utf-8")
    draw_curves(opened, scores["known"]["raw pixels"], docs / "images" / "cpu_real.png")
    draw_maps(opened[0], docs / "images" / "cpu-real-pca.png")
    print((docs / "cpu-real.md").read_text(encoding="utf-8"))


def check(runs: list[Run]) -> None:
    """Refuse what would make the table wrong: nothing, unfinished runs, other settings, one seed twice."""
    if not runs:
        raise SystemExit("name the finished runs of cpu_real, one a seed")
    settings = [{key: value for key, value in run.config.items() if key not in ("seed", "batch")} for run in runs]
    if any(tree != settings[0] for tree in settings):
        raise SystemExit("the runs differ in more than their seed")
    if unfinished := [run.name for run in runs if run.steps()[-1] != run.info["steps"]]:
        raise SystemExit(f"not finished: {', '.join(unfinished)}")
    if len({run.info["seed"] for run in runs}) < len(runs):
        raise SystemExit("two of the runs have the same seed")


def plan_of(run: Run) -> EvaluationPlan:
    """The evaluation scenes of the run, drawn again from its config.json."""
    tree = run.config
    data, evaluation = dict(tree["data"]), dict(tree["evaluation"])
    scenes = ScenesConfig(**data | {"scene": scene_config(data["scene"])})
    config = EvaluationConfig(
        suite=SuiteConfig(**evaluation["suite"] | {"test_scenes": TEST_SCENES}),
        scene=scene_config(evaluation["scene"]),
        probes=evaluation["probes"],
        probe_size=tuple(evaluation["probe_size"]),
    )
    return EvaluationPlan(config, scenes, patch_size=tree["objective"]["backbone"]["patch_size"])


def scene_config(tree: dict[str, Any]) -> SceneConfig:
    return SceneConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()})


def measure(runs: list[Run], plan: EvaluationPlan, split: Split) -> dict[str, list[dict[str, float]]]:
    """Scores by backbone; one entry a seed (raw pixels have no seed: one entry)."""
    normalisation = runs[0].info["input"]
    suite = plan.suite(tuple(normalisation["mean"]), tuple(normalisation["std"]), split, offset=FRESH)
    last = runs[0].steps()[-1]
    return {
        f"EMA teacher, step {last}": [score(suite, run.backbone(step=last)) for run in runs],
        "same network, step 0 (random)": [score(suite, run.backbone(step=0)) for run in runs],
        "raw pixels": [score(suite, RawPixels(plan.patch_size))],
    }


def score(suite: Suite, backbone: Backbone) -> dict[str, float]:
    return dict(suite(backbone))


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
    lines += ["![Scores over training, by seed](images/cpu_real.png)", ""]
    lines += [
        "Top: the classes of eight probe scenes. Middle: PCA of the patches at step 0. Bottom: at the end. One basis, "
        "fitted on both steps together; one fixed colour range.",
        "",
        "![PCA maps at step 0 and at the end under one joint basis](images/cpu-real-pca.png)",
        "",
    ]
    return "\n".join(lines)


def cell(rows: list[dict[str, float]], key: str) -> str:
    values = [row[key] for row in rows]
    spread = f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


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


def draw_curves(runs: list[Run], raw: list[dict[str, float]], path: Path) -> None:
    """Three panels over training steps, a line a seed; raw pixels dashed."""
    figure, axes = plt.subplots(1, len(SHOWN), figsize=(10.5, 3.2), layout="constrained")
    for axis, (key, title) in zip(axes, SHOWN.items(), strict=True):
        for run in runs:
            rows = run.evaluations()[0]
            axis.plot([row["step"] for row in rows], [row[key] for row in rows], color=ACCENT, linewidth=1.6)
        axis.axhline(raw[0][key], color=GREY, linestyle="--", linewidth=1.2)
        axis.annotate("raw pixels", (0.98, raw[0][key]), xycoords=("axes fraction", "data"), ha="right", va="bottom")
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
    masks = run.probe_images().masks
    assert masks is not None
    palette = torch.tensor(plt.get_cmap("tab20").colors)[:, :3]
    classes = torch.where(masks[..., None] > 0, palette[masks % 20], torch.tensor([0.93, 0.94, 0.96]))
    rows = [classes, *(to_rgb(project(basis, patches), limits) for patches in (before, after))]
    figure, axes = plt.subplots(3, len(masks), figsize=(1.35 * len(masks), 4.3), layout="constrained")
    for line, (images, name) in enumerate(zip(rows, ("classes", "step 0", f"step {steps[-1]}"), strict=True)):
        draw_row(axes[line], images, name)
    figure.savefig(path, dpi=130)


def draw_row(axes: Any, images: Tensor, name: str) -> None:
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(image.numpy(), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel(name, color=INK)


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
