"""A training that takes seconds: the same code and data as `cpu_demo`, everything small."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

from training.config import TrainConfig
from training.phases.anchor import AnchorConfig, GramConfig
from training.phases.pretrain import PretrainConfig
from training.recipes import cpu_demo

OVERRIDES = [
    *("--data.count", "24", "--data.backgrounds", "4", "--batch.batch-size", "4", "--batch.workers", "0"),
    *("--augment.local-crops", "2", "--objective.backbone.embed-dim", "32", "--objective.backbone.ffn-hidden", "64"),
    *("--objective.backbone.num-heads", "2", "--objective.backbone.depth", "2", "--objective.ibot-weight", "0.2"),
    *("--objective.backbone.drop-path", "0.2", "--objective.backbone.rope-rescale", "2"),
    *("--evaluation.suite.train-scenes", "6", "--evaluation.suite.test-scenes", "4", "--evaluation.suite.bank", "30"),
    *("--evaluation.suite.queries", "8", "--evaluation.suite.probe-iterations", "3", "--evaluation.probes", "2"),
    *("--loop.log-every", "2", "--loop.probe-every", "6", "--loop.evaluate-every", "12", "--loop.save-every", "3"),
    *("--loop.threads", "1"),
]


def tiny_config(steps: int = 12, **changes) -> TrainConfig:
    """The config that OVERRIDES describe, for use without a command line."""
    base = cpu_demo()
    suite = replace(base.evaluation.suite, train_scenes=6, test_scenes=4, bank=30, queries=8, probe_iterations=3)
    backbone = replace(
        base.objective.backbone, embed_dim=32, ffn_hidden=64, num_heads=2, depth=2, drop_path=0.2, rope_rescale=2.0
    )
    config = replace(
        base,
        data=replace(base.data, count=24, backgrounds=4),
        augment=replace(base.augment, local_crops=2),
        batch=replace(base.batch, batch_size=4, workers=0),
        objective=replace(base.objective, backbone=backbone, ibot_weight=0.2),
        evaluation=replace(base.evaluation, suite=suite, probes=2),
        loop=replace(base.loop, steps=steps, log_every=2, probe_every=6, evaluate_every=12, save_every=3, threads=1),
    )
    return replace(config, **changes)


def command(run: Path, *more: str, recipe: str = "cpu_demo") -> list[str]:
    return [sys.executable, "-m", "training", "pretrain", recipe, "--run", str(run), *more]


def train(run: Path, *more: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the tiny training in a process of its own, to its end."""
    return subprocess.run(
        command(run, *OVERRIDES, *more),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"COLUMNS": "200"},
    )


def weights_hash(run: Path, step: int, role: str = "teacher") -> str:
    """SHA-256 of the published weights of `step`."""
    return hashlib.sha256((run / "backbones" / role / f"step-{step:06d}.safetensors").read_bytes()).hexdigest()


def anchored(config: TrainConfig, gram: GramConfig, **changes) -> TrainConfig:
    """`config` with its objective under Gram anchoring."""
    pretrain = config.objective
    known = {field.name: getattr(pretrain, field.name) for field in fields(PretrainConfig)}
    return replace(config, objective=AnchorConfig(**(known | {"gram": gram} | changes)))
