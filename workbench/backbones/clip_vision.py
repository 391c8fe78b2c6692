"""Vision towers of CLIP, SigLIP and SigLIP 2 from a local folder of transformers, as a `Backbone`.

transformers is imported when a model is asked for; its networks are kept, since their learned position embedding is
resized to the grid of each image as the library itself does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.backbones.packing import block_index, check_images
from workbench.backbones.weight_files import read_transformers_config, read_transformers_tensors
from workbench.features import Features

CLIP_TYPES = ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
"""Model types of transformers that `ClipVisionBackbone` opens; of those with a text tower only the images' is read."""

CONFIG_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    *("image_size", "patch_size", "num_channels", "num_patches", "vision_use_head"),
)
"""Entries of the vision config that shape the network; no other one is read."""


class ClipVisionBackbone(nn.Module):
    """The image tower of a CLIP, SigLIP or SigLIP 2 model of transformers, at any image size, in evaluation mode.

    Tokens come after the tower's last norm and before its projection into the space of text. SigLIP has no class token:
    its place takes the mean of the patch tokens. There are no registers. SigLIP 2 models of fixed resolution are of
    type "siglip" in their config.json; those of type "siglip2" (NaFlex) are read as well.

    Args:
        folder: holds config.json and model.safetensors (or its parts and their index).
    Raises FileNotFoundError for missing files, ValueError for tensors that are damaged, missing or of another shape,
    ImportError where transformers is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.kind, self.model = _open(Path(folder))
        config: Any = self.model.config
        self.patch_size: int = config.patch_size
        self.embed_dim: int = config.hidden_size
        self.depth: int = config.num_hidden_layers
        self.has_class_token = self.kind == "clip"
        self.eval()

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """See `Backbone.features`; without a class token the attention is [B, heads, H*W, H*W]."""
        index = block_index(layer, self.depth)
        grid = check_images(images, None, self.patch_size)
        output = self._run(images, grid, attention)
        tokens = self.model.post_layernorm(output.hidden_states[index + 1])
        weights = output.attentions[index] if attention else None
        none = tokens.new_zeros(len(tokens), 0, self.embed_dim)
        if self.has_class_token:
            return Features(tokens[:, 1:].unflatten(1, grid), tokens[:, 0], none, weights)
        return Features(tokens.unflatten(1, grid), tokens.mean(dim=1), none, weights)

    def _run(self, images: Tensor, grid: tuple[int, int], attention: bool) -> Any:
        """The model's output; only its plain ("eager") attention can return the weights."""
        given = self.inputs(images, grid)
        if not attention:
            return self.model(**given, output_hidden_states=True)
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            return self.model(**given, output_hidden_states=True, output_attentions=True)
        finally:
            self.model.set_attn_implementation(before)

    def inputs(self, images: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        """What the library's forward takes for images of that patch grid."""
        if self.kind != "siglip2":
            return {"pixel_values": images, "interpolate_pos_encoding": True}
        size = self.patch_size  # NaFlex takes flattened patches, each row by row with its channels last
        patches = images.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor(grid, device=images.device).expand(len(images), 2)
        mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=images.device)
        return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _open(folder: Path) -> tuple[str, Any]:
    """("clip", "siglip" or "siglip2", the tower of transformers with its weights)."""
    entries = read_transformers_config(folder)
    kind = str(entries.get("model_type")).removesuffix("_vision_model")
    tensors = {
        name.removeprefix("vision_model."): tensor
        for name, tensor in read_transformers_tensors(folder).items()
        if not name.startswith(("text_model.", "text_projection", "visual_projection", "logit_"))
    }
    tensors.pop("embeddings.position_ids", None)  # a counter that old files hold
    try:
        model = _tower(kind, entries.get("vision_config") or entries)
        model.load_state_dict(tensors, strict=True)
    except ImportError:
        raise
    except Exception as error:  # of many kinds: entries of another type or size, tensors that do not fit
        raise ValueError(f"{folder} holds no {kind} image tower that transformers can build: {error}") from error
    return kind, model


def _tower(kind: str, entries: Mapping[str, Any]) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("CLIP and SigLIP folders need transformers: pip install 'transformers>=5'") from error
    name = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}[kind]
    sizes = {field: entries[field] for field in CONFIG_FIELDS if field in entries}
    config = getattr(transformers, f"{name}VisionConfig")(**sizes)
    config._attn_implementation = "sdpa"
    return getattr(transformers, f"{name}VisionModel")(config)
