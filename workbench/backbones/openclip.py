"""open_clip's vision transformers as `Backbone`s; open_clip is imported when one of its models is asked for."""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.backbones.packing import block_index, check_images
from workbench.features import Features


class OpenClipBackbone(nn.Module):
    """The image tower of a CLIP model as a `Backbone`, at any image size.

    Tokens come after the tower's last norm and before its projection into the space of text. The position embedding is
    resized to other grids than the one it was trained on (bicubic, as open_clip's own `resize_pos_embed`). There are no
    registers. `mean` and `std` are what the model wants pixels normalised with.

    Args:
        name: of an open_clip model with a plain vision transformer, such as `ViT-B-16`. Weights start random; nothing
            is downloaded. Raises ValueError for unknown names and for other kinds of towers.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.visual, self.mean, self.std = _tower(name)
        self.patch_size: int = self.visual.conv1.kernel_size[0]
        self.embed_dim: int = self.visual.conv1.out_channels
        self.depth: int = len(self.visual.transformer.resblocks)
        self.eval()

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """See `Backbone.features`."""
        index = block_index(layer, self.depth)
        check_images(images, None, self.patch_size)
        grid = images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        tokens = self._embedded(images, grid)
        blocks = self.visual.transformer.resblocks
        for block in blocks[:index]:
            tokens = block(tokens)
        weights = self._weights(blocks[index], tokens) if attention else None
        tokens = self.visual.ln_post(blocks[index](tokens))
        patches = tokens[:, 1:].unflatten(1, grid)
        return Features(patches, tokens[:, 0], tokens.new_zeros(len(tokens), 0, self.embed_dim), weights)

    def _embedded(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, 1 + H W, D] before the first block."""
        visual = self.visual
        tokens = visual.conv1(images).flatten(2).transpose(1, 2)
        cls = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat((cls, tokens), dim=1)
        return visual.ln_pre(tokens + resized_positions(visual.positional_embedding, grid).to(tokens.dtype))

    def _weights(self, block: Any, tokens: Tensor) -> Tensor:
        """[B, heads, T, T] of the block whose input is `tokens`."""
        normed = block.ln_1(tokens)
        _, weights = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=False)
        return weights


def resized_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """The position embedding [1 + N, D] of a square grid for a `grid` (H, W): [1 + H W, D]; itself at its own grid."""
    side = math.isqrt(len(table) - 1)
    if grid == (side, side):
        return table
    square = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(square, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat((table[:1], resized.flatten(2)[0].T.to(table.dtype)))


def load_openclip_weights(backbone: OpenClipBackbone, state: dict[str, Tensor]) -> None:
    """Load the image tower out of a checkpoint of the whole model, or of the tower alone; all its keys must match."""
    tower = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    with torch.no_grad():
        backbone.visual.load_state_dict(tower or state, strict=True)


def _tower(name: str) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    try:
        import open_clip
        from open_clip.transformer import VisionTransformer
    except ImportError as error:
        raise ImportError("open_clip backbones need open_clip: pip install open_clip_torch") from error
    if name not in open_clip.list_models():
        similar = ", ".join(difflib.get_close_matches(name, open_clip.list_models(), n=3)) or "none"
        raise ValueError(f"open_clip has no model {name!r}. Similar: {similar}; all: open_clip.list_models().")
    config = open_clip.get_model_config(name) or {}
    if "timm_model_name" in config.get("vision_cfg", {}):
        raise ValueError(
            f"the image tower of {name} is timm's {config['vision_cfg']['timm_model_name']}; load that one."
        )
    visual: Any = open_clip.create_model(name, pretrained=None, load_weights=False).visual
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
        raise ValueError(f"the image tower of {name} is no plain vision transformer; choose another, such as ViT-B-16.")
    mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return visual, tuple(mean), tuple(std)
