"""Parameter groups against the published rules, rates, and clipping."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from training.heads import HeadConfig, ProjectionHead
from training.optim import OptimConfig, all_finite, build_optimizer, clip_gradients, parameter_groups, set_rates
from training.schedules import Schedule, constant
from workbench.backbones.vit import VisionTransformer, ViTConfig

DEPTH, DECAY, PATCH = 3, 0.9, 0.2

# name -> (lr multiplier, weight-decay multiplier, is last layer), written out from the rules
RULES = {
    "backbone.cls_token": (DECAY**4, 1.0, False),
    "backbone.storage_tokens": (DECAY**4, 1.0, False),
    "backbone.mask_token": (DECAY**4, 1.0, False),
    "backbone.patch_embed.proj.weight": (DECAY**4 * PATCH, 1.0, False),
    "backbone.patch_embed.proj.bias": (DECAY**4 * PATCH, 0.0, False),
    "backbone.blocks.0.norm1.weight": (DECAY**3, 0.0, False),
    "backbone.blocks.0.attn.qkv.weight": (DECAY**3, 1.0, False),
    "backbone.blocks.0.attn.qkv.bias": (DECAY**3, 0.0, False),
    "backbone.blocks.0.ls1.gamma": (DECAY**3, 0.0, False),
    "backbone.blocks.1.mlp.fc1.weight": (DECAY**2, 1.0, False),
    "backbone.blocks.2.mlp.fc2.bias": (DECAY**1, 0.0, False),
    "backbone.blocks.2.attn.proj.weight": (DECAY**1, 1.0, False),
    "backbone.norm.weight": (1.0, 0.0, False),
    "backbone.norm.bias": (1.0, 0.0, False),
    "dino_head.mlp.0.weight": (1.0, 1.0, False),
    "dino_head.mlp.4.bias": (1.0, 0.0, False),
    "dino_head.last_layer.weight": (1.0, 1.0, True),
    "ibot_head.last_layer.weight": (1.0, 1.0, True),
}


def student() -> dict[str, nn.Module]:
    generator = torch.Generator().manual_seed(0)
    vit = VisionTransformer(
        ViTConfig(patch_size=4, embed_dim=16, depth=DEPTH, num_heads=2, ffn_hidden=32, num_registers=2),
        generator=generator,
    )
    heads = {name: ProjectionHead(16, HeadConfig(hidden=24, bottleneck=8, prototypes=12)) for name in ("dino", "ibot")}
    for head in heads.values():
        head.init_weights(generator)
    return {"backbone": vit, "dino_head": heads["dino"], "ibot_head": heads["ibot"]}


def grouped(modules: dict[str, nn.Module]) -> list[dict]:
    return parameter_groups(modules, depth=DEPTH, layer_decay=DECAY, patch_embed_lr_multiplier=PATCH)


def test_multipliers_follow_the_rules() -> None:
    found = {
        name: (group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"])
        for group in grouped(student())
        for name in group["names"]
    }
    for name, (lr, wd, last) in RULES.items():
        assert found[name] == (pytest.approx(lr), wd, last), name


def test_groups_hold_every_parameter_once_fused_and_in_a_fixed_order() -> None:
    modules = student()
    groups = grouped(modules)
    names = [name for group in groups for name in group["names"]]
    everything = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
    assert sorted(names) == sorted(everything)
    assert all(p is everything[n] for g in groups for n, p in zip(g["names"], g["params"], strict=True))
    keys = [(g["lr_multiplier"], g["wd_multiplier"], g["is_last_layer"], g["is_backbone"]) for g in groups]
    assert (
        len(set(keys)) == len(keys) == 2 + 1 + 2 * DEPTH + 1 + 2 + 1
    )  # patch embed, tokens, blocks, norm, heads, prototypes
    assert [g["names"] for g in grouped(student())] == [g["names"] for g in groups]


def test_frozen_and_shared_parameters() -> None:
    modules = student()
    modules["backbone"].get_parameter("cls_token").requires_grad_(False)
    modules["ibot_head"] = modules["dino_head"]
    names = [name for group in grouped(modules) for name in group["names"]]
    assert "backbone.cls_token" not in names
    assert not any(name.startswith("ibot_head") for name in names)


def test_a_module_without_blocks_has_no_layer_decay() -> None:
    convnet = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 2), "norm": nn.LayerNorm(4)})
    groups = parameter_groups({"backbone": convnet}, depth=12, layer_decay=0.5, patch_embed_lr_multiplier=0.2)
    assert {group["lr_multiplier"] for group in groups} == {1.0}
    assert {n for g in groups if g["wd_multiplier"] for n in g["names"]} == {"backbone.stem.weight"}


def test_wrong_depth_and_nothing_to_train_are_named() -> None:
    with pytest.raises(ValueError, match="block 2, but depth is 2"):
        parameter_groups(student(), depth=2, layer_decay=0.9, patch_embed_lr_multiplier=0.2)
    with pytest.raises(ValueError, match="no trainable parameter in frozen"):
        grouped({"frozen": nn.Linear(2, 2).requires_grad_(False)})
    with pytest.raises(ValueError, match="clip_norm is 0"):
        OptimConfig(clip_norm=0)
    with pytest.raises(ValueError, match=r"layer_decay is 1\.5"):
        OptimConfig(layer_decay=1.5)


def test_rates_reach_every_group() -> None:
    optimizer = build_optimizer(student(), OptimConfig(layer_decay=DECAY, betas=(0.9, 0.99), eps=1e-7), DEPTH)
    assert all(group["lr"] == 0.0 for group in optimizer.param_groups)
    assert optimizer.defaults["betas"] == (0.9, 0.99)
    assert optimizer.defaults["eps"] == 1e-7
    set_rates(optimizer, lr=2.0, weight_decay=0.3, last_layer_lr=0.0)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 0.3 * group["wd_multiplier"]
        assert group["lr"] == (0.0 if group["is_last_layer"] else 2.0 * group["lr_multiplier"])


def test_one_step_equals_adamw_written_out_and_leaves_frozen_prototypes() -> None:
    modules = student()
    optimizer = build_optimizer(modules, OptimConfig(layer_decay=DECAY), DEPTH)
    generator = torch.Generator().manual_seed(1)
    before = {}
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            before[name] = p.detach().clone()
    set_rates(optimizer, lr=0.01, weight_decay=0.5, last_layer_lr=0.0)
    optimizer.step()
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            rate = 0.0 if group["is_last_layer"] else 0.01 * group["lr_multiplier"]
            step = rate * p.grad / (p.grad.abs() + 1e-8)  # the first bias-corrected Adam step is the sign
            expected = before[name] * (1 - rate * 0.5 * group["wd_multiplier"]) - step
            torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-6)


def test_optimizer_state_resumes_bit_for_bit() -> None:
    def run(split: bool) -> list[torch.Tensor]:
        modules = student()
        optimizer = build_optimizer(modules, OptimConfig(), DEPTH)
        for step in range(4):
            if split and step == 2:
                state = optimizer.state_dict()
                optimizer = build_optimizer(modules, OptimConfig(), DEPTH)
                optimizer.load_state_dict(state)
            for i, p in enumerate(p for m in modules.values() for p in m.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))
            set_rates(optimizer, lr=1e-2, weight_decay=0.1, last_layer_lr=1e-2)
            optimizer.step()
        return [p.detach() for m in modules.values() for p in m.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


@pytest.mark.parametrize("max_norm", [0.5, 1e6, None])
def test_each_module_is_clipped_by_its_own_norm(max_norm: float | None) -> None:
    modules: dict[str, nn.Module] = {"large": nn.Linear(20, 30), "small": nn.Linear(3, 2), "idle": nn.Linear(2, 2)}
    generator = torch.Generator().manual_seed(0)
    for name, scale in (("large", 10.0), ("small", 0.01)):
        for p in modules[name].parameters():
            p.grad = scale * torch.randn(p.shape, generator=generator)
    gradients = {n: torch.cat([p.grad.flatten() for p in modules[n].parameters() if p.grad is not None]).double()
                 for n in ("large", "small")}  # fmt: skip
    norms = clip_gradients(modules, max_norm)
    assert list(norms) == ["large", "small", "idle"]
    assert float(norms["idle"]) == 0.0
    for name, gradient in gradients.items():
        assert float(norms[name]) == pytest.approx(gradient.norm().item(), rel=1e-5)
        expected = gradient * min(1.0, (max_norm or math.inf) / (gradient.norm().item() + 1e-6))
        after = torch.cat([p.grad.flatten() for p in modules[name].parameters() if p.grad is not None]).double()
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_gradient_shows_in_the_norm_of_its_module(bad: float) -> None:
    modules: dict[str, nn.Module] = {"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}
    for module in modules.values():
        for p in module.parameters():
            p.grad = torch.ones_like(p)
    modules["b"].weight.grad[1, 2] = bad  # pyright: ignore
    norms = clip_gradients(modules, 3.0)
    assert all_finite([norms["a"]])
    assert not all_finite(norms.values())
    assert not all_finite([torch.tensor(1.0), torch.tensor(bad)])
    assert all_finite([])


def test_config_resolves_for_a_run() -> None:
    config = OptimConfig().resolve(125_000, 2048)
    assert config.lr.peak == pytest.approx(5.657e-3, rel=1e-3)
    assert config.lr.end == 1e-6
    assert config.freeze_last_layer_steps == 1250
    assert config.lr_scaling == "none"
    assert config.rates(0) == {"lr": 0.0, "weight_decay": 0.04, "last_layer_lr": 0.0, "backbone_lr": 0.0}
    assert config.rates(1249)["last_layer_lr"] == 0.0
    late = config.rates(1250)
    assert late["last_layer_lr"] == late["lr"] > 0
    plain = OptimConfig(lr=Schedule(peak=1e-3, warmup_steps=2), weight_decay=constant(0.1), lr_scaling="none")
    assert dataclasses.replace(plain, freeze_last_layer_steps=0).resolve(10, 32).rates(5)["lr"] == 1e-3
