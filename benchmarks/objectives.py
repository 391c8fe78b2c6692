"""Which objective gives which dense features? Six recipes that differ in their objective alone, side by side.

The commands stand in the page it writes, docs/objectives.md, beside docs/images/objectives-pca.png. Every number comes
from scenes that neither a training nor the choice of a recipe has seen.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import tyro
from finished_runs import DOCS, SHOWN, cell, check, draw_rows, fresh_suite, plan_of, score

from training.evaluation.plan import EvaluationPlan
from training.evaluation.raw_pixels import RawPixels
from workbench.analysis.pca import color_range, fit_pca, project, to_rgb
from workbench.runs import Run

NAMES = {
    "cpu_dinov1": "DINO",
    "cpu_dinov2": "DINOv2",
    "cpu_dinov3": "DINOv3",
    "cpu_simclr": "SimCLR",
    "cpu_mocov2": "MoCo v2",
    "cpu_mocov3": "MoCo v3",
}
ORDER = ("global/knn", "dense/patch_knn", "dense/linear_miou")
SHARED = ("data", "evaluation", "batch", "loop")
"""What all runs have in common, of any recipe."""
COMMANDS = """\
for recipe in dinov1 dinov2 dinov3 simclr mocov2 mocov3; do
    for seed in 0 1 2; do
        python -m training pretrain cpu_$recipe --data.library PACK --seed $seed --run runs/$recipe-$seed
    done
done
python benchmarks/objectives.py runs/{dinov1,dinov2,dinov3,simclr,mocov2,mocov3}-{0,1,2}
"""
ROLES = """\
`teacher` is the moving average, `student` what the optimizer steps; the first of an objective is the one that its paper
evaluates."""
PICTURE = """\
PCA of the patches of the same probe scenes, one seed. A row is one network: its basis is fitted on all of its scenes
together, so colours compare along a row, not between rows."""

Scores = dict[str, list[dict[str, float]]]


def main(runs: tuple[Path, ...], /, docs: Path = DOCS) -> None:
    """Evaluate finished `runs` of the compared recipes and write table and PCA maps into `docs`."""
    groups = grouped([Run(path) for path in runs])
    first = next(iter(groups.values()))[0]
    plan = plan_of(first)
    scores = measure(groups, plan)
    (docs / "images").mkdir(parents=True, exist_ok=True)
    (docs / "objectives.md").write_text(report(groups, plan, scores), encoding="utf-8")
    draw_maps({NAMES[recipe]: group[0] for recipe, group in groups.items()}, docs / "images" / "objectives-pca.png")
    print((docs / "objectives.md").read_text(encoding="utf-8"))


def grouped(runs: list[Run]) -> dict[str, list[Run]]:
    """Runs by recipe, in the order of NAMES; each group checked, and all on the same data, seeds and steps."""
    unknown = sorted({str(run.info["recipe"]) for run in runs} - NAMES.keys())
    if unknown or not runs:
        raise SystemExit(
            f"name finished runs of {', '.join(NAMES)}" + (f", not of {', '.join(unknown)}" * bool(unknown))
        )
    groups = {recipe: [run for run in runs if run.info["recipe"] == recipe] for recipe in NAMES}
    groups = {recipe: group for recipe, group in groups.items() if group}
    for group in groups.values():
        check(group)
    for name in SHARED:
        if len({str({k: v for k, v in run.config[name].items() if k != "seed"}) for run in runs}) > 1:
            raise SystemExit(f"the runs differ in their config's {name!r}; only the objective may differ")
    if len({tuple(sorted(run.info["seed"] for run in group)) for group in groups.values()}) > 1:
        raise SystemExit("the recipes have runs of different seeds")
    return groups


def measure(groups: dict[str, list[Run]], plan: EvaluationPlan) -> Scores:
    """Scores by row of the table, one entry a seed (raw pixels have no seed: one entry).

    The backbone that a run evaluates comes first, others that it published follow under their role.
    """
    everyone = next(iter(groups.values()))
    suite = fresh_suite(everyone[0], plan, "known")
    scores: Scores = {}
    for recipe, group in groups.items():
        main = group[0].main_role
        for role in sorted(group[0].roles(), key=lambda role, main=main: role != main):
            scores[f"{NAMES[recipe]}, {role}"] = [score(suite, run.backbone(role)) for run in group]
    scores["the same network at step 0 (random)"] = [score(suite, run.backbone(step=0)) for run in everyone]
    scores["raw pixels"] = [score(suite, RawPixels(plan.patch_size))]
    return scores


def report(groups: dict[str, list[Run]], plan: EvaluationPlan, scores: Scores) -> str:
    """The page as Markdown."""
    first, sizes, seeds = next(iter(groups.values()))[0], plan.config.suite, len(next(iter(groups.values())))
    lines = [
        "# Six objectives, one recipe name apart",
        "",
        "<!-- Written by benchmarks/objectives.py. -->",
        "",
        "```bash",
        *COMMANDS.splitlines(),
        "```",
        "",
        f"The same scenes, network, initial weights and {first.info['steps']} steps of "
        f"{first.config['batch']['batch_size']} images with AdamW; {seeds} seed(s). Peak learning rates: "
        f"{rates(groups)}. Equal steps are not equal work: the DINO objectives see four local crops of each image "
        "besides the two that all of them see. The networks are tiny, the runs short, and each recipe had a few trials "
        "(docs/log.md); nothing here ranks the methods at the size of their papers.",
        "",
        f"Tested on {sizes.test_scenes} new scenes of known identities and {sizes.queries} new single-object images; "
        f"the probe learns from {sizes.train_scenes} others. Chance is {1 / len(plan.known.present):.3f} for both k-NN "
        "scores. Mean over seeds, with the smallest and largest seed in brackets. Training never saw these scenes.",
        "",
        f"| features | {' | '.join(SHOWN[key] for key in ORDER)} |",
        f"|---|{'---|' * len(ORDER)}",
    ]
    lines += [f"| {name} | {' | '.join(cell(rows, key) for key in ORDER)} |" for name, rows in scores.items()]
    lines += ["", ROLES, "", costs(groups), "", "![PCA maps by objective](images/objectives-pca.png)", "", PICTURE, ""]
    return "\n".join(lines)


def rates(groups: dict[str, list[Run]]) -> str:
    """Peak learning rate, by recipe."""
    return ", ".join(f"{NAMES[recipe]} {group[0].config['optim']['lr']['peak']:g}" for recipe, group in groups.items())


def costs(groups: dict[str, list[Run]]) -> str:
    """Minutes of training by the clock, by recipe."""
    minutes = {
        NAMES[recipe]: statistics.mean(run.metrics()[0][-1]["seconds"] / 60 for run in group)
        for recipe, group in groups.items()
    }
    shown = ", ".join(f"{name} {value:.1f}" for name, value in minutes.items())
    return f"Minutes by the clock, evaluations included, on a machine that did other things too: {shown}."


def draw_maps(runs: dict[str, Run], path: Path) -> None:
    """The probe images, and a row of PCA maps a run, each under one basis for all of its scenes."""
    first = next(iter(runs.values()))
    rows = {"images": first.probe_images().images.permute(0, 2, 3, 1) / 255}
    for name, run in {"step 0": first, **runs}.items():
        patches = run.probe_features(run.probe_steps()[0 if name == "step 0" else -1]).patches.float()
        basis = fit_pca(patches.flatten(0, 2))
        projected = project(basis, patches)
        rows[name] = to_rgb(projected, color_range(projected))
    draw_rows(rows, path)


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
