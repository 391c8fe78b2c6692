"""timm's vision transformers and ConvNeXts as `Backbone`s; timm is imported when one of its models is asked for."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from workbench.backbones.convnext import STRIDE
from workbench.backbones.packing import block_index, check_images
from workbench.features import Features


def timm_backbone(name: str) -> TimmBackbone | TimmConvNeXt:
    """The timm model `name`, such as `vit_small_patch16_dinov3` or `convnext_tiny.dinov3_lvd1689m`, as a `Backbone`.

    Weights start random; nothing is downloaded.
    Raises ValueError for unknown names and for models that are neither plain vision transformers nor ConvNeXts.
    """
    model = _create(name)
    return TimmConvNeXt(model) if _is_convnext(model) else TimmBackbone(model)


class TimmBackbone(nn.Module):
    """A timm vision transformer (also its DINOv2 and DINOv3 ones) as a `Backbone`.

    Tokens ahead of the patches are read as [class token, registers]. A model without a class token gets the mean of
    its patch tokens instead, as timm's own average pooling does.

    Args:
        model: a plain vision transformer of timm, or its name (see `timm_backbone`).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = _create(model) if isinstance(model, str) else model
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


class TimmConvNeXt(nn.Module):
    """A timm ConvNeXt as a `Backbone`, with the contract of our own (`workbench.backbones.convnext.ConvNeXt`).

    `layer` counts stages; the head's norm goes over the last map and its mean, earlier stages come as they are.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.patch_size, self.embed_dim, self.depth = STRIDE, int(model.num_features), len(model.stages)
        self.eval()

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """See `Backbone.features`; `attention=True` is a ValueError."""
        if attention:
            raise ValueError("a ConvNeXt has no attention weights; call features(..., attention=False).")
        index = block_index(layer, self.depth, unit="stages")
        check_images(images, None, STRIDE, unit="stride")
        (maps,) = self.model.forward_intermediates(images, indices=[index], stop_early=True, intermediates_only=True)
        mean = maps.mean(dim=(2, 3), keepdim=True)
        if index == self.depth - 1:
            maps, mean = self.model.head.norm(maps), self.model.head.norm(mean)
        cls = mean.flatten(1)
        return Features(maps.permute(0, 2, 3, 1), cls, cls.new_zeros(len(cls), 0, cls.shape[1]))


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
        known = timm.list_models(["*vit*", "convnext*"])
        similar = ", ".join(difflib.get_close_matches(name, known, n=3)) or "none"
        raise ValueError(f"timm has no model {name!r}. Similar: {similar}; all: timm.list_models().")
    sizes: dict[str, Any] = {} if name.startswith("convnext") else {"dynamic_img_size": True}
    try:
        model: Any = timm.create_model(name, pretrained=False, num_classes=0, **sizes)
    except TypeError:  # raised by architectures without the option, such as other convolutional ones
        model = None
    if model is None or not (_is_convnext(model) or _is_plain_vit(model)):
        raise ValueError(
            f"timm model {name!r} is neither a plain vision transformer nor a ConvNeXt; choose a name starting with "
            "'vit_' or 'convnext_'."
        )
    return model


def _is_plain_vit(model: Any) -> bool:
    return all(hasattr(model, part) for part in ("blocks", "patch_embed", "num_prefix_tokens"))


def _is_convnext(model: Any) -> bool:
    """Whether a timm model is a ConvNeXt whose norm comes after pooling, as in the DINOv3 ones."""
    if not all(hasattr(model, part) for part in ("stem", "stages", "norm_pre", "head")):
        return False
    return isinstance(model.norm_pre, nn.Identity) and isinstance(getattr(model.head, "norm", None), nn.LayerNorm)


def load_timm_weights(backbone: TimmBackbone | TimmConvNeXt, state: dict[str, Tensor]) -> None:
    """Load a timm checkpoint into the adapter; keys of a classifier head are left out, all others must match."""
    wanted = set(backbone.model.state_dict())
    state = {key: value for key, value in state.items() if key in wanted or not key.startswith("head.")}
    with torch.no_grad():
        backbone.model.load_state_dict(state, strict=True)
