"""Recipes: named functions that return a full config. A variation is `dataclasses.replace`, a new experiment a new one.

Each docstring gives the source, the expected time and metric, and the command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.config import TrainConfig
from training.recipes.backbone import cpu_backbone
from training.recipes.compare import (
    cpu_dinov1,
    cpu_dinov2,
    cpu_dinov3,
    cpu_mocov2,
    cpu_mocov3,
    cpu_simclr,
    vitl16_dinov2,
    vits16_dinov1,
)
from training.recipes.lab import lab_healthy, lab_induced, lab_induced_gram, lab_unstressed
from training.recipes.laptop import (
    cpu_adapt,
    cpu_anchor,
    cpu_continue,
    cpu_continue_naive,
    cpu_demo,
    cpu_folder,
    cpu_real,
)
from training.recipes.published import vit7b16_adapt, vit7b16_anchor, vit7b16_pretrain, vitl16_im1k


@dataclass(frozen=True)
class Recipe:
    """A named config with the phase it belongs to."""

    name: str
    phase: str
    summary: str
    build: Callable[[], TrainConfig]


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("cpu_demo", "pretrain", "built-in scenes, 5 minutes on 2 cores", cpu_demo),
        Recipe("cpu_real", "pretrain", "a pack of real cut-outs, under 30 minutes on 2 cores", cpu_real),
        Recipe("cpu_backbone", "pretrain", "the backbone that ships with the workbench, 35 CPU-minutes", cpu_backbone),
        Recipe("cpu_folder", "pretrain", "any folder of images, under 30 minutes on 2 cores", cpu_folder),
        Recipe("cpu_continue", "pretrain", "from given weights (--start.weights), heads first", cpu_continue),
        Recipe("cpu_continue_naive", "pretrain", "the same without care, to be compared", cpu_continue_naive),
        Recipe("cpu_dinov1", "pretrain", "compare: centering, frozen-length prototypes", cpu_dinov1),
        Recipe("cpu_dinov2", "pretrain", "compare: Sinkhorn, iBOT, KoLeo, weight-normed heads", cpu_dinov2),
        Recipe("cpu_dinov3", "pretrain", "compare: Sinkhorn, iBOT, KoLeo, plain heads", cpu_dinov3),
        Recipe("cpu_simclr", "pretrain", "compare: the views of a batch against each other", cpu_simclr),
        Recipe("cpu_mocov2", "pretrain", "compare: a query against a queue of keys", cpu_mocov2),
        Recipe("cpu_mocov3", "pretrain", "compare: queries against the keys of the batch", cpu_mocov3),
        Recipe("vits16_dinov1", "pretrain", "DINO's ViT-S/16 figures, for a folder of ImageNet", vits16_dinov1),
        Recipe("vitl16_dinov2", "pretrain", "DINOv2's ViT-L figures, for a folder of images", vitl16_dinov2),
        Recipe("vitl16_im1k", "pretrain", "the official ViT-L/16 figures, for a folder of ImageNet", vitl16_im1k),
        Recipe("vit7b16_pretrain", "pretrain", "the official ViT-7B/16 figures, stage 1", vit7b16_pretrain),
        Recipe("lab_healthy", "pretrain", "lab: the healthy anchor, 5 minutes on one core", lab_healthy),
        Recipe("lab_unstressed", "pretrain", "lab: goes on without stress (--start.fork)", lab_unstressed),
        Recipe("lab_induced", "pretrain", "lab: an induced dense degradation (--start.fork)", lab_induced),
        Recipe("cpu_anchor", "anchor", "Gram anchoring of a cpu_demo run (--start.fork)", cpu_anchor),
        Recipe("lab_induced_gram", "anchor", "lab: Gram against the induced stress (--start.fork)", lab_induced_gram),
        Recipe("vit7b16_anchor", "anchor", "the official ViT-7B/16 figures, stage 2", vit7b16_anchor),
        Recipe("cpu_adapt", "adapt", "mixed larger crops after cpu_anchor (--start.fork)", cpu_adapt),
        Recipe("vit7b16_adapt", "adapt", "the official ViT-7B/16 figures, stage 3", vit7b16_adapt),
    )
}

__all__ = [
    "RECIPES",
    "Recipe",
    "cpu_adapt",
    "cpu_anchor",
    "cpu_backbone",
    "cpu_continue",
    "cpu_continue_naive",
    "cpu_demo",
    "cpu_dinov1",
    "cpu_dinov2",
    "cpu_dinov3",
    "cpu_folder",
    "cpu_mocov2",
    "cpu_mocov3",
    "cpu_real",
    "cpu_simclr",
    "lab_healthy",
    "lab_induced",
    "lab_induced_gram",
    "lab_unstressed",
    "vit7b16_adapt",
    "vit7b16_anchor",
    "vit7b16_pretrain",
    "vitl16_dinov2",
    "vitl16_im1k",
    "vits16_dinov1",
]
