"""Projection heads: keys, shapes, initialisation, weight normalisation."""

from __future__ import annotations

import math

import pytest
import torch

from training.heads import EmbeddingHead, EmbeddingHeadConfig, HeadConfig, ProjectionHead
from training.optim import wd_multiplier

SMALL = {"hidden": 48, "bottleneck": 16, "prototypes": 40}


def head(seed: int = 0, std: float | None = 0.02, **changes: int | bool) -> ProjectionHead:
    built = ProjectionHead(24, HeadConfig(**{**SMALL, **changes}))  # pyright: ignore[reportArgumentType]
    built.init_weights(torch.Generator().manual_seed(seed), std=std)
    return built


def test_keys_and_shapes_are_the_official_ones() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in head().state_dict().items()}
    assert shapes == {
        "mlp.0.weight": (48, 24),
        "mlp.0.bias": (48,),
        "mlp.2.weight": (48, 48),
        "mlp.2.bias": (48,),
        "mlp.4.weight": (16, 48),
        "mlp.4.bias": (16,),
        "last_layer.weight": (40, 16),
    }


@pytest.mark.parametrize(("layers", "keys"), [(1, {"mlp.0"}), (2, {"mlp.0", "mlp.2"})])
def test_number_of_layers(layers: int, keys: set[str]) -> None:
    built = head(layers=layers)
    assert {name.rsplit(".", 1)[0] for name in built.state_dict() if name.startswith("mlp")} == keys
    assert built(torch.zeros(2, 3, 24)).shape == (2, 3, 40)


def test_forward_is_linear_gelu_twice_then_unit_vectors_times_prototypes() -> None:
    built, x = head(std=None), torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    w = {name: tensor.double() for name, tensor in built.state_dict().items()}
    y = x.double()
    for i in (0, 2, 4):
        y = y @ w[f"mlp.{i}.weight"].T + w[f"mlp.{i}.bias"]
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2 if i < 4 else y
    y = y / y.norm(dim=1, keepdim=True)
    torch.testing.assert_close(built.embed(x).double(), y, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(built(x).double(), y @ w["last_layer.weight"].T, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(built.embed(x).norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("std", [0.02, 0.1, None])
def test_initial_scale(std: float | None) -> None:
    built = ProjectionHead(64, HeadConfig(hidden=256, bottleneck=128, prototypes=512))
    for parameter in built.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    built.init_weights(torch.Generator().manual_seed(0), std=std)
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            expected = 1 / math.sqrt(parameter.shape[1]) if std is None else std
            assert parameter.std().item() == pytest.approx(expected, rel=0.03)


def test_same_generator_state_gives_the_same_weights_and_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    a, b, c = head(3), head(3), head(4)
    reference = torch.random.get_rng_state()
    assert torch.equal(a.last_layer.weight, b.last_layer.weight)  # pyright: ignore
    assert not torch.equal(a.last_layer.weight, c.last_layer.weight)  # pyright: ignore
    built = ProjectionHead(24, HeadConfig(**SMALL))
    state = torch.get_rng_state()
    built.init_weights(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert before.shape == reference.shape


@pytest.mark.parametrize("train_lengths", [False, True])
def test_weight_norm_makes_unit_prototypes(train_lengths: bool) -> None:
    built = head(weight_norm=True, norm_last_layer=not train_lengths)
    x = torch.randn(200, 24, generator=torch.Generator().manual_seed(1))
    assert built(x).abs().max() <= 1 + 1e-6
    assert {n for n, _ in built.last_layer.named_parameters()} == {"weight_g", "weight_v"}
    built(x).square().sum().backward()
    lengths = built.get_parameter("last_layer.weight_g")
    assert lengths.requires_grad == train_lengths
    assert (lengths.grad is not None) == train_lengths
    reference = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(16, 40, bias=False), dim=0)
    with torch.no_grad():
        reference.parametrizations.weight.original1.copy_(built.get_parameter("last_layer.weight_v"))  # pyright: ignore
        reference.parametrizations.weight.original0.copy_(lengths)  # pyright: ignore
    torch.testing.assert_close(built(x), reference(built.embed(x)))


def test_a_zero_token_gives_finite_logits_in_half_precision() -> None:
    built = head().half()
    with torch.no_grad():
        assert built(torch.zeros(1, 24, dtype=torch.float16)).isfinite().all()


@pytest.mark.parametrize("field", ["hidden", "bottleneck", "prototypes", "layers"])
def test_sizes_below_one_are_named(field: str) -> None:
    with pytest.raises(ValueError, match=f"HeadConfig.{field} is 0"):
        HeadConfig(**{field: 0})  # pyright: ignore


def embedding_head(seed: int = 0, std: float | None = None, **changes: int | bool) -> EmbeddingHead:
    config = EmbeddingHeadConfig(**{"hidden": 48, "out": 16, **changes})  # pyright: ignore[reportArgumentType]
    built = EmbeddingHead(24, config)
    built.init_weights(torch.Generator().manual_seed(seed), std=std)
    return built


def test_embedding_heads_have_biases_or_batch_norm() -> None:
    plain = {name: tuple(tensor.shape) for name, tensor in embedding_head().state_dict().items()}
    assert plain == {
        "mlp.linear0.weight": (48, 24),
        "mlp.linear0.bias": (48,),
        "mlp.linear1.weight": (16, 48),
        "mlp.linear1.bias": (16,),
    }
    normed = embedding_head(layers=3, batch_norm=True)
    assert {name for name in normed.state_dict() if "weight" not in name} == {"mlp.norm0.bias", "mlp.norm1.bias"}
    assert [name for name, _ in normed.named_buffers()] == [], "no running statistics"
    assert all(wd_multiplier(name) == float("linear" in name) for name, _ in normed.named_parameters())


def test_batch_norm_uses_the_batch_in_training_and_evaluation_alike() -> None:
    head = embedding_head(batch_norm=True)
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(1)) * 5 + 3
    out = head(x)
    torch.testing.assert_close(out.mean(0), torch.zeros(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.var(0, correction=0), torch.ones(16), rtol=1e-3, atol=1e-3)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    assert torch.equal(head.eval()(x), out)
    head(x * float("nan"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize("in_dim", [24, 384])
def test_fan_in_keeps_the_size_of_the_signal_through_relu(in_dim: int) -> None:
    head = EmbeddingHead(in_dim, EmbeddingHeadConfig(hidden=256, out=64, layers=3))
    head.init_weights(torch.Generator().manual_seed(0), std=None)
    x = torch.randn(200, in_dim, generator=torch.Generator().manual_seed(1))
    assert 0.5 < head(x).square().mean().sqrt() / math.sqrt(2) < 2
    again = EmbeddingHead(in_dim, EmbeddingHeadConfig(hidden=256, out=64, layers=3))
    again.init_weights(torch.Generator().manual_seed(0), std=None)
    assert torch.equal(again(x), head(x))


def test_embedding_head_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"EmbeddingHeadConfig\.layers is 0"):
        EmbeddingHeadConfig(layers=0)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        embedding_head(batch_norm=True)(torch.zeros(1, 24))
