"""Entry points for torch.hub: our networks by the names of DINOv3, from a checkout of this repository.

    torch.hub.load(PATH_OF_THE_CHECKOUT, "dinov3_vits16", source="local", weights="FILE.pth")

`weights` is a local official checkpoint (.pth or .safetensors); nothing is downloaded. Without it the network has
fresh weights. Either way it is in evaluation mode; a loaded one asks for no gradients until `requires_grad_(True)`.
Each is an `nn.Module` whose `features(images)` returns `workbench.Features`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.backbones import ConvNeXt, VisionTransformer
from workbench.backbones.architecture import network_of
from workbench.backbones.load import DINOV3_ARCHITECTURES
from workbench.loading import load_backbone
from workbench.runs import Run

dependencies = ["torch", "safetensors", "numpy", "PIL"]


def _network(arch: str, weights: str | Path | None) -> Any:
    """The network `arch`, from a local checkpoint or with fresh weights."""
    if weights is None:
        return network_of(DINOV3_ARCHITECTURES[arch]()).eval()
    return load_backbone(f"dinov3:{arch}:{weights}")


def dinov3_vits16(weights: str | Path | None = None) -> VisionTransformer:
    """ViT-S/16, 21.6 M parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("vits16", weights)


def dinov3_vits16plus(weights: str | Path | None = None) -> VisionTransformer:
    """ViT-S+/16, 28.7 M parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("vits16plus", weights)


def dinov3_vitb16(weights: str | Path | None = None) -> VisionTransformer:
    """ViT-B/16, 85.7 M parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("vitb16", weights)


def dinov3_vitl16(weights: str | Path | None = None) -> VisionTransformer:
    """ViT-L/16, 303 M parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("vitl16", weights)


def dinov3_vitl16plus(weights: str | Path | None = None) -> VisionTransformer:
    """ViT-L+/16, 404 M parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("vitl16plus", weights)


def dinov3_vith16plus(weights: str | Path | None = None) -> VisionTransformer:
    """ViT-H+/16, 841 M parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("vith16plus", weights)


def dinov3_vit7b16(weights: str | Path | None = None) -> VisionTransformer:
    """ViT-7B/16, 6.7 B parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("vit7b16", weights)


def dinov3_convnext_tiny(weights: str | Path | None = None) -> ConvNeXt:
    """ConvNeXt-T, 27.8 M parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("convnext_tiny", weights)


def dinov3_convnext_small(weights: str | Path | None = None) -> ConvNeXt:
    """ConvNeXt-S, 49.5 M parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("convnext_small", weights)


def dinov3_convnext_base(weights: str | Path | None = None) -> ConvNeXt:
    """ConvNeXt-B, 87.6 M parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("convnext_base", weights)


def dinov3_convnext_large(weights: str | Path | None = None) -> ConvNeXt:
    """ConvNeXt-L, 196.2 M parameters. `weights`: a local official checkpoint, or None for fresh weights."""
    return _network("convnext_large", weights)


def run(path: str | Path, step: int | None = None, role: str | None = None) -> Any:
    """A network of the run directory at `path`: the backbone `role` (None: the one it evaluates) at `step` (None: the
    latest)."""
    network: Any = Run(path).backbone(role, step)
    return network.requires_grad_(False)
