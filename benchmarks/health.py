"""What share of training time do the health gauges take?

Training steps of a recipe and the gauges with their standard errors take turns on one thread, so that load on the
machine hits both alike; medians of the process's CPU time. Batches come from built-in scenes and are cut beforehand, as
a worker does it while the loop computes. The share is that of the gauges in the steps between two
evaluations of the recipe. Counted: gauges and bootstrap on features that are there, LiDAR and the match with noise
images included. Shown beside it, not counted: encoding the images that these two alone need, and the whole evaluation
with its labelled scenes, linear probe and k-NN.

    python benchmarks/health.py [RECIPE ...]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from training import recipes
from training.config import TrainConfig
from training.data.batch import Batch, BatchStream
from training.data.sources import ScenesConfig
from training.evaluation.plan import EvaluationPlan
from training.evaluation.suite import Suite
from training.optim import build_optimizer, clip_gradients
from workbench.analysis.health import dense_health_with_errors, position_code
from workbench.backbones import VisionTransformer

ROUNDS = 8
STEPS = 3
"""Training steps of a round."""


def training_of(config: TrainConfig) -> tuple[VisionTransformer, BatchStream, Callable[[Batch, int], None]]:
    """The backbone that is evaluated, the batches, and one training step as the loop does it."""
    phase = config.objective.build(seed=config.seed)
    stream = config.stream(config.data.build())
    optimizer = build_optimizer(phase.trainable(), config.optim, config.objective.backbone.depth)

    def step(batch: Batch, number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        phase.losses(batch, number).total.backward()
        clip_gradients(phase.trainable(), config.optim.clip_norm)
        optimizer.step()
        phase.after_step(number)

    return next(iter(phase.backbones().values())), stream, step


def seconds(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def measure(config: TrainConfig) -> dict[str, float]:
    """Median CPU seconds of one step, of the gauges, of what they alone have encoded, and of a whole evaluation."""
    backbone, stream, step = training_of(config)
    plan = EvaluationPlan(config.evaluation, config.data, patch_size=backbone.patch_size)
    suite = plan.suite(config.augment.mean, config.augment.std)
    sizes = config.evaluation.suite
    side, views = sizes.size, sizes.lidar_images * sizes.lidar_views
    images, extra = (
        torch.randn(sizes.test_scenes, 3, side, side),
        torch.randn(views + sizes.noise_images, 3, side, side),
    )
    times: dict[str, list[float]] = {"step": [], "gauges": [], "encoding": [], "evaluation": []}
    for number in range(ROUNDS + 1):  # the first round only warms up
        batches = [(stream.batch_at(i), i) for i in range(number * STEPS, (number + 1) * STEPS)]
        spent = {"step": seconds(lambda: [step(*batch) for batch in batches]) / STEPS}  # noqa: B023
        with torch.no_grad():
            features = backbone.features(images)
            spent["encoding"] = seconds(lambda: backbone.features(extra))
        code, tokens = position_code(features.patches[:8]), None
        if views:
            tokens = features.cls[:1] + torch.randn(sizes.lidar_images, sizes.lidar_views, features.cls.shape[1])
        spent["gauges"] = seconds(lambda: dense_health_with_errors(features, code=code, views=tokens))  # noqa: B023
        spent["evaluation"] = seconds(lambda: evaluate(suite, backbone)) if number < 3 else times["evaluation"][-1]
        for name, value in spent.items():
            times[name] = [*times[name], value] if number else [value]
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def evaluate(suite: Suite, backbone: VisionTransformer) -> None:
    dict(suite(backbone))


def report(name: str, config: TrainConfig) -> None:
    cost, every = measure(config), config.loop.evaluate_every
    training = every * cost["step"]
    print(f"{name}: {config.evaluation.suite.test_scenes} images every {every} steps of {cost['step']:.3f} s (CPU)")
    for part in ("gauges", "encoding", "evaluation"):
        print(
            f"  {part:10s} {1000 * cost[part]:8.0f} ms  {100 * cost[part] / training:6.2f} % of the time of those steps"
        )


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["cpu_demo", "cpu_real"]:
        config = replace(getattr(recipes, name)(), data=ScenesConfig(count=2048))
        report(name, config.resolve())


if __name__ == "__main__":
    main()
