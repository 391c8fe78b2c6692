"""Recipes for two CPU cores: a narrow vision transformer on drawn scenes, a labelled pack, or a folder of images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from training.config import TrainConfig
from training.data.batch import BatchConfig
from training.data.mixing import ResolutionMix
from training.data.sources import FolderConfig, ScenesConfig
from training.evaluation.plan import EvaluationConfig
from training.phases.anchor import AdaptConfig, AnchorConfig, GramConfig
from training.phases.pretrain import PretrainConfig
from training.recipes.laptop_parts import cutout_scenes, laptop_crops, laptop_networks, laptop_optim, laptop_pretrain
from training.schedules import Schedule, constant
from training.start import StartConfig
from training.trainer import LoopConfig
from workbench.scenes import SceneConfig


def _calm_scenes() -> SceneConfig:
    """Scenes that 25,000 images can teach."""
    return SceneConfig(light=0.08, rotation_degrees=20.0)


def cpu_demo() -> TrainConfig:
    """A vision transformer learns from built-in scenes while you watch.

    DINO with Sinkhorn-Knopp and KoLeo on a ViT of 0.5 M parameters; needs no data and no network.
    Expected: about 5 minutes on 2 CPU cores, first PCA map at once. One thread computes, so that the page and its
    browser do not slow it to a crawl, and the result is the same on any number of cores.
    Expected metrics, step 0 to 800: patch k-NN 30 to about 40 %; linear-probe mIoU within its error of step 0 (16.2 to
    15.0 % on one machine, 17.4 % on another); global k-NN 17.5 to 28.3 %. Standard errors are about 3 points, 1.5 for
    mIoU, 4 for global k-NN: the demo shows how features change, and is no yardstick. The figures are in docs/log.md.
    Command: make demo, or: python -m training pretrain cpu_demo --run runs/demo
    """
    calm = _calm_scenes()
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


def cpu_anchor() -> TrainConfig:
    """Gram anchoring of a `cpu_demo` run: pretraining goes on, patch similarities held to those of its own teacher.

    DINOv3 section 4.2, scaled down: the Gram teacher sees the crops at twice the size, without distortions, and is
    refreshed three times. Weight 0 to 2 and local crops' share 1 to 0.5 in the first tenth. To anchor to an earlier
    teacher: --objective.gram.teacher run:runs/demo@step=200. Expected: about 4 minutes on 2 cores.
    Command: python -m training anchor cpu_anchor --run runs/anchor --start.fork run:runs/demo@step=800
    """
    base = cpu_demo()
    return replace(
        base,
        recipe="cpu_anchor",
        seed=1,  # other batches than the parent's first ones
        augment=replace(base.augment, gram_size=96),
        objective=AnchorConfig(
            **_after_pretraining(),
            local_weight=Schedule(peak=1.0, end=0.5, shape="cosine", shape_steps=0.1),
            gram=GramConfig(
                weight=Schedule(peak=0.0, end=2.0, shape="cosine", shape_steps=0.1),
                first_refresh=0.25,
                refresh_every=0.25,
                max_refreshes=3,
            ),
        ),
        optim=laptop_optim(lr=constant(5e-4)),
        loop=replace(base.loop, steps=400, save_every=50),
    )


def cpu_adapt() -> TrainConfig:
    """High-resolution adaptation of a `cpu_anchor` run: larger crops of mixed sizes, a Gram teacher that stays.

    DINOv3 section 5.1, scaled down: global and Gram crops are an eighth of the published sizes, local ones about 3/14
    (24 pixels for 112, as in pretraining), probabilities as published. Student and Gram teacher start as the parent's
    EMA teacher, the learning rate rises over the first third. Expected: about 5 minutes on 2 cores.
    Command: python -m training adapt cpu_adapt --run runs/adapt --start.fork run:runs/anchor@step=400
    """
    base = cpu_demo()
    mix = ((64, 24, 96, 0.3), (96, 24, 144, 0.3), (96, 40, 144, 0.3), (96, 48, 144, 0.05), (96, 72, 144, 0.05))
    return replace(
        base,
        recipe="cpu_adapt",
        seed=2,
        data=ScenesConfig(count=2048, scene=replace(_calm_scenes(), objects=(1, 2), size=(160, 160))),
        resolutions=ResolutionMix(choices=mix),
        batch=BatchConfig(batch_size=16, workers=1),
        objective=AdaptConfig(
            **_after_pretraining(), local_weight=constant(0.5), gram=GramConfig(weight=constant(1.5))
        ),
        start=StartConfig(student="teacher"),
        optim=laptop_optim(lr=Schedule(peak=0.0, end=2e-4, shape="cosine", shape_steps=1 / 3, convention="v2")),
        loop=replace(base.loop, steps=200, save_every=50),
    )


def cpu_continue() -> TrainConfig:
    """Continued pretraining from given weights: new heads learn on a frozen backbone, then it follows at a low rate.

    For a backbone without its heads (any of this architecture), whose features should not be lost. Heads alone for the
    first quarter, then the backbone at a tenth of their rate. Measured beside `cpu_continue_naive` in docs/log.md: from
    weights as young as `cpu_demo`'s it delays the dip of dense scores and does not pay; it is meant for older ones.
    Command: python -m training pretrain cpu_continue --run runs/continue --start.weights run:runs/demo@step=800
    """
    base = cpu_continue_naive()
    return replace(
        base,
        recipe="cpu_continue",
        optim=replace(base.optim, freeze_backbone_steps=0.25, backbone_lr_multiplier=0.1),
    )


def cpu_continue_naive() -> TrainConfig:
    """The same data and budget as `cpu_continue` without its care: all learns at once, at the rate of a first training.

    Untrained heads pull at the features while they learn; here to be compared.
    Command: python -m training pretrain cpu_continue_naive --run runs/naive --start.weights run:runs/demo@step=800
    """
    base = cpu_demo()
    return replace(
        base,
        recipe="cpu_continue_naive",
        seed=3,
        objective=PretrainConfig(**_after_pretraining()),
        loop=replace(base.loop, steps=400, evaluate_every=40),
    )


def _after_pretraining() -> dict[str, Any]:
    """The networks of `cpu_demo`, with a teacher that moves as slowly as at the end of its run."""
    return laptop_networks() | {"momentum": constant(0.99)}
