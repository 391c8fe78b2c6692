"""Same weights, same non-square input: our network against the independent ones of transformers and timm."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from workbench.backbones import VisionTransformer, ViTConfig
from workbench.backbones.external import TimmBackbone
from workbench.backbones.timm_names import timm_tensors
from workbench.backbones.transformers_names import transformers_config, transformers_tensors

TOLERANCE = 1e-5  # float32, absolute, on features of unit scale


def random_network(config: ViTConfig, seed: int = 0) -> VisionTransformer:
    """A network in which every parameter matters: no gain near zero, no bias at zero, a distinct mask token."""
    generator = torch.Generator().manual_seed(seed)
    model = VisionTransformer(config, generator=generator).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
            parameter.copy_(0.8 + 0.1 * noise if gain else parameter + 0.02 * noise)
    return model


def picture(batch: int = 2, height: int = 80, width: int = 128) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


def some_masks(batch: int = 2, height: int = 5, width: int = 8) -> Tensor:
    return torch.rand(batch, height, width, generator=torch.Generator().manual_seed(8)) < 0.4


def flat_tokens(features) -> Tensor:
    """[B, 1 + R + H W, D] in the order of transformers and timm."""
    return torch.cat((features.cls[:, None], features.registers, features.patches.flatten(1, 2)), dim=1)


# ---- transformers ----


def transformers_twin(model: VisionTransformer):
    """The network of transformers that the exported config describes, holding the exported tensors."""
    transformers = pytest.importorskip("transformers")
    entries = {name: value for name, value in transformers_config(model).items() if name != "model_type"}
    twin = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**entries)).eval()
    state = {re.sub(r"^layer\.", "model.layer.", name): tensor for name, tensor in transformers_tensors(model).items()}
    twin.load_state_dict(state, strict=True)
    return twin


VARIANTS = {
    "ViT-S/16": ViTConfig.vit_small(),
    "SwiGLU, four registers, masked key bias": ViTConfig.vit_small_plus(depth=4),
    "SwiGLU, no qkv bias, two registers": ViTConfig(
        embed_dim=128, depth=3, num_heads=2, ffn="swiglu", num_registers=2, qkv_bias=False
    ),
    "MLP, full qkv bias, no registers, patch 8": ViTConfig(
        patch_size=8, embed_dim=96, depth=3, num_heads=3, norm_eps=1e-6
    ),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_features_equal_those_of_transformers(config: ViTConfig) -> None:
    model = random_network(config)
    twin = transformers_twin(model)
    images = picture(height=5 * config.patch_size, width=8 * config.patch_size)
    for masks in (None, some_masks()):
        theirs = twin(images, bool_masked_pos=None if masks is None else masks.flatten(1)).last_hidden_state
        ours = flat_tokens(model(images, masks))
        assert ours.std() > 0.3
        assert (ours - theirs).abs().max() <= TOLERANCE, f"masks: {masks is not None}"


@torch.no_grad()
def test_attention_weights_equal_those_of_transformers() -> None:
    model = random_network(ViTConfig.vit_small(depth=3))
    twin = transformers_twin(model)
    twin.set_attn_implementation("eager")
    theirs = twin(picture(), output_attentions=True).attentions
    for layer in range(3):
        ours = model.features(picture(), layer=layer, attention=True).attention
        assert ours is not None
        assert (ours - theirs[layer]).abs().max() <= TOLERANCE


# ---- timm ----


def timm_twin(name: str, model: VisionTransformer) -> TimmBackbone:
    pytest.importorskip("timm")
    twin = TimmBackbone(name)
    missing, unexpected = twin.model.load_state_dict(timm_tensors(model), strict=False)
    assert not unexpected
    assert all(key.endswith("k_bias") for key in missing), missing  # a constant zero in timm
    return twin


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vit_small_patch16_dinov3", ViTConfig.vit_small(qkv_bias=False)),
        ("vit_small_plus_patch16_dinov3_qkvb", ViTConfig.vit_small_plus()),
    ],
)
@torch.no_grad()
def test_features_equal_those_of_timm(name: str, config: ViTConfig) -> None:
    """timm's DINOv3 has no mask token, so in the masked case a hook on its patch embedding puts ours in."""
    model = random_network(config)
    twin = timm_twin(name, model)
    ours, theirs = flat_tokens(model(picture())), flat_tokens(twin.features(picture()))
    assert ours.std() > 0.3
    assert (ours - theirs).abs().max() <= TOLERANCE

    masks = some_masks()

    def put_mask_token(module, inputs, output):
        grid = output.view(*masks.shape, -1)
        return torch.where(masks[..., None], model.mask_token, grid).view(output.shape)

    twin.model.patch_embed.register_forward_hook(put_mask_token)
    masked, theirs = flat_tokens(model(picture(), masks)), flat_tokens(twin.features(picture()))
    assert (masked - ours).abs().max() > 0.1
    assert (masked - theirs).abs().max() <= TOLERANCE


@torch.no_grad()
def test_the_timm_adapter_gives_the_layer_and_the_attention_asked_for() -> None:
    model = random_network(ViTConfig.vit_small())
    twin = timm_twin("vit_small_patch16_dinov3_qkvb", model)
    for layer in (0, 5, -1):
        ours = model.features(picture(), layer=layer, attention=True)
        theirs = twin.features(picture(), layer=layer, attention=True)
        for name, left, right in zip(ours._fields, ours, theirs, strict=True):
            assert (left - right).abs().max() <= TOLERANCE, (layer, name)
