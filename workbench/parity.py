"""How far the features of a backbone are from those of another library's implementation of the same network."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.backbones import ConvNeXt, Network, VisionTransformer
from workbench.backbones.clip_vision import ClipVisionBackbone, open_tower, tower_norm
from workbench.backbones.convnext import STRIDE
from workbench.backbones.dinov2 import Dinov2Backbone, open_dinov2
from workbench.backbones.openclip import OpenClipBackbone
from workbench.backbones.timm_names import timm_arguments, timm_name, timm_tensors
from workbench.backbones.transformers_models import open_model
from workbench.backbones.transformers_names import transformers_config
from workbench.backbones.weight_files import read_transformers_config
from workbench.features import Backbone, Features
from workbench.loading import load_backbone

GRID = (6, 10)
"""Patches down and across the image that is compared on."""

NO_SIZES = ("model_type", "architectures", "dtype")
"""Entries of a config.json that shape no network."""


class Parity(NamedTuple):
    """What `parity` measured, over all tokens that both libraries give and all their channels."""

    reference: str
    """Library, its version, and the class of its network."""
    max_abs_difference: float
    mean_abs_difference: float
    max_cosine_error: float
    """1 minus the cosine of the two vectors of a token, for the token where it is largest."""
    image_size: tuple[int, int]
    """Height and width, pixels."""
    dtype: str
    """What both computed in."""


def parity(spec: str) -> Parity | None:
    """Compare the backbone of `spec` (see `load_backbone`) with an independent implementation, on `fixed_image`.

    `hf:` folders are opened by transformers a second time. DINOv3 is another network there. DINOv2, CLIP and SigLIP
    are the same network, run by its own forward with plain attention: what is compared is our way of calling it.
    Networks of ours by other specs (`demo`, `run:`, `dinov3:`) are built in timm and get our tensors; an `openclip:`
    tower is built anew in open_clip at the size of the image. Two copies of the network are in memory.

    None where there is nothing to compare with: `synthetic`; `timm:`, which is its own reference; networks of ours
    that no library computes. Raises as `load_backbone` does, ImportError where the library is missing, and ValueError
    for features that are not finite.
    """
    backbone = load_backbone(spec)
    images = fixed_image(GRID[0] * backbone.patch_size, GRID[1] * backbone.patch_size)
    with torch.no_grad():
        found = _reference(spec, backbone, images)
        if found is None:
            return None
        features = backbone.features(images)
    reference, theirs = found
    ours = _tokens(features)[:, -theirs.shape[1] :]  # without a class token, theirs are the patches
    return _compared(spec, reference, ours, theirs, (images.shape[2], images.shape[3]))


def fixed_image(height: int, width: int) -> Tensor:
    """A normalised image [1, 3, height, width], float32, always the same: ramps across, down and both, and noise."""
    down = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    across = torch.linspace(-1, 1, width).expand(height, width)
    ramps = torch.stack((across, down, (across + down) / 2))
    return (ramps + 0.5 * torch.randn(ramps.shape, generator=torch.Generator().manual_seed(0)))[None]


def _compared(spec: str, reference: str, ours: Tensor, theirs: Tensor, size: tuple[int, int]) -> Parity:
    """The numbers, of tokens [1, T, D]."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    if not (ours.isfinite().all() and theirs.isfinite().all()):
        raise ValueError(f"the features of {spec} are not finite, so there is nothing to compare; check its weights.")
    left, right = ours.double(), theirs.double()
    difference = (left - right).abs()
    cosine_error = 1 - torch.cosine_similarity(left, right, dim=-1)
    return Parity(
        reference=reference,
        max_abs_difference=difference.max().item(),
        mean_abs_difference=difference.mean().item(),
        max_cosine_error=max(cosine_error.max().item(), 0.0),  # rounding may take a cosine above 1
        image_size=size,
        dtype=str(ours.dtype).removeprefix("torch."),
    )


def _tokens(features: Features) -> Tensor:
    """[B, 1 + R + H W, D], in the order of the libraries."""
    return torch.cat((features.cls[:, None], features.registers, features.patches.flatten(1, 2)), dim=1)


def _reference(spec: str, backbone: Backbone, images: Tensor) -> tuple[str, Tensor] | None:
    """The name of the reference and its tokens [1, T, D], the patches last; None where there is none."""
    kind, _, rest = spec.partition(":")
    if kind == "hf":
        return _transformers(Path(rest), backbone, images)
    if isinstance(backbone, OpenClipBackbone):
        return _open_clip(rest.partition(":")[0], backbone, images)
    if isinstance(backbone, VisionTransformer | ConvNeXt):
        return _timm(backbone, images)
    return None


# ---- transformers ----


def _transformers(folder: Path, backbone: Backbone, images: Tensor) -> tuple[str, Tensor]:
    if isinstance(backbone, ClipVisionBackbone):
        model = open_tower(folder, attention="eager")
        tokens = _tower_tokens(model, images)
    elif isinstance(backbone, Dinov2Backbone):
        model = open_dinov2(folder, attention="eager")
        tokens = model(images).last_hidden_state
    else:
        assert isinstance(backbone, VisionTransformer | ConvNeXt)
        model = _open_dinov3(folder, backbone)
        tokens = model(images).last_hidden_state
    import transformers

    return f"transformers {transformers.__version__}, {type(model).__name__}", tokens


def _open_dinov3(folder: Path, network: Network) -> Any:
    """The network of transformers, of the folder's own config and tensors; ours only says which entries are sizes."""
    entries = read_transformers_config(folder)
    names = [name for name in transformers_config(network) if name in entries and name not in NO_SIZES]
    attention = "eager" if isinstance(network, VisionTransformer) else None
    return open_model(folder, entries["model_type"], {name: entries[name] for name in names}, attention=attention)


def _tower_tokens(model: Any, images: Tensor) -> Tensor:
    """CLIP: class token and patches, the norm on both; SigLIP: patches alone."""
    if model.config.model_type == "siglip2_vision_model":
        from transformers import Siglip2ImageProcessor

        plain: dict[str, Any] = {"do_resize": False, "do_rescale": False, "do_normalize": False}
        patches = Siglip2ImageProcessor(**plain, patch_size=model.config.patch_size, max_num_patches=GRID[0] * GRID[1])
        return model(**patches(list(images), return_tensors="pt")).last_hidden_state
    output = model(images, interpolate_pos_encoding=True)
    if model.config.model_type == "siglip_vision_model":
        return output.last_hidden_state
    return torch.cat((output.pooler_output[:, None], tower_norm(model)(output.last_hidden_state)[:, 1:]), dim=1)


# ---- timm ----


def _timm(network: Network, images: Tensor) -> tuple[str, Tensor] | None:
    if isinstance(network, ConvNeXt) and network.patch_size != STRIDE:
        return None  # no library resizes the maps
    try:
        arguments = timm_arguments(network)
    except ValueError:  # what timm cannot compute
        return None
    import timm

    model = _timm_model(network, arguments).eval()
    model.load_state_dict(timm_tensors(network), strict=True)
    tokens = model.forward_features(images)
    if isinstance(network, ConvNeXt):  # maps [1, D, H, W] before the norm
        tokens = torch.cat((model(images)[:, None], model.head.norm(tokens).flatten(2).transpose(1, 2)), dim=1)
    return f"timm {timm.__version__}, {timm_name(network) or type(model).__name__}", tokens


def _timm_model(network: Network, arguments: dict[str, Any]) -> Any:
    """timm's network with random weights: the one that it has a name for, else one of the same sizes."""
    import timm
    from timm.layers import LayerNorm
    from timm.models.convnext import ConvNeXt as TimmConvNeXt
    from timm.models.eva import Eva

    if name := timm_name(network):
        pool: dict[str, Any] = {} if isinstance(network, ConvNeXt) else {"global_pool": "token"}
        return timm.create_model(name, num_classes=0, **pool)
    if isinstance(network, ConvNeXt):
        return TimmConvNeXt(**arguments)
    return Eva(**arguments, norm_layer=partial(LayerNorm, eps=network.config.norm_eps))


# ---- open_clip ----


def _open_clip(name: str, backbone: OpenClipBackbone, images: Tensor) -> tuple[str, Tensor]:
    import open_clip
    from open_clip.model import resize_pos_embed

    size = (images.shape[2], images.shape[3])
    model: Any = open_clip.create_model(name, pretrained=None, load_weights=False, force_image_size=size).eval()
    state = {f"visual.{key}": tensor for key, tensor in backbone.visual.state_dict().items()}
    resize_pos_embed(state, model)
    visual = model.visual
    visual.load_state_dict({key.removeprefix("visual."): tensor for key, tensor in state.items()}, strict=True)
    visual.proj, visual.output_tokens = None, True
    pooled, tokens = visual(images)
    tokens = visual.ln_post(tokens) if visual.final_ln_after_pool else tokens
    if visual.pool_type == "tok":
        tokens = torch.cat((pooled[:, None], tokens), dim=1)
    return f"open_clip {open_clip.__version__}, {name}", tokens
