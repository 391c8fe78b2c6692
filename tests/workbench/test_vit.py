"""The vision transformer: sizes, names, initialisation, masks, crop groups, stochastic depth, layers, errors."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from workbench.backbones import VisionTransformer, ViTConfig, architecture_of, network_from_architecture
from workbench.backbones.blocks import Group, add_to_rows
from workbench.backbones.config import swiglu_hidden
from workbench.backbones.packing import draw_subsets
from workbench.features import Backbone


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(**overrides) -> VisionTransformer:
    """Three blocks of 32 channels, patch 4, two registers, weights large enough to matter."""
    settings = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_registers": 2, "layerscale": 0.5}
    model = VisionTransformer(ViTConfig(**(settings | overrides)))
    model.init_weights(generator(1), std=None)
    return model


def pictures(batch: int = 2, height: int = 12, width: int = 20, seed: int = 3) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=generator(seed))


def same(left, right, tolerance: float = 1e-6) -> bool:
    """Whether two Features agree in patches, class token and registers."""
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(left[:3], right[:3], strict=True))


# ---- config ----


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("vit_small", 21_601_152),
        ("vit_small_plus", 28_697_472),
        ("vit_base", 85_669_632),
        ("vit_large", 303_154_176),
        ("vit_large_plus", 403_915_776),
        ("vit_huge_plus", 840_633_600),
        ("vit_7b", 6_716_043_264),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = VisionTransformer(getattr(ViTConfig, size)())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("size", ["vit_nano", "vit_micro", "vit_tiny"])
def test_laptop_sizes_are_small_and_take_overrides(size: str) -> None:
    config = getattr(ViTConfig, size)(num_registers=1, drop_path=0.1)
    assert (config.num_registers, config.drop_path) == (1, 0.1)
    with torch.device("meta"):
        assert sum(p.numel() for p in VisionTransformer(config).parameters()) < 6_000_000


@pytest.mark.parametrize(
    ("dim", "ratio", "align", "hidden"), [(384, 6, 8, 1536), (1280, 6, 8, 5120), (4096, 3, 64, 8192), (100, 4, 8, 272)]
)
def test_swiglu_width_follows_the_published_rule(dim: int, ratio: float, align: int, hidden: int) -> None:
    assert swiglu_hidden(dim, ratio, align) == hidden


def test_ffn_width_is_resolved() -> None:
    assert ViTConfig(embed_dim=64, num_heads=2).ffn_hidden == 256
    assert ViTConfig(embed_dim=96, num_heads=2, ffn="swiglu").ffn_hidden == 256
    assert ViTConfig(embed_dim=64, num_heads=2, ffn_hidden=100).ffn_hidden == 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 100, "num_heads": 3}, r"embed_dim 100 is not divisible by num_heads 3.*\[1, 5, 25\]"),
        ({"embed_dim": 60, "num_heads": 6}, "heads of 10 channels.*multiple of 4"),
        ({"ffn": "relu"}, "ffn is 'relu'; allowed: mlp, swiglu"),
        ({"rope_coords": "mean"}, "rope_coords is 'mean'; allowed: separate, min, max"),
        ({"depth": 0}, "depth is 0.*at least 1"),
        ({"patch_size": 2.5}, r"patch_size is 2\.5"),
        ({"num_registers": -1}, "num_registers is -1"),
        ({"drop_path": 1.0}, r"drop_path is 1\.0.*\[0, 1\)"),
        ({"layerscale": -0.5}, r"layerscale is -0\.5.*0 \(none\)"),
        ({"layerscale": float("nan")}, r"layerscale is nan"),
        ({"layerscale": float("inf")}, r"layerscale is inf"),
        ({"rope_rescale": 0.5}, r"rope_rescale is 0\.5.*at least 1"),
        ({"norm_eps": 0.0}, r"norm_eps is 0\.0.*greater than 0"),
    ],
)
def test_config_errors_name_value_and_allowed(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTConfig(**fields)


def test_config_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ViTConfig().depth = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        ViTConfig(16)  # type: ignore[misc]


def test_architecture_round_trip() -> None:
    model = small(ffn="swiglu", rope_jitter=1.2)
    record = architecture_of(model)
    again = network_from_architecture(record)
    assert again.config == model.config
    again.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"class": "ResNet", "config": {}}, "class 'ResNet'; allowed: 'VisionTransformer' or 'ConvNeXt'"),
        ({"class": "VisionTransformer"}, "config None"),
        ({"class": "VisionTransformer", "config": {"num_head": 3}}, "no field 'num_head'; nearest: num_heads"),
        ({"class": "VisionTransformer", "config": {"layerscale": "x"}}, "a field of ViTConfig that is no such value"),
        ({"class": "VisionTransformer", "config": {"depth": 10**9}}, "depth is 1000000000; it must be at most 1000"),
        ({"class": "VisionTransformer", "config": {"embed_dim": 10**9}}, "embed_dim is 1000000000; it must be at most"),
        ({"class": "ConvNeXt", "config": {"depths": [3, 3, 10**9, 3]}}, "none may be above 1000"),
    ],
)
def test_a_wrong_architecture_record_is_explained(record: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network_from_architecture(record)


# ---- names and initialisation ----

BLOCK_KEYS = [
    "norm1.weight",
    "norm1.bias",
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.qkv.bias_mask",
    "attn.proj.weight",
    "attn.proj.bias",
    "ls1.gamma",
    "norm2.weight",
    "norm2.bias",
    "ls2.gamma",
]
OUTER_KEYS = [
    "cls_token",
    "storage_tokens",
    "mask_token",
    "rope_embed.periods",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "norm.weight",
    "norm.bias",
    "local_cls_norm.weight",
    "local_cls_norm.bias",
]


@pytest.mark.parametrize(
    ("ffn", "layers"), [("mlp", ("fc1", "fc2")), ("swiglu", ("w1", "w2", "w3"))], ids=["mlp", "swiglu"]
)
def test_state_dict_has_the_official_names(ffn: str, layers: tuple[str, ...]) -> None:
    model = small(ffn=ffn, mask_k_bias=True, local_cls_norm=True, depth=2)
    block = [*BLOCK_KEYS, *(f"mlp.{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))]
    expected = {*OUTER_KEYS, *(f"blocks.{i}.{key}" for i in range(2) for key in block)}
    assert set(model.state_dict()) == expected
    shapes = {key: tuple(model.state_dict()[key].shape) for key in ("cls_token", "storage_tokens", "mask_token")}
    assert shapes == {"cls_token": (1, 1, 32), "storage_tokens": (1, 2, 32), "mask_token": (1, 32)}


def test_parts_switched_off_have_no_names() -> None:
    bare = small(num_registers=0, qkv_bias=False, mask_k_bias=True, layerscale=0.0).state_dict()
    assert not [key for key in bare if "storage" in key or "ls1" in key or "qkv.bias" in key or "local_cls" in key]


def test_initialisation_leaves_nothing_out_and_touches_no_global_randomness() -> None:
    with torch.device("meta"):
        model = VisionTransformer(ViTConfig.vit_nano(num_registers=2, mask_k_bias=True, local_cls_norm=True))
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan"))
    before = torch.get_rng_state()
    model.init_weights(generator())
    assert torch.equal(before, torch.get_rng_state())
    assert not [key for key, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    assert torch.equal(model.blocks[0].attn.qkv.bias_mask.view(3, -1)[:, 0], torch.tensor([1.0, 0.0, 1.0]))


def test_initial_scales() -> None:
    model = VisionTransformer(ViTConfig(embed_dim=192, depth=2, num_heads=3, num_registers=4))
    block = model.blocks[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.mlp.fc1.bias.abs().max() == 0
    assert model.storage_tokens.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.mask_token.abs().max() == 0
    bound = (3 * 16 * 16) ** -0.5
    assert 0.99 * bound < model.patch_embed.proj.weight.abs().max() <= bound
    assert torch.all(block.ls1.gamma == 1e-5)
    model.init_weights(generator(), std=None)
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.8 / 192**0.5, rel=0.02)
    assert block.mlp.fc2.weight.std().item() == pytest.approx(0.8 / 768**0.5, rel=0.02)


def test_weights_are_determined_by_the_generator() -> None:
    config = ViTConfig.vit_nano()
    default, zero, one = (VisionTransformer(config, generator=g) for g in (None, generator(0), generator(1)))
    assert all(torch.equal(a, b) for a, b in zip(default.parameters(), zero.parameters(), strict=True))
    assert not torch.equal(default.cls_token, one.cls_token)


# ---- forward ----


def test_features_keep_the_grid_and_the_contract() -> None:
    model = small().eval()
    features = model(pictures(2, 12, 20))
    assert isinstance(model, Backbone)
    assert features.patches.shape == (2, 3, 5, 32)
    assert features.cls.shape == (2, 32)
    assert features.registers.shape == (2, 2, 32)
    assert features.attention is None


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 12, 4), (3, 4, 28)])
def test_one_image_and_odd_grids(shape: tuple[int, int, int]) -> None:
    model = small(drop_path=0.5, rope_rescale=2.0)
    for mode in (True, False):
        features = model.train(mode)(pictures(*shape))
        assert features.grid == (shape[1] // 4, shape[2] // 4)
        assert all(part.isfinite().all() for part in features[:3])


def test_images_do_not_see_each_other() -> None:
    model = small().eval()
    both = model(pictures(2))
    assert same(model(pictures(2)[1:]), [part[1:] for part in both[:3]])


def test_patches_come_row_by_row_from_the_top() -> None:
    """Changing one patch of the picture changes the embedding of that patch most when blocks add nothing."""
    model = small(depth=1, layerscale=1e-9).eval()
    picture = pictures(1)
    changed = picture.clone()
    changed[:, :, 4:8, 12:16] += 1.0
    difference = (model(changed).patches - model(picture).patches).abs().amax(-1)[0]
    assert difference.argmax() == 1 * 5 + 3
    assert difference.flatten().sort().values[-2] < 1e-5


def test_patch_embedding_is_the_strided_convolution() -> None:
    embed = small().patch_embed
    expected = embed.proj(pictures()).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(embed([pictures()]), expected)


def test_masked_patches_are_replaced_before_the_blocks() -> None:
    model = small().eval()
    torch.nn.init.normal_(model.mask_token, generator=generator(4))
    masks = torch.zeros(2, 3, 5, dtype=torch.bool)
    masks[:, 1, 2] = True
    changed = pictures()
    changed[:, :, 4:8, 8:12] = 9.0
    assert same(model(changed, masks), model(pictures(), masks), 0)
    assert not same(model(pictures(), masks), model(pictures()), 1e-2)
    assert same(model(pictures(), torch.zeros_like(masks)), model(pictures()))


@pytest.mark.parametrize("masked", [False, True])
def test_every_parameter_gets_a_gradient_in_training(masked: bool) -> None:
    model = small(mask_k_bias=True, drop_path=0.5, rope_rescale=2.0)
    masks = torch.ones(2, 3, 5, dtype=torch.bool).tril() if masked else None
    features = model(pictures(), masks)
    sum(part.square().sum() * weight for part, weight in zip(features[:3], (1, 2, 3), strict=True)).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert bool(model.mask_token.grad.abs().max() > 0) == masked
    assert model.blocks[0].attn.qkv.bias.grad.chunk(3)[1].abs().max() == 0


def test_a_masked_key_bias_never_enters() -> None:
    model = small(mask_k_bias=True).eval()
    before = model(pictures())
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias.chunk(3)[1].fill_(5.0)
    assert same(model(pictures()), before, 0)


def test_crop_groups_in_one_pass_equal_separate_passes() -> None:
    model = small(drop_path=0.3, rope_rescale=2.0, local_cls_norm=True).eval()
    groups = [pictures(4, 16, 16), pictures(6, 8, 12, seed=4), pictures(1, 4, 20, seed=5)]
    masks = [torch.rand(4, 4, 4, generator=generator()) < 0.5, None, None]
    together = model.forward_groups(groups, masks)
    for images, mask, features in zip(groups, masks, together, strict=True):
        assert same(features, model(images, mask))


def test_local_crops_have_their_own_norm_in_training_only() -> None:
    model = small(local_cls_norm=True)
    plain = small()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("local_cls")})
    torch.nn.init.constant_(model.local_cls_norm.weight, 3.0)
    groups = [pictures(2), pictures(2, 8, 8)]
    for training in (True, False):
        with_norm, without = model.train(training).forward_groups(groups), plain.train(training).forward_groups(groups)
        assert same(with_norm[0], without[0])
        scale = 3.0 if training else 1.0
        torch.testing.assert_close(with_norm[1].cls, scale * without[1].cls)
        torch.testing.assert_close(with_norm[1].registers, scale * without[1].registers)
        torch.testing.assert_close(with_norm[1].patches, without[1].patches)


def test_bfloat16_autocast_is_finite_and_close() -> None:
    model = small().eval()
    exact = model(pictures())
    with torch.autocast("cpu", torch.bfloat16):
        model.train()
        features = model(pictures())
        sum(part.float().square().mean() for part in features[:3]).backward()
    for rough, part in zip(features[:3], exact[:3], strict=True):
        assert rough.isfinite().all()
        assert (rough - part).abs().max() < 0.1
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# ---- layers and attention ----


def test_features_of_a_layer_are_those_of_the_network_cut_there() -> None:
    model = small().eval()
    assert same(model.features(pictures()), model(pictures()), 0)
    cut = small(depth=2)
    cut.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("blocks.2")})
    for layer in (1, -2):
        assert same(model.features(pictures(), layer=layer), cut.eval()(pictures()), 0)


def test_attention_weights_reproduce_the_attention_layer() -> None:
    model = small(depth=1).eval()
    weights = model.features(pictures(), attention=True).attention
    assert weights.shape == (2, 2, 18, 18)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 18))
    seen = {}
    block = model.blocks[0]
    block.attn.register_forward_hook(lambda module, inputs, output: seen.update(tokens=inputs[0], output=output))
    model(pictures())
    value = block.attn.qkv(seen["tokens"]).view(2, 18, 3, 2, 16)[:, :, 2].transpose(1, 2)
    torch.testing.assert_close(block.attn.proj((weights @ value).transpose(1, 2).reshape(36, 32)), seen["output"])


# ---- randomness in training ----


def test_training_randomness_comes_from_the_generator_alone() -> None:
    model = small(drop_path=0.5, rope_shift=0.2, rope_jitter=1.2, rope_rescale=2.0)
    groups = [pictures(4), pictures(6, 8, 8)]

    def run(seed: int):
        model.generator = generator(seed)
        return model.forward_groups(groups)

    before = torch.get_rng_state()
    first, again, other = run(1), run(1), run(2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(same(a, b, 0) for a, b in zip(first, again, strict=True))
    assert not any(same(a, b, 1e-3) for a, b in zip(first, other, strict=True))
    model.eval()
    assert all(same(a, b, 0) for a, b in zip(run(1), run(2), strict=True))


@pytest.mark.parametrize("field", [{"drop_path": 0.5}, {"rope_rescale": 2.0}])
def test_no_generator_is_an_error_only_when_one_is_needed(field: dict[str, float]) -> None:
    model = small(**field)
    model.generator = None
    with pytest.raises(ValueError, match=r"model\.generator"):
        model(pictures())
    model.eval()(pictures())
    plain = small()
    plain.generator = None
    plain(pictures())


def test_rope_is_augmented_afresh_in_every_block_and_group() -> None:
    model = small(rope_rescale=2.0)
    seen = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda module, inputs, output: seen.append(inputs[2].cos[:, 0, 0]))
    model.forward_groups([pictures(2), pictures(1)])
    tables = [part for cos in seen for part in (cos[:18], cos[36:])]
    assert len(tables) == 6
    assert min((tables[a] - tables[b]).abs().max().item() for a in range(6) for b in range(a)) > 1e-3
    assert all(torch.equal(cos[:18], cos[18:36]) for cos in seen), "images of a group share their augmentation"


def test_stochastic_depth_keeps_whole_images_and_the_expectation() -> None:
    groups = [Group(10, 3), Group(4, 2)]
    kept_groups, subsets = draw_subsets(groups, 0.3, 4000, generator(), torch.device("cpu"))
    assert kept_groups == [Group(7, 3), Group(2, 2)]  # max(floor(b (1 - rate)), 1)
    tokens, branch = torch.zeros(38, 5), torch.randn(38, 5, generator=generator())
    results = []
    for kept in subsets[:2000]:
        added = add_to_rows(tokens, branch[kept.rows], kept)
        results.append(added)
        images = added[:30].view(10, 3, 5)
        present = images.abs().sum(-1) > 0
        assert present.all(1).sum() == 7
        assert (present.all(1) | ~present.any(1)).all()
    torch.testing.assert_close(torch.stack(results).mean(0), branch, atol=0.15, rtol=0)
    error = (torch.stack(results).mean(0) - branch).norm() / branch.norm()
    assert error < 0.03


def test_stochastic_depth_draws_anew_for_each_branch() -> None:
    _, subsets = draw_subsets([Group(16, 2)], 0.5, 6, generator(), torch.device("cpu"))
    assert len({tuple(sorted(kept.rows.tolist())) for kept in subsets}) == 6


def test_stochastic_depth_of_a_single_image_keeps_it_unscaled() -> None:
    model, plain = small(drop_path=0.4), small()
    assert same(model(pictures(1)), plain(pictures(1)))  # max(floor(0.6), 1) = 1 of 1 image kept, scale 1


def test_a_copy_computes_the_same() -> None:
    model = small(drop_path=0.5)
    twin = copy.deepcopy(model)
    assert same(model(pictures(4)), twin(pictures(4)), 0)
    assert twin.generator is not model.generator


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(pictures(1, 13, 20)), "height is 13 pixels.*patch size 4; nearest allowed: 12 or 16"),
        (lambda m: m(pictures(1, 12, 3)), "width is 3 pixels.*nearest allowed: 4"),
        (lambda m: m(torch.zeros(3, 12, 20)), r"shape \(3, 12, 20\); expected \[batch, 3"),
        (
            lambda m: m(pictures(2), torch.zeros(2, 15, dtype=torch.bool)),
            r"expected bool \[batch, H, W\] = \(2, 3, 5\)",
        ),
        (lambda m: m(pictures(2), torch.zeros(2, 3, 5)), r"dtype torch\.float32; expected bool"),
        (lambda m: m.forward_groups([pictures()], [None, None]), "1 groups of images, 2 of masks"),
        (lambda m: m.features(pictures(), layer=3), "layer is 3; this network has 3 blocks, allowed: -3 to 2"),
    ],
)
def test_errors_name_what_is_allowed(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small().eval())


def test_attention_under_stochastic_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        small(drop_path=0.5).features(pictures(), attention=True)
