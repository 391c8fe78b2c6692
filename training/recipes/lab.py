"""The degradation lab: a healthy anchor, an *induced* dense degradation, and Gram anchoring against it, on two cores.

`make lab` chains them: `lab_healthy` -> `lab_induced` (the labelled stressor of `training.phases.stress`, no published
and no natural effect) -> `lab_induced_gram` with the stress still on; `lab_unstressed` is the control from the healthy
anchor, and from the degraded run what the end of the stress alone brings. Results: docs/degradation-lab.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from training.config import TrainConfig
from training.data.batch import BatchConfig
from training.data.sources import ScenesConfig
from training.evaluation.plan import EvaluationConfig
from training.evaluation.suite import SuiteConfig
from training.phases.anchor import AnchorConfig, GramConfig
from training.phases.pretrain import PretrainConfig
from training.phases.stress import StressConfig
from training.recipes.laptop_parts import laptop_crops, laptop_networks, laptop_optim, laptop_pretrain
from training.schedules import Schedule, constant
from training.trainer import LoopConfig
from workbench.scenes import SceneConfig

LEAK_WEIGHT, GRAM_WEIGHT = 10.0, 100.0
"""The stress: raised until patch k-NN fell by five points on a pack of cut-outs, see docs/log.md. Gram: taken once to
stand up to it, not searched; DINOv3 has weight 2, against no such stress."""


def lab_healthy() -> TrainConfig:
    """The lab's anchor: plain DINO and KoLeo as in `cpu_real`, at a constant rate, so that arms can go on from it.

    Source: DINO, arXiv 2104.14294; Sinkhorn-Knopp and KoLeo as in DINOv2, arXiv 2304.07193. Built-in scenes, or a pack
    of cut-outs (docs/data.md). Three objects of a class are as much as 25,000 images teach. Expected: 3 minutes on one
    core; above its own step 0 by 0.011 in patch k-NN and 0.014 in mIoU on built-in scenes (docs/degradation-lab.md), by
    0.045 and, on two seeds of three, 0.013 on a pack (docs/degradation-lab-pack.md).
    Command: python -m training pretrain lab_healthy --data.library PATH --run runs/lab/seed0-healthy
    """
    return TrainConfig(
        recipe="lab_healthy",
        data=ScenesConfig(per_class=3, count=4000, scene=SceneConfig(objects=(1, 2))),
        augment=laptop_crops(),
        batch=BatchConfig(batch_size=32, workers=1),
        objective=laptop_pretrain(),
        optim=laptop_optim(lr=Schedule(peak=4e-3, warmup_steps=0.03)),
        loop=LoopConfig(
            steps=800, log_every=20, probe_every=50, evaluate_every=50, save_every=100, keep_every=200, threads=1
        ),
        evaluation=EvaluationConfig(
            suite=SuiteConfig(train_scenes=150, test_scenes=150, bank=300, queries=200, probe_iterations=30)
        ),
    )


def lab_unstressed() -> TrainConfig:
    """Control arm: training goes on from a fork as if nothing had happened, without stress and without Gram.

    From the healthy anchor it is the control of the induced degradation; from the degraded run it shows what the end
    of the stress alone brings back. Expected: 2 minutes on one core.
    Command: python -m training pretrain lab_unstressed --start.fork run:runs/lab/seed0-healthy@step=800
    --run runs/lab/seed0-control
    """
    return _arm("lab_unstressed", PretrainConfig(**_settled()))


def lab_induced() -> TrainConfig:
    """Stress arm: the same with an *induced* dense degradation, which reproduces no published effect.

    Eight random patch tokens of each global crop must also predict the crop's CLS prototypes (`StressConfig`), so
    patches give up what tells them from each other. Found by this project, see docs/degradation-lab.md. Expected: 2
    minutes on one core; patch k-NN falls within 150 steps by 3 points on built-in scenes, by 5 on a pack.
    Command: python -m training pretrain lab_induced --start.fork run:runs/lab/seed0-healthy@step=800
    --run runs/lab/seed0-induced
    """
    return _arm("lab_induced", PretrainConfig(**_settled(), stress=StressConfig(leak_weight=LEAK_WEIGHT)))


def lab_induced_gram() -> TrainConfig:
    """Cure arm: Gram anchoring to a healthy teacher from a degraded fork, the *induced* stress still on.

    DINOv3 section 4.2 (arXiv 2508.10104) scaled down: the Gram teacher stays, sees the global crops as they are, and
    has a larger weight, against a stress that a real training does not have. With --objective.gram.teacher fork it is
    the degraded teacher, a control. Expected: 1 minute on one core; at least half of the lost patch k-NN comes back.
    Command: python -m training anchor lab_induced_gram --start.fork run:runs/lab/seed0-induced@step=150
    --objective.gram.teacher run:runs/lab/seed0-healthy@step=800 --run runs/lab/seed0-cured
    """
    objective = AnchorConfig(
        **_settled(), stress=StressConfig(leak_weight=LEAK_WEIGHT), gram=GramConfig(weight=constant(GRAM_WEIGHT))
    )
    base = _arm("lab_induced_gram", objective)
    return replace(base, loop=replace(base.loop, steps=150))


def _arm(recipe: str, objective: PretrainConfig) -> TrainConfig:
    """`lab_healthy` from a fork on: same scenes and rate, no warm-up, other batches than the anchor's first ones."""
    base = lab_healthy()
    return replace(
        base,
        recipe=recipe,
        seed=100,
        objective=objective,
        optim=laptop_optim(lr=constant(4e-3)),
        loop=replace(base.loop, steps=300, probe_every=25, evaluate_every=25, save_every=50, keep_every=50),
    )


def _settled() -> dict[str, Any]:
    """The networks of `lab_healthy`, with a teacher that moves as slowly as at the end of its run."""
    return laptop_networks() | {"momentum": constant(0.99)}
