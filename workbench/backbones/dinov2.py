"""DINOv2 from a local folder of transformers, as a `Backbone`. transformers is imported when a model is asked for.

DINOv2 has a learned position embedding, resized to the grid of each image, so it keeps the network of transformers
where DINOv3 is loaded into ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from workbench.backbones.packing import block_index, check_images
from workbench.backbones.transformers_models import open_model, run_model
from workbench.backbones.weight_files import read_transformers_config
from workbench.features import Features

DINOV2_TYPES = ("dinov2", "dinov2_with_registers")
"""Model types of transformers that `Dinov2Backbone` opens."""

CONFIG_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "hidden_act", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "qkv_bias", "layerscale_value", "use_swiglu_ffn"),
    "num_register_tokens",
)
"""Entries of config.json that shape the network; no other one is read (see `open_model`)."""


class Dinov2Backbone(nn.Module):
    """A DINOv2 model of transformers, with or without registers, in evaluation mode.

    Args:
        folder: holds config.json and model.safetensors (or its parts and their index).
    Raises as `open_model` does.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.model: Any = open_dinov2(folder)
        config = self.model.config
        side = config.patch_size
        self.patch_size: int = side if isinstance(side, int) else side[0]
        self.embed_dim: int = config.hidden_size
        self.depth: int = config.num_hidden_layers
        self.num_registers: int = getattr(config, "num_register_tokens", 0)
        self.eval()

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """See `Backbone.features`."""
        index = block_index(layer, self.depth)
        height, width = check_images(images, None, self.patch_size)
        output = run_model(self.model, images, attention)
        tokens = self.model.layernorm(output.hidden_states[index + 1])
        cls, registers, patches = tokens.split((1, self.num_registers, height * width), dim=1)
        weights = output.attentions[index] if attention else None
        return Features(patches.unflatten(1, (height, width)), cls.squeeze(1), registers, weights)


def open_dinov2(folder: str | Path, *, attention: str = "sdpa") -> Any:
    """The DINOv2 model of transformers in `folder`; arguments and errors as of `open_model`."""
    entries = read_transformers_config(folder)
    sizes = {name: entries[name] for name in CONFIG_FIELDS if name in entries}
    return open_model(folder, entries["model_type"], sizes, attention=attention, unused=("mask_token",))
