"""Recipes: named functions that return a full config. A variation is `dataclasses.replace`, a new experiment a new one.

Each docstring gives the source, the expected time and metric, and the command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from training.config import TrainConfig
from training.data.augment import AugmentConfig
from training.data.batch import BatchConfig
from training.data.masking import MaskConfig
from training.data.sources import FolderConfig, ScenesConfig
from training.evaluation.plan import EvaluationConfig
from training.evaluation.suite import SuiteConfig
from training.heads import HeadConfig
from training.optim import OptimConfig
from training.phases.pretrain import PretrainConfig
from training.recipes_compare import (
    cpu_dinov1,
    cpu_dinov2,
    cpu_dinov3,
    cpu_mocov2,
    cpu_mocov3,
    cpu_simclr,
    vitl16_dinov2,
    vits16_dinov1,
)
from training.recipes_laptop import cutout_scenes, laptop_crops, laptop_optim, laptop_pretrain
from training.schedules import Schedule
from training.trainer import LoopConfig
from workbench.backbones import ViTConfig
from workbench.scenes import SceneConfig


@dataclass(frozen=True)
class Recipe:
    """A named config with the phase it belongs to."""

    name: str
    phase: str
    summary: str
    build: Callable[[], TrainConfig]


def cpu_demo() -> TrainConfig:
    """A vision transformer learns from built-in scenes while you watch.

    DINO with Sinkhorn-Knopp and KoLeo on a ViT of 0.5 M parameters; needs no data and no network.
    Expected: about 5 minutes on 2 CPU cores, first PCA map at once. One thread computes, so that the page and its
    browser do not slow it to a crawl, and the result is the same on any number of cores.
    Expected metrics, step 0 to 800: patch k-NN 30.0 to 39.7 %; linear-probe mIoU no better than at step 0 (16.2 to
    15.0 %); global k-NN 17.5 to 28.3 %, its highest (31.7 %) near step 380. Standard errors are about 3 points, 4 for
    global k-NN: the demo shows how features change, and is no yardstick. The figures are in docs/log.md.
    Command: make demo, or: python -m training pretrain cpu_demo --run runs/demo
    """
    calm = SceneConfig(light=0.08, rotation_degrees=20.0)  # scenes that 25,000 images can teach
    return TrainConfig(
        recipe="cpu_demo",
        data=ScenesConfig(count=2048, scene=replace(calm, objects=(1, 2))),
        augment=laptop_crops(brightness=0.2, contrast=0.2, hue=0.05, grayscale=0.0),
        batch=BatchConfig(batch_size=32, workers=1),
        objective=laptop_pretrain(),
        optim=laptop_optim(),
        loop=LoopConfig(steps=800, log_every=5, probe_every=10, evaluate_every=20, save_every=100, threads=1),
        evaluation=EvaluationConfig.quick(scene=calm),
    )


def cpu_real() -> TrainConfig:
    """Real cut-outs on real backgrounds, on two CPU cores.

    DINO with Sinkhorn-Knopp and KoLeo on a ViT of 0.5 M parameters, on a pack of labelled cut-outs (docs/data.md),
    reduced to 42 objects of 14 categories, which is as much as 64,000 images teach it. Measured: docs/cpu-real.md.
    Command: python -m training pretrain cpu_real --data.library PATH --run runs/real
    """
    return TrainConfig(
        recipe="cpu_real",
        data=cutout_scenes(),
        augment=laptop_crops(),
        batch=BatchConfig(batch_size=32, workers=1),
        objective=laptop_pretrain(),
        optim=laptop_optim(),
        loop=LoopConfig(steps=2000, log_every=20, probe_every=100, evaluate_every=500, save_every=200, threads=1),
    )


def cpu_folder() -> TrainConfig:
    """Your own folder of images, on two CPU cores: the first look at a data set.

    As `cpu_real`. The probe images are photographs of the folder; labelled evaluations use the built-in scenes.
    Expected: about 20 minutes on 2 cores. What it reaches depends on the images.
    Command: python -m training pretrain cpu_folder --data.path PATH --run runs/mine
    """
    base = cpu_real()
    return replace(
        base,
        recipe="cpu_folder",
        data=FolderConfig(path="images", short_side=160),
    )


def vitl16_im1k() -> TrainConfig:
    """DINOv3's ViT-L/16 on ImageNet-1k, the figures of the released recipe (vitl_im1k_lin834.yaml).

    arXiv 2508.10104. Global batch 2048, 125,000 steps: published as about 14 hours on 32 H100, k-NN 82.0, linear
    83.5. This version trains in one process; the batch is what one process would have to hold.
    Command: python -m training pretrain vitl16_im1k --data.path /data/imagenet/train --run runs/vitl16
    """
    steps, epoch = 125_000, 1250  # --loop.steps shortens the run: the schedules below are fractions of it
    head = HeadConfig(hidden=2048, bottleneck=256, prototypes=65536)
    return TrainConfig(
        recipe="vitl16_im1k",
        data=FolderConfig(path="imagenet/train", short_side=512),
        augment=AugmentConfig(),
        masks=MaskConfig(),
        batch=BatchConfig(batch_size=2048, workers=10),
        objective=PretrainConfig(
            backbone=ViTConfig.vit_large(
                num_registers=0, mask_k_bias=False, norm_eps=1e-6, drop_path=0.3, rope_rescale=None
            ),
            dino_head=head,
            ibot_head=head,
            koleo_group=64,
            teacher_temperature=Schedule(start=0.04, peak=0.07, warmup_steps=0.3),
            momentum=Schedule(peak=0.992, end=1.0, shape="cosine"),
        ),
        optim=OptimConfig(
            lr=Schedule(peak=1e-3, end=1e-6, warmup_steps=0.1, shape="cosine"),
            weight_decay=Schedule(peak=0.04, end=0.4, shape="cosine"),
            lr_scaling="sqrt_wrt_1024",
            betas=(0.9, 0.999),
            layer_decay=0.9,
            clip_norm=3.0,
            freeze_last_layer_steps=0.01,
        ),
        loop=LoopConfig(
            steps=steps,
            log_every=50,
            probe_every=epoch,
            evaluate_every=5 * epoch,
            save_every=3 * epoch,
            precision="bf16",
        ),
        evaluation=EvaluationConfig(suite=SuiteConfig(size=224), probe_size=(224, 224)),
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("cpu_demo", "pretrain", "built-in scenes, 5 minutes on 2 cores", cpu_demo),
        Recipe("cpu_real", "pretrain", "a pack of real cut-outs, under 30 minutes on 2 cores", cpu_real),
        Recipe("cpu_folder", "pretrain", "any folder of images, under 30 minutes on 2 cores", cpu_folder),
        Recipe("cpu_dinov1", "pretrain", "compare: centering, frozen-length prototypes", cpu_dinov1),
        Recipe("cpu_dinov2", "pretrain", "compare: Sinkhorn, iBOT, KoLeo, weight-normed heads", cpu_dinov2),
        Recipe("cpu_dinov3", "pretrain", "compare: Sinkhorn, iBOT, KoLeo, plain heads", cpu_dinov3),
        Recipe("cpu_simclr", "pretrain", "compare: the views of a batch against each other", cpu_simclr),
        Recipe("cpu_mocov2", "pretrain", "compare: a query against a queue of keys", cpu_mocov2),
        Recipe("cpu_mocov3", "pretrain", "compare: queries against the keys of the batch", cpu_mocov3),
        Recipe("vits16_dinov1", "pretrain", "DINO's ViT-S/16 figures, for a folder of ImageNet", vits16_dinov1),
        Recipe("vitl16_dinov2", "pretrain", "DINOv2's ViT-L figures, for a folder of images", vitl16_dinov2),
        Recipe("vitl16_im1k", "pretrain", "the official ViT-L/16 figures, for a folder of ImageNet", vitl16_im1k),
    )
}
