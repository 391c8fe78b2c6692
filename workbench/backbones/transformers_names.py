"""Our networks under the names of transformers, and back: config entries and tensors. Imports nothing of transformers.

`VisionTransformer` is its DINOv3ViTModel, `ConvNeXt` its DINOv3ConvNextModel. Their files hold `layer.0.…` and
`stages.0.…`; versions from 5 on say `model.layer.0.…` and `model.stages.0.…` in memory. Both are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.backbones.architecture import Network, network_with_weights
from workbench.backbones.convnext import ConvNeXt, ConvNeXtConfig
from workbench.backbones.rope import RopePositionEmbedding
from workbench.backbones.vit import ViTConfig

VIT_NAMES = {
    "cls_token": "embeddings.cls_token",
    "storage_tokens": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj.": "embeddings.patch_embeddings.",
    "blocks.": "layer.",
    ".attn.proj.": ".attention.o_proj.",
    ".ls1.gamma": ".layer_scale1.lambda1",
    ".ls2.gamma": ".layer_scale2.lambda1",
}
FFN_NAMES = {
    "mlp": {".mlp.fc1.": ".mlp.up_proj.", ".mlp.fc2.": ".mlp.down_proj."},
    "swiglu": {".mlp.w1.": ".mlp.gate_proj.", ".mlp.w2.": ".mlp.up_proj.", ".mlp.w3.": ".mlp.down_proj."},
}
ACTIVATIONS = {"mlp": "gelu", "swiglu": "silu"}
CONVNEXT_BLOCK_NAMES = {"dwconv": "depthwise_conv", "norm": "layer_norm", "pwconv": "pointwise_conv"}


def transformers_config(model: Network) -> dict[str, Any]:
    """Entries of the config.json that describes `model`. Raises ValueError for what transformers cannot compute."""
    if isinstance(model, ConvNeXt):
        return _convnext_entries(model.config)
    return _vit_entries(model.config)


def transformers_tensors(model: Network) -> dict[str, Tensor]:
    """The tensors of `model` under the names in transformers' files; constants that it computes are left out."""
    state = model.state_dict()
    if isinstance(model, ConvNeXt):
        return {_convnext_name(name): tensor for name, tensor in state.items()}
    return _vit_tensors(model.config, state)


def network_from_transformers(entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Network:
    """Our network in evaluation mode from a config.json of model type dinov3_vit or dinov3_convnext and its tensors.

    Raises ValueError for settings our networks do not have, RuntimeError for tensors that do not fit.
    """
    plain = {re.sub(r"^model\.(?=layer\.|stages\.)", "", name): tensor for name, tensor in tensors.items()}
    if entries.get("model_type") == "dinov3_convnext":
        state = {_our_convnext_name(name): tensor for name, tensor in plain.items()}
        return network_with_weights(_our_convnext_config(entries), state)
    config = _our_vit_config(entries)
    return network_with_weights(config, _our_vit_tensors(config, plain))


def renamed(name: str, table: Mapping[str, str]) -> str:
    """`name` with every key of `table` in it replaced by its value."""
    for old, new in table.items():
        name = name.replace(old, new)
    return name


# ---- vision transformer ----


def _vit_entries(config: ViTConfig) -> dict[str, Any]:
    if config.rope_coords != "separate":
        raise ValueError(
            f"rope_coords is {config.rope_coords!r}; transformers only divides coordinates by each side ('separate')."
        )
    return {
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        "patch_size": config.patch_size,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.ffn_hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_register_tokens": config.num_registers,
        "hidden_act": ACTIVATIONS[config.ffn],
        "use_gated_mlp": config.ffn == "swiglu",
        "query_bias": config.qkv_bias,
        "key_bias": config.qkv_bias and not config.mask_k_bias,
        "value_bias": config.qkv_bias,
        "proj_bias": True,
        "mlp_bias": True,
        "layerscale_value": config.layerscale or 1.0,
        "layer_norm_eps": config.norm_eps,
        "drop_path_rate": 0.0,
        "rope_theta": config.rope_base,
        "pos_embed_shift": config.rope_shift,
        "pos_embed_jitter": config.rope_jitter,
        "pos_embed_rescale": config.rope_rescale,
        "dtype": "float32",
    }


def _vit_tensors(config: ViTConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    table = VIT_NAMES | FFN_NAMES[config.ffn]
    left_out = ("rope_embed.", "local_cls_norm.")
    none = state["cls_token"].new_empty(1, 0, config.embed_dim)
    tensors = {"embeddings.register_tokens": none}  # present there even when there are none
    for name, tensor in state.items():
        if name.startswith(left_out) or name.endswith(".bias_mask"):
            continue
        if ".attn.qkv." in name:
            tensors |= _split_qkv(renamed(name, table), tensor, key_bias=not config.mask_k_bias)
        else:
            tensors[renamed(name, table)] = tensor[None] if name == "mask_token" else tensor
    if not config.layerscale:
        ones = torch.ones_like(state["norm.weight"])
        tensors |= {f"layer.{i}.layer_scale{j}.lambda1": ones.clone() for i in range(config.depth) for j in (1, 2)}
    return tensors


def _split_qkv(name: str, tensor: Tensor, *, key_bias: bool) -> dict[str, Tensor]:
    thirds = zip("qkv", tensor.chunk(3), strict=True)
    parts = {name.replace(".attn.qkv.", f".attention.{letter}_proj."): third.clone() for letter, third in thirds}
    if not key_bias:
        parts.pop(name.replace(".attn.qkv.bias", ".attention.k_proj.bias"), None)
    return parts


def _our_vit_config(entries: Mapping[str, Any]) -> ViTConfig:
    ffn = "swiglu" if entries.get("use_gated_mlp", False) else "mlp"
    wanted = {"hidden_act": ACTIVATIONS[ffn], "num_channels": 3, "proj_bias": True, "mlp_bias": True}
    defaults = {"hidden_act": "gelu", "num_channels": 3, "proj_bias": True, "mlp_bias": True}
    for name, value in wanted.items():
        if entries.get(name, defaults[name]) != value:
            raise ValueError(f"config.json has {name} {entries[name]!r}; our vision transformer has {value!r} here.")
    biases = tuple(bool(entries.get(f"{name}_bias", name != "key")) for name in ("query", "key", "value"))
    if biases not in ((True, True, True), (True, False, True), (False, False, False)):
        raise ValueError(f"config.json has query, key, value biases {biases}; allowed: all, all but the key's, none.")
    side = entries.get("patch_size", 16)
    return ViTConfig(
        patch_size=side if isinstance(side, int) else _square(side),
        embed_dim=entries.get("hidden_size", 384),
        depth=entries.get("num_hidden_layers", 12),
        num_heads=entries.get("num_attention_heads", 6),
        ffn=ffn,
        ffn_hidden=entries.get("intermediate_size", 1536),
        num_registers=entries.get("num_register_tokens", 0),
        qkv_bias=biases[0],
        mask_k_bias=biases[0] and not biases[1],
        layerscale=entries.get("layerscale_value", 1.0),
        norm_eps=entries.get("layer_norm_eps", 1e-5),
        rope_base=entries.get("rope_theta", 100.0),
        rope_shift=entries.get("pos_embed_shift"),
        rope_jitter=entries.get("pos_embed_jitter"),
        rope_rescale=entries.get("pos_embed_rescale", 2.0),
    )


def _square(sides: Any) -> int:
    if len(set(sides)) != 1:
        raise ValueError(f"config.json has patch_size {sides!r}; our patches are square.")
    return sides[0]


def _our_vit_tensors(config: ViTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    table = {theirs: ours for ours, theirs in (VIT_NAMES | FFN_NAMES[config.ffn]).items()}
    rest, state = dict(tensors), {}
    for index in range(config.depth):
        state |= _take_qkv(config, rest, index)
    state |= {renamed(name, table): tensor for name, tensor in rest.items()}
    if "mask_token" in state:
        state["mask_token"] = state["mask_token"].reshape(1, -1)
    if not config.num_registers:
        state.pop("storage_tokens", None)
    state["rope_embed.periods"] = RopePositionEmbedding(config.head_dim, base=config.rope_base).periods
    return state


def _take_qkv(config: ViTConfig, tensors: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Take the parts of the qkv projection of block `index` out of `tensors`; the whole, where all parts are there."""
    ours, joined = f"blocks.{index}.attn.qkv.", {}
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        given = "qv" if kind == "bias" and config.mask_k_bias else "qkv"
        found = [tensors.pop(f"layer.{index}.attention.{letter}_proj.{kind}", None) for letter in given]
        parts = [part for part in found if part is not None]
        if given == "qv" and parts:
            parts.insert(1, torch.zeros_like(parts[0]))
        if len(parts) == 3:
            joined[f"{ours}{kind}"] = torch.cat(parts)
    if config.mask_k_bias and config.qkv_bias:
        joined[f"{ours}bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(config.embed_dim)
    return joined


# ---- ConvNeXt ----


def _convnext_entries(config: ConvNeXtConfig) -> dict[str, Any]:
    return {
        "model_type": "dinov3_convnext",
        "architectures": ["DINOv3ConvNextModel"],
        "hidden_sizes": list(config.dims),
        "depths": list(config.depths),
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "layer_scale_init_value": config.layerscale,
        "drop_path_rate": config.drop_path,
        "dtype": "float32",
    }


def _convnext_name(name: str) -> str:
    name = re.sub(r"^downsample_layers\.(\d)\.", r"stages.\1.downsample_layers.", name)
    block = re.fullmatch(r"stages\.(\d)\.(\d+)\.(.+)", name)
    if block:
        return f"stages.{block[1]}.layers.{block[2]}.{renamed(block[3], CONVNEXT_BLOCK_NAMES)}"
    return re.sub(r"^norm\.", "layer_norm.", name)


def _our_convnext_name(name: str) -> str:
    name = re.sub(r"^stages\.(\d)\.downsample_layers\.", r"downsample_layers.\1.", name)
    block = re.fullmatch(r"stages\.(\d)\.layers\.(\d+)\.(.+)", name)
    if block:
        ours = {theirs: ours for ours, theirs in CONVNEXT_BLOCK_NAMES.items()}
        return f"stages.{block[1]}.{block[2]}.{renamed(block[3], ours)}"
    return re.sub(r"^layer_norm\.", "norm.", name)


def _our_convnext_config(entries: Mapping[str, Any]) -> ConvNeXtConfig:
    for name, value in {"hidden_act": "gelu", "num_channels": 3}.items():
        if entries.get(name, value) != value:
            raise ValueError(f"config.json has {name} {entries[name]!r}; our ConvNeXt has {value!r} here.")
    return ConvNeXtConfig(
        dims=entries.get("hidden_sizes") or ConvNeXtConfig.dims,
        depths=entries.get("depths") or ConvNeXtConfig.depths,
        layerscale=entries.get("layer_scale_init_value", 1e-6),
        norm_eps=entries.get("layer_norm_eps", 1e-6),
        drop_path=entries.get("drop_path_rate", 0.0),
    )
