"""Finished runs, measured on scenes that nobody has seen, as table cells and pictures: shared by benchmarks."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from training.data.sources import ScenesConfig
from training.evaluation.plan import EvaluationConfig, EvaluationPlan, Split
from training.evaluation.suite import Suite, SuiteConfig
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
FRESH = 1000
"""Offset of the tables' scenes from those a run is evaluated on, by which variants of a recipe were compared."""
TEST_SCENES = 400
"""More than a run looks at, for smaller errors."""
DOCS = Path(__file__).resolve().parents[1] / "docs"
INK = "#0f172a"


def check(runs: list[Run]) -> None:
    """Refuse what would make the table wrong: nothing, unfinished runs, other settings, one seed twice."""
    if not runs:
        raise SystemExit("name finished runs of one recipe, one a seed")
    settings = [{key: value for key, value in run.config.items() if key not in ("seed", "batch")} for run in runs]
    if any(tree != settings[0] for tree in settings):
        raise SystemExit("the runs differ in more than their seed")
    if unfinished := [run.name for run in runs if run.steps()[-1] != run.info["steps"]]:
        raise SystemExit(f"not finished: {', '.join(unfinished)}")
    if len({run.info["seed"] for run in runs}) < len(runs):
        raise SystemExit("two of the runs have the same seed")


def plan_of(run: Run, test_scenes: int | None = TEST_SCENES) -> EvaluationPlan:
    """The evaluation scenes of the run, drawn again from its config.json; `test_scenes` None: as many as it had."""
    tree = run.config
    data, evaluation = dict(tree["data"]), dict(tree["evaluation"])
    scenes = ScenesConfig(**data | {"scene": scene_config(data["scene"])})
    sizes = {} if test_scenes is None else {"test_scenes": test_scenes}
    config = EvaluationConfig(
        suite=SuiteConfig(**evaluation["suite"] | sizes),
        scene=scene_config(evaluation["scene"]),
        probes=evaluation["probes"],
        probe_size=tuple(evaluation["probe_size"]),
    )
    return EvaluationPlan(config, scenes, patch_size=tree["objective"]["backbone"]["patch_size"])


def scene_config(tree: dict[str, Any]) -> SceneConfig:
    return SceneConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()})


def fresh_suite(run: Run, plan: EvaluationPlan, split: Split) -> Suite:
    """The evaluations on scenes that neither a training nor the choice of a recipe saw."""
    normalisation = run.info["input"]
    return plan.suite(tuple(normalisation["mean"]), tuple(normalisation["std"]), split, offset=FRESH)


def own_suite(run: Run) -> Suite:
    """The evaluations that the run wrote while it trained: what its curves can be compared with."""
    normalisation = run.info["input"]
    return plan_of(run, None).suite(tuple(normalisation["mean"]), tuple(normalisation["std"]))


def score(suite: Suite, backbone: Backbone) -> dict[str, float]:
    return dict(suite(backbone))


def cell(rows: list[dict[str, float]], key: str) -> str:
    values = [row[key] for row in rows]
    spread = f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def class_pictures(run: Run) -> Tensor:
    """The classes of the probe images as colours [I, h, w, 3]."""
    masks = run.probe_images().masks
    assert masks is not None
    palette = torch.tensor(plt.get_cmap("tab20").colors)[:, :3]
    return torch.where(masks[..., None] > 0, palette[masks % 20], torch.tensor([0.93, 0.94, 0.96]))


def draw_rows(rows: dict[str, Tensor], path: Path) -> None:
    """Write a grid of pictures: a row a name, each [I, h, w, 3] in [0, 1]."""
    columns = len(next(iter(rows.values())))
    size = (1.35 * columns, 1.43 * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        draw_row(line, images, name)
    figure.savefig(path, dpi=130)


def draw_row(axes: Any, images: Tensor, name: str) -> None:
    for axis, image in zip(axes, images, strict=True):
        axis.imshow(image.numpy(), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel(name, color=INK)
