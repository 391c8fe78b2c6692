"""Runs that nobody trained: real photographs, features that come from their colours and sharpen over the steps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.features import Features
from workbench.run_files import append_line
from workbench.runs import RunWriter

INFO = {
    "phase": "pretrain",
    "recipe": "cpu_demo",
    "parent": None,
    "code_version": "0.1.0",
    "seed": 0,
    "steps": 600,
    "machine": {"python": "3.11", "torch": "2", "device": "cpu", "threads": 1},
    "input": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}
CAPTIONS = [
    {"en": "a temple roof", "zh": "寺庙的屋顶"},
    {"en": "a flower", "zh": "一朵花"},
    {"en": "a temple roof, mirrored", "zh": "镜像的寺庙屋顶"},
    {"en": "a flower, mirrored", "zh": "镜像的花"},
]


def photographs(count: int, side: int) -> Tensor:
    """uint8 [count, 3, side, side]: the two photographs of scikit-learn and their mirror images."""
    from sklearn.datasets import load_sample_images

    raw = (
        torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images])
        .permute(0, 3, 1, 2)
        .float()
    )
    square = F.interpolate(raw[..., :420, 100:520], (side, side), mode="bilinear", antialias=True)
    both = torch.cat([square, square.flip(-1)])
    return both[torch.arange(count) % 4].round().clamp(0, 255).to(torch.uint8)


def features_at(images: Tensor, step: int, *, patch_size: int = 16, dim: int = 64, wash: float = 0.0) -> Features:
    """Patch tokens from colour and texture under a fixed random projection, buried in noise at step 0.

    `wash` in [0, 1] pulls each image's patches towards their mean: all become alike.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = images.float() / 255 - 0.5
    mean = F.avg_pool2d(pixels, patch_size)
    spread = F.avg_pool2d(pixels.square(), patch_size) - mean.square()
    raw = torch.cat([3 * mean, 6 * spread.clamp_min(0).sqrt()], dim=1)
    signal = torch.tanh(raw.permute(0, 2, 3, 1) @ torch.randn(6, dim, generator=generator))
    noise = torch.randn(signal.shape, generator=generator)
    share = 1 - math.exp(-step / 150)
    patches = share * signal + (1 - 0.9 * share) * 0.6 * noise
    patches = torch.lerp(patches, patches.mean(dim=(1, 2), keepdim=True), wash)
    return Features(patches, patches.mean(dim=(1, 2)), patches[:, 0, :4])


def create(path: Path, *, count: int = 4, side: int = 224, **info: object) -> tuple[RunWriter, Tensor]:
    """A run at step 0 with its probe images written, and these images."""
    writer = RunWriter.create(path, info={**INFO, **info}, config={})
    (path / "resume").mkdir()
    images = photographs(count, side)
    captions = [CAPTIONS[index % len(CAPTIONS)] for index in range(count)]
    writer.probe_images(images, patch_size=16, captions=captions)
    writer.event(0, "info", "started", "recipe cpu_demo, seed 0")
    return writer, images


def log(writer: RunWriter, step: int) -> None:
    """One line of metrics."""
    generator = torch.Generator().manual_seed(step)
    wobble = torch.randn(4, generator=generator).mul(0.06).tolist()
    decay = math.exp(-step / 220)
    values = {
        "loss/total": 4.2 + 5.4 * decay + 3 * wobble[0],
        "loss/dino": 2.6 + 2.9 * decay + wobble[1],
        "loss/ibot": 1.6 + 2.5 * decay + wobble[2],
        "loss/koleo": -0.4 + 0.2 * decay + 0.3 * wobble[3],
        "rate/lr": 5e-4 * min(1.0, step / 60),
        "rate/momentum": 0.994,
        "speed/images_per_second": 88 + 40 * wobble[0],
    }
    writer.metrics(step, 0.31 * step, values)


def evaluate(writer: RunWriter, images: Tensor, step: int, *, wash: float = 0.0) -> None:
    """Probe features and evaluations at `step`: the dense score, with its error, peaks at step 420, then decays."""
    rise, fall = 1 - math.exp(-step / 130), 0.06 * max(0, step - 420) / 180
    values = {
        "dense/patch_knn": 0.505 + 0.21 * rise - fall,
        "dense/patch_knn:se": 0.012,
        "dense/linear_miou": 0.18 + 0.24 * rise - fall,
        "global/knn": 0.3 + 0.32 * rise,
        "health/cls_patch_cosine": 0.12 + 0.5 * step / 600,
        "health/near_cosine": 0.62 + 0.2 * rise,
        "health/far_cosine": 0.31 + 0.1 * rise,
        "health/within_variance": 0.7 - 0.3 * rise,
        "health/effective_rank": 12 + 21 * rise,
        "health/norm_outliers": 0.001,
    }
    writer.evaluation(step, 0.31 * step, "teacher", values)
    writer.probe_features(step, features_at(images, step, wash=wash))


def peak(writer: RunWriter, step: int, **fields: object) -> None:
    """What the detector writes at `step`: the dense score has peaked, and a Gram teacher is advised."""
    row = {"step": step, "level": "warn", "kind": "dense-peak", "text": "patch k-NN is past its best", **fields}
    append_line(writer.path / "events.jsonl", json.dumps(row).encode())


def grow(
    writer: RunWriter, images: Tensor, start: int, stop: int, *, every: int = 20, log_every: int = 5, wash: float = 0.0
) -> None:
    """Steps `start` to `stop` inclusive: metrics every `log_every`, an evaluation every `every` steps."""
    for step in range(start, stop + 1, log_every):
        log(writer, step)
        if step % every == 0:
            evaluate(writer, images, step, wash=wash)
