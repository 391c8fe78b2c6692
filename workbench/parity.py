"""How far a backbone's features are from those of an independent implementation with the same weights."""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.backbones import ConvNeXt, VisionTransformer
from workbench.backbones.clip_vision import ClipVisionBackbone
from workbench.backbones.dinov2 import Dinov2Backbone
from workbench.backbones.external import TimmBackbone
from workbench.backbones.openclip import OpenClipBackbone
from workbench.export import write_export
from workbench.features import Backbone, Features
from workbench.loading import load_backbone
from workbench.origin import origin_of


class Parity(NamedTuple):
    """Patch tokens of one image, and class tokens where there are some, against a reference's; float32 on the CPU."""

    reference: str
    """The library whose own forward was compared with, and its version."""
    independent: bool
    """Whether the reference is another network (ours against transformers), or the library's own forward around the
    very modules that the backbone uses, so that only what is put around them is compared."""
    max_abs: float
    """Largest difference of any entry, in feature units."""
    mean_abs: float
    scale: float
    """Standard deviation of the reference's entries, to judge the others by."""
    max_cosine_error: float
    """Largest 1 - cosine of a patch token with the reference's."""
    image: tuple[int, int]
    """(h, w) in pixels."""

    def line(self) -> str:
        """The badge: one line."""
        against = self.reference if self.independent else f"{self.reference}'s own forward"
        return (
            f"parity with {against}: largest difference {self.max_abs:.1e}, mean {self.mean_abs:.1e} "
            f"(entries deviate by {self.scale:.2g}), cosine error at most {self.max_cosine_error:.1e}, "
            f"image {self.image[0]} x {self.image[1]}"
        )


@torch.no_grad()
def parity(spec: str) -> Parity | None:
    """Parity of the backbone that `spec` names (`load_backbone`), or None where there is no reference.

    The reference of our own networks (`demo`, `run:`, `dinov3:`, DINOv3 folders) is transformers, given the tensors by
    way of `workbench.export`; that of the others is their library's own forward. Measured on one fixed image, not
    square where the reference allows it. Raises as `load_backbone`, ImportError without the library, ValueError where
    the library cannot hold the network.
    """
    backbone = load_backbone(spec)
    if isinstance(backbone, VisionTransformer | ConvNeXt):
        images = fixed_image(5 * backbone.patch_size, 7 * backbone.patch_size)
        return _compare(backbone, images, _transformers_tokens(backbone, spec, images), "transformers", True)
    if isinstance(backbone, TimmBackbone) and backbone.has_class_token:
        images = fixed_image(5 * backbone.patch_size, 7 * backbone.patch_size)
        return _compare(backbone, images, backbone.model.forward_features(images), "timm", False)
    if isinstance(backbone, Dinov2Backbone | ClipVisionBackbone):
        images = fixed_image(5 * backbone.patch_size, 7 * backbone.patch_size)
        return _compare(backbone, images, _library_tokens(backbone, images), "transformers", False)
    if isinstance(backbone, OpenClipBackbone):
        images = fixed_image(*backbone.visual.image_size)  # open_clip resizes no position embedding in its forward
        return _compare(backbone, images, _openclip_tokens(backbone, images), "open_clip_torch", False)
    return None


def fixed_image(height: int, width: int) -> Tensor:
    """[1, 3, height, width]: ramps, a disc and seeded noise, of about unit scale, as if normalised."""
    row, col = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    disc = ((row**2 + col**2) < 0.4).float()
    noise = 0.3 * torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    return (torch.stack((row + 0 * col, col + 0 * row, 2 * disc - 1)) + noise)[None]


def _compare(backbone: Backbone, images: Tensor, tokens: Tensor, library: str, independent: bool) -> Parity:
    """`tokens` [1, (1 + R +) H W, D] are the reference's; the last H W are patches."""
    found = backbone.features(images)
    ours = _flat(found)[:, -tokens.shape[1] :]
    difference, patches = (ours - tokens).abs(), found.grid[0] * found.grid[1]
    cosine = F.cosine_similarity(ours[:, -patches:].double(), tokens[:, -patches:].double(), dim=-1)
    version = importlib.metadata.version(library)
    return Parity(
        reference=f"{library} {version}",
        independent=independent,
        max_abs=difference.max().item(),
        mean_abs=difference.mean().item(),
        scale=tokens.std().item(),
        max_cosine_error=max(0.0, 1 - cosine.min().item()),
        image=(images.shape[2], images.shape[3]),
    )


def _flat(features: Features) -> Tensor:
    """[B, 1 + R + H W, D] in the order of the libraries."""
    return torch.cat((features.cls[:, None], features.registers, features.patches.flatten(1, 2)), dim=1)


def _transformers_tokens(network: Any, spec: str, images: Tensor) -> Tensor:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ImportError("parity of our networks needs transformers: pip install 'transformers>=5'") from error
    origin, title = origin_of(spec)
    with tempfile.TemporaryDirectory() as folder:
        written = write_export(network, Path(folder) / "export", origin, title).folder
        reference: nn.Module = AutoModel.from_pretrained(written, local_files_only=True).eval()
    return reference(images).last_hidden_state


def _library_tokens(backbone: Dinov2Backbone | ClipVisionBackbone, images: Tensor) -> Tensor:
    if isinstance(backbone, Dinov2Backbone):
        return backbone.model(images).last_hidden_state
    given = backbone.inputs(images, (images.shape[2] // backbone.patch_size, images.shape[3] // backbone.patch_size))
    tokens = backbone.model(**given).last_hidden_state
    return backbone.model.post_layernorm(tokens) if backbone.has_class_token else tokens


def _openclip_tokens(backbone: OpenClipBackbone, images: Tensor) -> Tensor:
    told = backbone.visual.forward_intermediates(
        images,
        indices=[backbone.depth - 1],
        normalize_intermediates=True,
        intermediates_only=True,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    return torch.cat((told["image_intermediates_prefix"][0], told["image_intermediates"][0]), dim=1)
