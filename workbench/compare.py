"""Features of the same images by several backbones, or by several layers of one, each as it wants its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import workbench
from workbench.features import Backbone, Features
from workbench.images import normalize, read_image
from workbench.loading import load_backbone
from workbench.origin import input_statistics
from workbench.views.comparison import Comparison
from workbench.views.encode import Transport
from workbench.views.page import standalone_page


def features_by_backbone(
    images: Tensor, specs: Sequence[str] | Mapping[str, str], *, layer: int = -1, device: str = "cpu"
) -> dict[str, Features]:
    """{name: Features} of `images` [I, 3, h, w], uint8 or float in [0, 1], by the backbones `specs` (`load_backbone`).

    Names are the specs themselves unless `specs` is {name: spec}. Each backbone gets the whole picture, resized to the
    nearest whole patches and normalised as it wants, so that grids differ but places agree. Features are on the CPU.
    """
    named = specs if isinstance(specs, Mapping) else {spec: spec for spec in specs}
    found = {}
    for name, spec in named.items():
        backbone = load_backbone(spec, device=device)
        found[name] = _features(backbone, _pixels(images, spec, backbone).to(device), layer)
    return found


def features_by_layer(
    images: Tensor, spec: str, layers: Sequence[int] | None = None, *, device: str = "cpu"
) -> dict[str, Features]:
    """{"layer N": Features} of one backbone after blocks `layers`, from 0 (default: six, evenly spread, the last too).

    Every layer goes through the backbone's final norm, as `Backbone.features` says.
    """
    backbone = load_backbone(spec, device=device)
    count = min(6, backbone.depth)
    chosen = layers or sorted({round((k + 1) * backbone.depth / count) - 1 for k in range(count)})
    pixels = _pixels(images, spec, backbone).to(device)
    return {f"layer {layer % backbone.depth}": _features(backbone, pixels, layer) for layer in chosen}


def comparison_page(
    paths: Sequence[Path],
    specs: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    side: int = 224,
    dtype: Transport = "int8",
    device: str = "cpu",
    **state: Any,
) -> str:
    """One HTML file that compares backbones (or, with one spec and `layers`, its layers) on image files.

    Images are cut to the square in their middle and resized to `side` pixels. Its provenance names the backbones, the
    images with their SHA-256, and the code version. `state` as of `standalone_page`.
    """
    if not paths or not specs:
        raise ValueError("a comparison needs one image and one backbone or more.")
    if layers is not None and len(specs) != 1:
        raise ValueError(f"layers are compared of one backbone; {len(specs)} were named.")
    images = torch.stack([_square(read_image(path), side) for path in paths])
    if layers is None:
        features = features_by_backbone(images, specs, device=device)
    else:
        features = features_by_layer(images, specs[0], layers or None, device=device)
    about = {
        "backbones": list(specs),
        "sources": list(features),
        "code_version": workbench.__version__,
        "images": [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths],
        "dtype": dtype,
    }
    comparison = Comparison(images, features, captions=[path.name for path in paths])
    return standalone_page(comparison, dtype=dtype, provenance=about, **state)


def _features(backbone: Backbone, pixels: Tensor, layer: int) -> Features:
    with torch.no_grad():
        found = backbone.features(pixels, layer=layer)
    return Features(found.patches.cpu(), found.cls.cpu(), found.registers.cpu())


def _pixels(images: Tensor, spec: str, backbone: Backbone) -> Tensor:
    """`images` at the nearest whole patches, normalised as the backbone of `spec` wants."""
    size = backbone.patch_size
    whole = [max(1, round(side / size)) * size for side in images.shape[2:]]
    mean, std, _ = input_statistics(spec, backbone)
    floats = images.float() / 255 if not images.is_floating_point() else images.float()
    if whole != list(images.shape[2:]):
        floats = F.interpolate(floats, whole, mode="bicubic", antialias=True).clamp(0, 1)
    return normalize(floats, mean, std)


def _square(image: Tensor, side: int) -> Tensor:
    """The square in the middle of `image` [3, h, w] uint8, `side` pixels wide."""
    short = min(image.shape[1:])
    top, left = (image.shape[1] - short) // 2, (image.shape[2] - short) // 2
    cut = image[None, :, top : top + short, left : left + short].float()
    resized = F.interpolate(cut, (side, side), mode="bicubic", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
