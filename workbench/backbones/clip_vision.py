"""The image towers of CLIP, SigLIP and SigLIP 2 from a local folder of transformers, as `Backbone`s.

transformers is imported when a model is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.backbones.packing import block_index, check_images
from workbench.backbones.transformers_models import open_model, run_model
from workbench.backbones.weight_files import read_transformers_config
from workbench.features import Features

TOWER_TYPES = {
    "clip": "clip_vision_model",
    "clip_vision_model": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip_vision_model": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "siglip2_vision_model": "siglip2_vision_model",
}
"""Model type of a folder of transformers, whole or tower alone -> type of its image tower.

SigLIP 2 of one image size says "siglip"; "siglip2" is NaFlex, of any size and shape.
"""

CONFIG_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "num_patches"),
)
"""Entries of a tower's config that shape the network; no other one is read (see `open_model`)."""


class ClipVisionBackbone(nn.Module):
    """The image tower of a CLIP or SigLIP model of transformers in evaluation mode, at any image size.

    Tokens come after the tower's last norm (`post_layernorm`), before any pooling or projection into the space of text.
    The position embedding is resized to other grids than its own as the model itself does it. There are no registers.
    SigLIP has no class token: it gets the mean of its patch tokens instead, as in `TimmBackbone`, and its attention is
    [B, heads, H*W, H*W].

    Args:
        folder: holds config.json and model.safetensors (or its parts and their index), of the whole model or the tower.
    Raises as `open_model` does, and ValueError for a config that names no tower.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.model: Any = open_tower(folder)
        config = self.model.config
        self.patch_size: int = config.patch_size
        self.embed_dim: int = config.hidden_size
        self.depth: int = config.num_hidden_layers
        self.has_class_token: bool = config.model_type == "clip_vision_model"
        self.eval()

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """See `Backbone.features`."""
        index = block_index(layer, self.depth)
        grid = check_images(images, None, self.patch_size)
        output = self._run(images, grid, attention)
        tokens = tower_norm(self.model)(output.hidden_states[index + 1])
        cls, patches = (tokens[:, 0], tokens[:, 1:]) if self.has_class_token else (tokens.mean(dim=1), tokens)
        weights = output.attentions[index] if attention else None
        return Features(patches.unflatten(1, grid), cls, tokens.new_zeros(len(tokens), 0, self.embed_dim), weights)

    def _run(self, images: Tensor, grid: tuple[int, int], attention: bool) -> Any:
        if self.model.config.model_type != "siglip2_vision_model":
            return run_model(self.model, images, attention, interpolate_pos_encoding=True)
        pixels = _flat_patches(images, self.patch_size)
        whole = torch.ones(pixels.shape[:2], dtype=torch.int32, device=images.device)
        shapes = torch.tensor([grid] * len(images), device=images.device)
        return run_model(self.model, pixels, attention, pixel_attention_mask=whole, spatial_shapes=shapes)


def open_tower(folder: str | Path, *, attention: str = "sdpa") -> Any:
    """The image tower of transformers in `folder`; arguments and errors as of `open_model`.

    SigLIP's attention pooling is left out: it comes after the tokens.
    """
    entries = read_transformers_config(folder)
    kind = TOWER_TYPES[entries["model_type"]]
    given = entries if entries["model_type"] == kind else _tower_entries(folder, entries)
    if given.get("num_channels", 3) != 3:
        raise ValueError(f"{folder} has num_channels {given['num_channels']!r}; images have 3 here.")
    sizes: dict[str, Any] = {name: given[name] for name in CONFIG_FIELDS if name in given}
    if kind != "clip_vision_model":
        sizes["vision_use_head"] = False
    return open_model(folder, kind, sizes, attention=attention)


def tower_norm(model: Any) -> nn.Module:
    """The last norm of a tower; some versions of transformers keep the tower one level down."""
    return getattr(model, "vision_model", model).post_layernorm


def _tower_entries(folder: str | Path, entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tower's part in the config of a whole model; what old CLIP configs call vision_config_dict goes first."""
    given = entries.get("vision_config_dict") or entries.get("vision_config") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"config.json in {folder} has vision_config {given!r}; expected an object with its sizes.")
    return given


def _flat_patches(images: Tensor, side: int) -> Tensor:
    """Images [B, 3, h, w] as the rows of pixels that NaFlex reads: [B, H W, side side 3], channels innermost."""
    blocks = images.unfold(2, side, side).unfold(3, side, side)  # [B, 3, H, W, side, side]
    return blocks.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
