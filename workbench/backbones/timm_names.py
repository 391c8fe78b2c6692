"""Our networks under the names of timm: which of its models one is, its arguments and its tensors."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from workbench.backbones.architecture import Network
from workbench.backbones.convnext import ConvNeXt, ConvNeXtConfig
from workbench.backbones.transformers_names import renamed
from workbench.backbones.vit import VisionTransformer, ViTConfig

VIT_NAMES = {
    "storage_tokens": "reg_token",
    "ls1.gamma": "gamma_1",
    "ls2.gamma": "gamma_2",
    "mlp.w1.": "mlp.fc1_g.",
    "mlp.w2.": "mlp.fc1_x.",
    "mlp.w3.": "mlp.fc2.",
}
CONVNEXT_BLOCK_NAMES = {"dwconv": "conv_dw", "pwconv": "mlp.fc"}

VIT_MODELS = {
    "vit_small_patch16_dinov3": ViTConfig.vit_small(),
    "vit_small_plus_patch16_dinov3": ViTConfig.vit_small_plus(),
    "vit_base_patch16_dinov3": ViTConfig.vit_base(),
    "vit_large_patch16_dinov3": ViTConfig.vit_large(),
    "vit_huge_plus_patch16_dinov3": ViTConfig.vit_huge_plus(),
    "vit_7b_patch16_dinov3": ViTConfig.vit_7b(),
}
"""timm's name without qkv bias -> the config with the same shapes."""
CONVNEXT_MODELS = {
    "convnext_tiny": ConvNeXtConfig.tiny(),
    "convnext_small": ConvNeXtConfig.small(),
    "convnext_base": ConvNeXtConfig.base(),
    "convnext_large": ConvNeXtConfig.large(),
}
SHAPE_FIELDS = (
    *("patch_size", "embed_dim", "depth", "num_heads", "ffn", "ffn_hidden", "num_registers", "norm_eps", "rope_base"),
)


def timm_name(model: Network) -> str | None:
    """The timm model that computes what `model` does, or None when timm has no such size."""
    if isinstance(model, ConvNeXt):
        found = [name for name, size in CONVNEXT_MODELS.items() if _same(size, model.config, ("dims", "depths"))]
        return found[0] if found and model.config.norm_eps == 1e-6 else None
    config = model.config
    if not config.layerscale or (config.qkv_bias and not config.mask_k_bias):
        return None
    found = [name for name, size in VIT_MODELS.items() if _same(size, config, SHAPE_FIELDS)]
    if not found or (config.qkv_bias and "7b" in found[0]):
        return None
    return f"{found[0]}_qkvb" if config.qkv_bias else found[0]


def _same(left: Any, right: Any, fields: tuple[str, ...]) -> bool:
    return all(getattr(left, field) == getattr(right, field) for field in fields)


def timm_arguments(model: Network) -> dict[str, Any]:
    """Arguments of timm's `Eva` (for a VisionTransformer) or `ConvNeXt` class, all plain JSON.

    Not among them: `norm_layer` of `Eva`, a LayerNorm with the config's `norm_eps`.
    Raises ValueError for what timm cannot compute.
    """
    if isinstance(model, ConvNeXt):
        config = model.config
        return {"num_classes": 0, "dims": list(config.dims), "depths": list(config.depths), "norm_eps": config.norm_eps}
    return _eva_arguments(model.config)


def _eva_arguments(config: ViTConfig) -> dict[str, Any]:
    if config.rope_coords != "separate":
        raise ValueError(f"rope_coords is {config.rope_coords!r}; timm only divides coordinates by each side.")
    swiglu = config.ffn == "swiglu"
    return {
        "num_classes": 0,
        "global_pool": "token",
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": _ratio(config),
        "swiglu_mlp": swiglu,
        "swiglu_align_to": 1 if swiglu else 0,  # 1 rounds nothing, but keeps gate and value apart as ours are
        "qkv_bias": config.qkv_bias,
        "attn_type": "rope" if config.qkv_bias and not config.mask_k_bias else "eva",  # only "rope" has a key bias
        "init_values": config.layerscale or None,
        "num_reg_tokens": config.num_registers,
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_temperature": config.rope_base,
        "rope_rotate_half": True,
        "use_fc_norm": False,
        "dynamic_img_size": True,
    }


def _ratio(config: ViTConfig) -> float:
    """A ratio that timm turns back into `ffn_hidden`: int(embed_dim ratio)."""
    assert config.ffn_hidden is not None
    ratio = config.ffn_hidden / config.embed_dim
    return ratio if int(config.embed_dim * ratio) == config.ffn_hidden else (config.ffn_hidden + 0.5) / config.embed_dim


def timm_tensors(model: Network) -> dict[str, Tensor]:
    """The tensors of `model` under timm's names; the mask token and constants have no place there."""
    state = model.state_dict()
    if isinstance(model, ConvNeXt):
        return {_convnext_name(name): tensor for name, tensor in state.items()}
    return _vit_tensors(model, state)


def _vit_tensors(model: VisionTransformer, state: dict[str, Tensor]) -> dict[str, Tensor]:
    left_out = ("rope_embed.", "local_cls_norm.", "mask_token")
    tensors = {}
    for name, tensor in state.items():
        if name.startswith(left_out) or name.endswith(".bias_mask"):
            continue
        if name.endswith("qkv.bias") and model.config.mask_k_bias:
            query, _, value = tensor.chunk(3)
            tensors[name.replace("qkv.bias", "q_bias")] = query.clone()
            tensors[name.replace("qkv.bias", "v_bias")] = value.clone()
        else:
            tensors[renamed(name, VIT_NAMES)] = tensor
    return tensors


def _convnext_name(name: str) -> str:
    name = re.sub(r"^downsample_layers\.0\.", "stem.", name)
    name = re.sub(r"^downsample_layers\.(\d)\.", r"stages.\1.downsample.", name)
    block = re.fullmatch(r"stages\.(\d)\.(\d+\..+)", name)
    if block:
        return f"stages.{block[1]}.blocks.{renamed(block[2], CONVNEXT_BLOCK_NAMES)}"
    return re.sub(r"^norm\.", "head.norm.", name)
