"""Other libraries' vision transformers as `Backbone`s; a library is imported when one of its models is asked for."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from workbench.backbones.packing import block_index, check_images
from workbench.features import Features


class TimmBackbone(nn.Module):
    """A timm vision transformer (also its DINOv3 ones) as a `Backbone`.

    Tokens ahead of the patches are read as [class token, registers]. A model without a class token gets the mean of
    its patch tokens instead, as timm's own average pooling does.

    Args:
        name: a timm model name, such as `vit_small_patch16_dinov3`. Weights start random; nothing is downloaded.
    Raises ValueError for unknown names and for models that are no plain vision transformers.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model: Any = _create(name)
        side = self.model.patch_embed.patch_size
        self.patch_size: int = side[0]
        self.embed_dim: int = self.model.embed_dim
        self.depth: int = len(self.model.blocks)
        self.has_class_token = getattr(self.model, "cls_token", None) is not None
        self.eval()

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """See `Backbone.features`."""
        layer = block_index(layer, self.depth)
        check_images(images, None, self.patch_size)
        if not attention:
            return self._features(images, layer)
        with _AttentionTap(self.model.blocks[layer].attn) as tap:
            features = self._features(images, layer)
        return features._replace(attention=tap.weights)

    def _features(self, images: Tensor, layer: int) -> Features:
        prefixed = self.model.num_prefix_tokens > 0
        (output,) = self.model.forward_intermediates(
            images, indices=[layer], norm=True, stop_early=True, intermediates_only=True, return_prefix_tokens=prefixed
        )
        maps, prefix = output if prefixed else (output, output.new_zeros(len(images), 0, self.embed_dim))
        patches = maps.permute(0, 2, 3, 1)
        if not self.has_class_token:
            return Features(patches, patches.mean(dim=(1, 2)), prefix)
        return Features(patches, prefix[:, 0], prefix[:, 1:])


class _AttentionTap:
    """While entered, records the softmax weights of one timm attention layer (its dropout sees them go by)."""

    def __init__(self, attention: Any) -> None:
        if not hasattr(attention, "fused_attn") or not isinstance(getattr(attention, "attn_drop", None), nn.Module):
            raise ValueError(f"{type(attention).__name__} does not expose its attention weights; use attention=False.")
        self.attention, self.weights = attention, None

    def __enter__(self) -> _AttentionTap:
        self.fused = self.attention.fused_attn
        self.attention.fused_attn = False
        self.hook = self.attention.attn_drop.register_forward_pre_hook(self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()
        self.attention.fused_attn = self.fused

    def _record(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.weights = inputs[0]


def _create(name: str) -> Any:
    """Build a timm model that takes any image size, with random weights."""
    try:
        import timm
    except ImportError as error:
        raise ImportError("timm backbones need timm: pip install timm") from error
    if not timm.is_model(name):
        similar = ", ".join(difflib.get_close_matches(name, timm.list_models("*vit*"), n=3)) or "none"
        raise ValueError(f"timm has no model {name!r}. Similar: {similar}; all: timm.list_models().")
    try:
        model: Any = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # raised by architectures without the option, such as convolutional ones
        model = None
    if model is None or not all(hasattr(model, part) for part in ("blocks", "patch_embed", "num_prefix_tokens")):
        raise ValueError(f"timm model {name!r} is not a plain vision transformer; choose a name starting with 'vit_'.")
    return model


def load_timm_weights(backbone: TimmBackbone, state: dict[str, Tensor]) -> None:
    """Load a timm checkpoint into the adapter; keys of a classifier head are left out, all others must match."""
    wanted = set(backbone.model.state_dict())
    state = {key: value for key, value in state.items() if key in wanted or not key.startswith("head.")}
    with torch.no_grad():
        backbone.model.load_state_dict(state, strict=True)
