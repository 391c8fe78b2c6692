"""Backbones from a short text. Nothing is downloaded and no code in a file is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from workbench.backbones.architecture import NetworkConfig, network_with_weights
from workbench.backbones.clip_vision import TOWER_TYPES, ClipVisionBackbone
from workbench.backbones.convnext import ConvNeXtConfig
from workbench.backbones.dinov2 import DINOV2_TYPES, Dinov2Backbone
from workbench.backbones.external import load_timm_weights, timm_backbone
from workbench.backbones.openclip import OpenClipBackbone, load_openclip_weights
from workbench.backbones.synthetic import SyntheticBackbone
from workbench.backbones.transformers_names import network_from_transformers
from workbench.backbones.vit import ViTConfig
from workbench.backbones.weight_files import (
    WAYS_TO_A_FOLDER,
    WAYS_TO_DINOV3,
    WAYS_TO_OPENCLIP,
    WAYS_TO_TIMM,
    backbone_tensors,
    read_state_dict,
    read_transformers_config,
    read_transformers_tensors,
)
from workbench.features import Backbone

DEMO_FOLDER = Path(__file__).resolve().parents[1] / "weights" / "demo"
"""The one backbone that is part of the workbench; its README.md is its model card."""

SPEC_FORMS = {
    "demo": "the small backbone that ships with the workbench (workbench/weights/demo)",
    "synthetic": "weightless features from colour and texture",
    "timm:NAME:PATH": "a vision transformer or ConvNeXt of timm with weights from a local file (.safetensors)",
    "timm:NAME:random": "the same with random weights",
    "openclip:ARCH:PATH": "the image tower of an open_clip model with weights from a local file (.safetensors)",
    "openclip:ARCH:random": "the same with random weights",
    "dinov3:ARCH:PATH": "an official DINOv3 checkpoint, ViT or ConvNeXt (.safetensors or .pth)",
    "hf:FOLDER": "a local folder of transformers: DINOv3 (ViT, ConvNeXt), DINOv2, or the image tower of CLIP or SigLIP",
}
"""The forms `load_standalone` understands, with what each gives."""

DINOV3_ARCHITECTURES: dict[str, Callable[..., NetworkConfig]] = {
    "vits16": ViTConfig.vit_small,
    "vits16plus": ViTConfig.vit_small_plus,
    "vitb16": ViTConfig.vit_base,
    "vitl16": ViTConfig.vit_large,
    "vitl16plus": ViTConfig.vit_large_plus,
    "vith16plus": ViTConfig.vit_huge_plus,
    "vit7b16": ViTConfig.vit_7b,
    "convnext_tiny": ConvNeXtConfig.tiny,
    "convnext_small": ConvNeXtConfig.small,
    "convnext_base": ConvNeXtConfig.base,
    "convnext_large": ConvNeXtConfig.large,
}

OUR_TYPES = ("dinov3_vit", "dinov3_convnext")
"""Model types of transformers whose weights go into our own networks."""


def load_standalone(spec: str, *, device: torch.device | str = "cpu") -> Backbone:
    """A backbone in evaluation mode, from any spec that is not a run (`SPEC_FORMS`).

    Raises ValueError for an unknown spec (listing the valid forms), FileNotFoundError for a missing file or folder
    (naming two ways to get one).
    """
    kind, _, rest = spec.partition(":")
    if kind == "synthetic" and not rest:
        return SyntheticBackbone()
    if kind == "demo" and not rest:
        return _load_folder(str(DEMO_FOLDER), device)
    loaders = {"timm": _load_timm, "openclip": _load_openclip, "dinov3": _load_dinov3, "hf": _load_folder}
    if kind in loaders and rest:
        return loaders[kind](rest, device)
    raise ValueError(f"unknown backbone spec {spec!r}; valid forms:\n{describe_forms(SPEC_FORMS)}")


def describe_forms(forms: Mapping[str, str]) -> str:
    """One indented line a spec form."""
    width = max(map(len, forms))
    return "\n".join(f"  {form:<{width}}  {meaning}" for form, meaning in forms.items())


def _load_timm(rest: str, device: torch.device | str) -> Backbone:
    name, _, weights = rest.partition(":")
    if not weights:
        raise ValueError(
            f"timm:{name} says no weights and nothing is downloaded. Either give a local file, "
            f"'timm:{name}:PATH.safetensors', or ask for random weights, 'timm:{name}:random'. {WAYS_TO_TIMM}"
        )
    if weights == "random":
        return timm_backbone(name).to(device)
    state = read_state_dict(weights, ways=WAYS_TO_TIMM)
    backbone = timm_backbone(name)
    try:
        load_timm_weights(backbone, state)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit timm model {name!r}: {error}") from error
    return backbone.to(device)


def _load_openclip(rest: str, device: torch.device | str) -> Backbone:
    name, _, weights = rest.partition(":")
    if not weights:
        raise ValueError(
            f"openclip:{name} says no weights and nothing is downloaded. Either give a local file, "
            f"'openclip:{name}:PATH.safetensors', or ask for random weights, 'openclip:{name}:random'. "
            f"{WAYS_TO_OPENCLIP}"
        )
    if weights == "random":
        return OpenClipBackbone(name).to(device)
    state = read_state_dict(weights, ways=WAYS_TO_OPENCLIP)
    backbone = OpenClipBackbone(name)
    try:
        load_openclip_weights(backbone, state)
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit the image tower of open_clip's {name!r}: {error}") from error
    return backbone.to(device)


def _load_dinov3(rest: str, device: torch.device | str) -> Backbone:
    arch, _, path = rest.partition(":")
    arch = arch.removeprefix("dinov3_")
    if arch not in DINOV3_ARCHITECTURES or not path:
        raise ValueError(f"dinov3:{rest} is not dinov3:ARCH:PATH with ARCH one of {', '.join(DINOV3_ARCHITECTURES)}.")
    state = backbone_tensors(read_state_dict(path, ways=WAYS_TO_DINOV3))
    extra = {"local_cls_norm": True} if "local_cls_norm.weight" in state else {}
    try:
        return network_with_weights(DINOV3_ARCHITECTURES[arch](**extra), state).to(device)
    except (RuntimeError, TypeError, AttributeError) as error:  # other names or shapes, or values that are no tensors
        raise ValueError(f"{path} is not a DINOv3 {arch} backbone: {error}") from error


def _load_folder(folder: str, device: torch.device | str) -> Backbone:
    entries = read_transformers_config(folder)
    kind = entries.get("model_type")
    if kind in DINOV2_TYPES:
        return Dinov2Backbone(folder).to(device)
    if isinstance(kind, str) and kind in TOWER_TYPES:
        return ClipVisionBackbone(folder).to(device)
    if kind not in OUR_TYPES:
        allowed = ", ".join((*OUR_TYPES, *DINOV2_TYPES, *TOWER_TYPES))
        raise ValueError(f"{folder} holds a model of type {kind!r}; allowed: {allowed}. {WAYS_TO_A_FOLDER}")
    try:
        return network_from_transformers(entries, read_transformers_tensors(folder)).to(device)
    except (RuntimeError, TypeError) as error:  # tensors or config entries of another shape or kind
        raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from error
