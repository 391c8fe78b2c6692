"""How far are similarity maps from float32 ones when features travel to the browser as int8 or float16?

    python benchmarks/quantisation.py [--images 4] [--backbones demo run:runs/demo ...]

Features pass through `encode_features` and `decode_features`; cosines of all pairs of patches are compared, a patch
with itself left out. Sources: the trained backbone in the box and a timm ViT-S with random weights, or any specs, on
square and on wide built-in scenes. Then stress on the wide ones, as massive activations are: the one or four channels
of steadiest sign times 10 and times 50, and a channel that is 10 or 50 typical values in every patch.

Beside the largest and the mean error of a cosine: the standard deviation of the exact cosines (what a map has to
show), how often a patch's best match among all others is another one, and how much less similar, by float32, the new
one is at most. Ordinary features have a limit on the largest error; stress has none and is printed as it is.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from torch import Tensor

from workbench.analysis.similarity import unit
from workbench.features import Features
from workbench.images import normalize
from workbench.loading import load_backbone
from workbench.origin import input_statistics
from workbench.scenes import SceneConfig, Scenes, builtin_library
from workbench.views.encode import Transport, decode_features, encode_features

LIMITS: dict[Transport, float] = {"int8": 1e-2, "float16": 1e-3}  # largest error of a cosine, ordinary features
FACTORS = (10, 50)  # of stress


class Difference(NamedTuple):
    largest: float
    mean: float
    spread: float
    """Standard deviation of the exact cosines."""
    changed: float
    """Share of patches whose best match is another one."""
    lost: float
    """Cosine, at most: by float32, of the best match minus that of the one found."""


def cosines(patches: Tensor) -> Tensor:
    """[N, N] in float64 of patches [I, H, W, D], N = I H W; a patch with itself is -2."""
    rows = unit(patches.double()).flatten(0, 2)
    return (rows @ rows.T).fill_diagonal_(-2)


def difference(features: Features, dtype: Transport) -> Difference:
    exact = cosines(features.patches)
    sent = cosines(decode_features(encode_features(features, dtype))[0])
    count = len(exact)
    error = (sent - exact).abs_()
    best, found = exact.argmax(dim=1), sent.argmax(dim=1)
    lost = exact.gather(1, best[:, None]) - exact.gather(1, found[:, None])
    mean = error.sum().item() / (count * (count - 1))
    spread = exact[~torch.eye(count, dtype=torch.bool)].std().item()
    return Difference(error.max().item(), mean, spread, (best != found).double().mean().item(), lost.max().item())


def stressed(features: Features, channels: int, factor: float) -> Features:
    """The `channels` steadiest ones (mean / deviation over patches) times `factor`."""
    deviation, mean = torch.std_mean(features.patches, dim=(0, 1, 2))
    steadiest = (mean.abs() / deviation).topk(channels).indices
    patches = features.patches.clone()
    patches[..., steadiest] *= factor
    return features._replace(patches=patches)


def offset(features: Features, factor: float) -> Features:
    """The first channel is `factor` times the root mean square of all values, in every patch."""
    patches = features.patches.clone()
    patches[..., 0] = factor * patches.square().mean().sqrt()
    return features._replace(patches=patches)


def scene_features(spec: str, size: tuple[int, int], images: int) -> Features:
    """Of the first built-in scenes, (h, w) = `size` pixels."""
    torch.manual_seed(0)  # random weights
    backbone = load_backbone(spec)
    mean, std, _ = input_statistics(spec, backbone)
    scenes = Scenes(builtin_library(), SceneConfig(size=size), seed=0)
    pictures = torch.stack([scenes[index].image for index in range(images)])
    with torch.no_grad():
        return backbone.features(normalize(pictures, mean, std))


def row(name: str, features: Features) -> dict[Transport, Difference]:
    """Print the figures of one line's features, each way to travel."""
    grid = f"{len(features.patches)} x {features.grid[0]} x {features.grid[1]} x {features.patches.shape[-1]}"
    found: dict[Transport, Difference] = {dtype: difference(features, dtype) for dtype in LIMITS}
    for dtype, (largest, mean, spread, changed, lost) in found.items():
        errors = f"{largest:9.1e} {mean:9.1e} {spread:8.3f}"
        print(f"{name:42s} {grid:>17s} {dtype:>8s} {errors} {100 * changed:8.2f} % {lost:9.1e}", flush=True)
    return found


def main(backbones: tuple[str, ...] = ("demo", "timm:vit_small_patch16_224:random"), images: int = 4) -> None:
    errors = f"{'max':>9s} {'mean':>9s} {'spread':>8s}"
    print(f"{'features':42s} {'I x H x W x D':>17s} {'sent as':>8s} {errors} {'changed':>10s}      lost")
    broken = []
    for spec in backbones:
        for size in ((224, 224), (160, 288)):
            features = scene_features(spec, size, images)
            found = row(spec, features)
            broken += [f"{spec}, {dtype}" for dtype, limit in LIMITS.items() if found[dtype].largest > limit]
        for channels, factor in itertools.product((1, 4), FACTORS):
            row(f"  {channels} channel{'s' * (channels > 1)} x {factor}", stressed(features, channels, factor))
        for factor in FACTORS:
            row(f"  1 channel = {factor} in every patch", offset(features, factor))
    limits = ", ".join(f"{dtype} {limit:g}" for dtype, limit in LIMITS.items())
    print(f"largest error without stress, limits {limits}: {'MISSED by ' + '; '.join(broken) if broken else 'kept'}")
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
