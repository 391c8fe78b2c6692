"""DINOv2 from a local folder of transformers, as a `Backbone`. transformers is imported when a model is asked for.

DINOv2 has a learned position embedding, resized to the grid of each image, so it keeps the network of transformers
where DINOv3 is loaded into ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from workbench.backbones.packing import block_index, check_images
from workbench.backbones.weight_files import TENSORS_FILE, TENSORS_INDEX, WAYS_TO_A_FOLDER, read_transformers_config
from workbench.features import Features

DINOV2_TYPES = ("dinov2", "dinov2_with_registers")
"""Model types of transformers that `Dinov2Backbone` opens."""

CONFIG_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "hidden_act", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "qkv_bias", "layerscale_value", "use_swiglu_ffn"),
    "num_register_tokens",
)
"""Entries of config.json that shape the network. No other one is read: some make transformers fetch and run code, such
as attention kernels from the Hub."""


class Dinov2Backbone(nn.Module):
    """A DINOv2 model of transformers, with or without registers, in evaluation mode.

    Args:
        folder: holds config.json and model.safetensors (or its parts and their index).
    Raises FileNotFoundError for missing files, ValueError for tensors that are damaged, missing or of another shape,
    ImportError where transformers is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.model: Any = _open(Path(folder))
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
        output = self._run(images, attention)
        tokens = self.model.layernorm(output.hidden_states[index + 1])
        cls, registers, patches = tokens.split((1, self.num_registers, height * width), dim=1)
        weights = output.attentions[index] if attention else None
        return Features(patches.unflatten(1, (height, width)), cls.squeeze(1), registers, weights)

    def _run(self, images: Tensor, attention: bool) -> Any:
        """The model's output; only its plain ("eager") attention can return the weights."""
        if not attention:
            return self.model(images, output_hidden_states=True)
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            return self.model(images, output_hidden_states=True, output_attentions=True)
        finally:
            self.model.set_attn_implementation(before)


def _open(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in (TENSORS_FILE, TENSORS_INDEX)):
        raise FileNotFoundError(f"no {TENSORS_FILE} in {folder}; other weight formats are not read. {WAYS_TO_A_FOLDER}")
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds an adapter, which leads to another model; merge it into its model first.")
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError as error:
        raise ImportError("DINOv2 folders need transformers: pip install 'transformers>=5'") from error
    entries = read_transformers_config(folder)
    sizes = {name: entries[name] for name in CONFIG_FIELDS if name in entries}
    local = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        config = AutoConfig.for_model(entries["model_type"], **sizes)
        model, report = AutoModel.from_pretrained(
            folder, config=config, attn_implementation="sdpa", dtype="float32", output_loading_info=True, **local
        )
    except Exception as error:  # of many kinds: damaged files, and entries of another type or size
        raise ValueError(f"transformers cannot open {folder}: {error}") from error
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("mask_token"))  # unused here
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors of its model, the first is {missing[0]}.")
    return model
