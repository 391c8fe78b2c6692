"""Runs and configs for the doctor: a healthy one of each, and what to change to break it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from training.config import TrainConfig, as_tree
from training.recipes import cpu_demo
from workbench.features import Features
from workbench.runs import RunWriter

STEPS, LOG, PROBE, EVALUATE = 800, 20, 200, 100
Series = Callable[[int], float | None]


def tree_of(config: TrainConfig, **changes: Any) -> dict[str, Any]:
    """The resolved config as its run records it, with `changes` by path ("loop__steps" is loop.steps)."""
    return edited(as_tree(config.resolve()), **changes)


def edited(tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with values set by path; a missing branch is made."""
    tree = copy.deepcopy(tree)
    for path, value in changes.items():
        *branch, leaf = path.split("__")
        place = tree
        for key in branch:
            place = place.setdefault(key, {})
        place[leaf] = value
    return tree


def demo_tree(**changes: Any) -> dict[str, Any]:
    """`cpu_demo` as the healthy run here was configured."""
    loop = {"loop__log_every": LOG, "loop__probe_every": PROBE, "loop__evaluate_every": EVALUATE}
    return tree_of(cpu_demo(), **(loop | changes))


HEALTHY: dict[str, Series] = {
    "loss/dino": lambda step: 4.75 - 1.0 * step / STEPS,
    "loss/koleo": lambda step: 1.6 - 1.2 * step / STEPS,
    "loss/total": lambda step: 4.9 - 1.2 * step / STEPS,
    "teacher/entropy": lambda step: 0.72 - 0.1 * step / STEPS,
    "teacher/prototypes_used": lambda step: 0.8,
    "teacher/momentum": lambda step: 0.99,
    "gradient_norm/backbone": lambda step: 2.5 if step <= LOG else 0.7 + 0.1 * math.sin(step),
    "rate/lr": lambda step: 0.004 * (1 - 0.9 * step / STEPS),
    "rate/weight_decay": lambda step: 0.4,
    "speed/images_per_second": lambda step: 90 + 5 * math.cos(step),
    "speed/data_wait": lambda step: 0.02,
}
SCORES: dict[str, Series] = {
    "dense/patch_knn": lambda step: 0.35 + 0.08 * step / STEPS,
    "global/knn": lambda step: 0.21 + 0.1 * step / STEPS,
    "health/cls_patch_cosine": lambda step: 0.65 - 0.3 * step / STEPS,
    "health/effective_rank": lambda step: 45.0,
    "health/norm_outliers": lambda step: 0.001,
}
ARCHITECTURE = {"class": "VisionTransformer", "config": {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}}


def write_run(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Series] | None = None,
    scores: Mapping[str, Series] | None = None,
    events: Iterable[tuple[int, str, str, str]] = (),
    steps: Iterable[int] | None = None,
    ended: bool = True,
    probes: Iterable[int] = range(0, STEPS + 1, PROBE),
    weights: Iterable[int] | None = None,
    architecture: Mapping[str, Any] = ARCHITECTURE,
) -> Path:
    """A run directory in `folder` as a trainer leaves it; healthy where nothing else is said."""
    tree = demo_tree() if config is None else config
    about = {
        "phase": "pretrain",
        "recipe": "cpu_demo",
        "seed": tree.get("seed", 0),
        "steps": STEPS,
        "parent": None,
        "input": {"mean": tree["augment"]["mean"], "std": tree["augment"]["std"]},
    }
    curves, evaluated = HEALTHY | dict(metrics or {}), SCORES | dict(scores or {})
    probes = list(probes)
    with RunWriter.create(folder, info=about | dict(info or {}), config=tree) as writer:
        (folder / "resume").mkdir()
        writer.event(0, "info", "started", "recipe cpu_demo, seed 0")
        for step in range(LOG, STEPS + 1, LOG) if steps is None else steps:
            writer.metrics(step, step / 3, {name: curve(step) for name, curve in curves.items()})
        for step in range(0, STEPS + 1, EVALUATE):
            writer.evaluation(step, step / 3, "teacher", {name: curve(step) for name, curve in evaluated.items()})
        for step in probes:
            writer.probe_features(step, Features(torch.zeros(1, 2, 3, 4), torch.zeros(1, 4), torch.zeros(1, 0, 4)))
        for step in probes if weights is None else weights:
            writer.backbone("teacher", step, architecture, {"weight": torch.zeros(2)})
        for event in events:
            writer.event(*event)
        if ended:
            writer.event(STEPS, "info", "finished", "finished")
    return folder
