"""Dense features of image files, written as one file: `python -m workbench features`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import workbench
from workbench.features import Backbone, Features
from workbench.images import normalize, read_image, resize_to_patches
from workbench.loading import load_backbone
from workbench.origin import input_statistics
from workbench.tiles import tiled_features

FORMATS = (".safetensors", ".npz")


def extract(
    images: Sequence[Path],
    spec: str,
    out: Path,
    *,
    short_side: int | None = None,
    layer: int = -1,
    tile: int = 512,
    margin: int = 64,
    device: str = "cpu",
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write features of `images` by the backbone `spec` to the new file `out`; returns what was recorded beside them.

    For image number i there are `i.patches` [H, W, D], `i.cls` [D], `i.registers` [R, D], in float16, and in the file's
    metadata (of an .npz an entry `about`) a JSON text: code version, backbone, layer, normalisation, and of each image
    its name, SHA-256 and grid. `short_side` in pixels resizes before (both sides go to whole patches in any case);
    images larger than `tile` pixels go through window by window (`tiled_features`). Raises ValueError or OSError for a
    bad image, an unknown format, or an `out` that is there already: then nothing is written.
    """
    if out.suffix not in FORMATS:
        raise ValueError(f"{out.name} must end in {' or '.join(FORMATS)}.")
    if out.exists():
        raise FileExistsError(f"{out} is there already; name another file or remove it.")
    if not images:
        raise ValueError("no images were named; give one file or more.")
    backbone = load_backbone(spec, device=device)
    mean, std, assumed = input_statistics(spec, backbone)
    tensors: dict[str, torch.Tensor] = {}
    records = []
    for index, path in enumerate(images):
        pixels = resize_to_patches(read_image(path), backbone.patch_size, short_side=short_side)
        found = _features(backbone, normalize(pixels[None], mean, std)[0].to(device), layer, tile, margin)
        tensors |= {f"{index}.patches": found.patches[0], f"{index}.cls": found.cls[0]}
        tensors[f"{index}.registers"] = found.registers[0]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        records.append({"name": path.name, "sha256": digest, "size": list(pixels.shape[1:]), "grid": list(found.grid)})
        told(f"{path}: {found.grid[0]} x {found.grid[1]} patches")
    about = {
        "backbone": spec,
        "layer": layer,
        "mean": list(mean),
        "std": list(std),
        "normalisation_assumed": assumed,
        "code_version": workbench.__version__,
        "images": records,
    }
    _write(out, {name: _half(name, tensor) for name, tensor in tensors.items()}, about)
    return about


def _features(backbone: Backbone, image: torch.Tensor, layer: int, tile: int, margin: int) -> Features:
    """Of one normalised image [3, h, w]; the tile goes to whole patches."""
    size = backbone.patch_size
    return tiled_features(backbone, image, tile=max(size, tile // size * size), margin=margin, layer=layer)


def _half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half().contiguous()
    if not torch.isfinite(half).all():
        raise ValueError(f"{name} holds NaN, infinity or values beyond 65504, which float16 cannot carry.")
    return half


def _write(out: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    text = json.dumps(about)
    if out.suffix == ".safetensors":
        save_file(tensors, out, {"about": text})
    else:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(out, about=np.array(text), **arrays)
