"""Backbones from a short text, and `VisionTransformer`s from their recorded architecture. Nothing is downloaded."""

from __future__ import annotations

import dataclasses
import difflib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from workbench.backbones.config import ViTConfig
from workbench.backbones.external import TimmBackbone, load_timm_weights
from workbench.backbones.synthetic import SyntheticBackbone
from workbench.backbones.vit import VisionTransformer
from workbench.features import Backbone

SPEC_FORMS = {
    "synthetic": "weightless features from colour and texture",
    "timm:NAME:PATH.safetensors": "a timm vision transformer with weights from a local file (.safetensors)",
    "timm:NAME:random": "the same with random weights",
    "dinov3:ARCH:PATH": "an official DINOv3 checkpoint (.safetensors or .pth)",
}
"""The forms `load_standalone` understands, with what each gives."""

DINOV3_ARCHITECTURES: dict[str, Callable[..., ViTConfig]] = {
    "vits16": ViTConfig.vit_small,
    "vits16plus": ViTConfig.vit_small_plus,
    "vitb16": ViTConfig.vit_base,
    "vitl16": ViTConfig.vit_large,
    "vitl16plus": ViTConfig.vit_large_plus,
    "vith16plus": ViTConfig.vit_huge_plus,
    "vit7b16": ViTConfig.vit_7b,
}


def load_standalone(spec: str, *, device: torch.device | str = "cpu") -> Backbone:
    """A backbone in evaluation mode, from any spec that is not a run (`SPEC_FORMS`).

    Raises ValueError for an unknown spec (listing the valid forms), FileNotFoundError for a missing file.
    """
    kind, _, rest = spec.partition(":")
    if kind == "synthetic" and not rest:
        return SyntheticBackbone()
    if kind == "timm" and rest:
        return _load_timm(rest, device)
    if kind == "dinov3" and rest:
        return _load_dinov3(rest, device)
    raise ValueError(f"unknown backbone spec {spec!r}; valid forms:\n{describe_forms(SPEC_FORMS)}")


def describe_forms(forms: Mapping[str, str]) -> str:
    """One indented line a spec form."""
    width = max(map(len, forms))
    return "\n".join(f"  {form:<{width}}  {meaning}" for form, meaning in forms.items())


def architecture_of(model: VisionTransformer) -> dict[str, Any]:
    """What `architecture.json` records: class name and every `ViTConfig` field, as a plain JSON tree."""
    return {"class": "VisionTransformer", "config": model.config.to_dict()}


def vision_transformer_from_architecture(architecture: Mapping[str, Any]) -> VisionTransformer:
    """Build the network that `architecture_of` recorded, with fresh weights.

    Raises ValueError for another class, a missing part, or a field `ViTConfig` does not have (naming the nearest).
    """
    if architecture.get("class") != "VisionTransformer":
        raise ValueError(f"architecture has class {architecture.get('class')!r}; allowed: 'VisionTransformer'.")
    config = architecture.get("config")
    if not isinstance(config, Mapping):
        raise ValueError(f"architecture has config {config!r}; expected a mapping of ViTConfig fields.")
    known = [field.name for field in dataclasses.fields(ViTConfig)]
    for name in config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise ValueError(f"ViTConfig has no field {name!r}; nearest: {', '.join(near)}.")
    return VisionTransformer(ViTConfig(**config))


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a local .safetensors file, or of a .pth file opened with `weights_only=True`, on the CPU."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}; give the path of a local .safetensors or .pth file.")
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"{path.name} ends in {path.suffix!r}; weights are read from .safetensors or .pth files.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, or is damaged; convert it to .safetensors.") from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _load_timm(rest: str, device: torch.device | str) -> Backbone:
    name, _, weights = rest.partition(":")
    if not weights:
        raise ValueError(
            f"timm:{name} says no weights and nothing is downloaded. Either give a local file, "
            f"'timm:{name}:PATH.safetensors', or ask for random weights, 'timm:{name}:random'."
        )
    if weights == "random":
        return TimmBackbone(name).to(device)
    state = read_state_dict(weights)
    backbone = TimmBackbone(name)
    try:
        load_timm_weights(backbone, state)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit timm model {name!r}: {error}") from error
    return backbone.to(device)


def _load_dinov3(rest: str, device: torch.device | str) -> Backbone:
    arch, _, path = rest.partition(":")
    arch = arch.removeprefix("dinov3_")
    if arch not in DINOV3_ARCHITECTURES or not path:
        raise ValueError(f"dinov3:{rest} is not dinov3:ARCH:PATH with ARCH one of {', '.join(DINOV3_ARCHITECTURES)}.")
    state = {key: value.float() for key, value in backbone_tensors(read_state_dict(path)).items()}
    config = DINOV3_ARCHITECTURES[arch](local_cls_norm="local_cls_norm.weight" in state)
    with torch.device("meta"):
        model = VisionTransformer(config)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a DINOv3 {arch} backbone: {error}") from error
    return model.to(device).eval()


def backbone_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """The backbone's tensors in an official checkpoint: a flat dict, or the "teacher" part of a training checkpoint."""
    if isinstance(state.get("teacher"), dict):
        state = state["teacher"]
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): v for key, v in state.items() if key.startswith("backbone.")}
    return state
