"""Sinkhorn-Knopp against the direct form in float64, and centering."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.losses import sinkhorn_knopp, softmax_center, update_center


def direct(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """The steps as published, in float64: Q [K, B], prototypes to 1 / K, samples to 1 / B, three times."""
    Q = torch.exp(logits.double() / temperature).T
    K, B = Q.shape
    Q = Q / Q.sum()
    for _ in range(iterations):
        for k in range(K):
            Q[k] = Q[k] / Q[k].sum() / K
        for b in range(B):
            Q[:, b] = Q[:, b] / Q[:, b].sum() / B
    return (Q * B).T


def in_logarithms(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """The same in float64 logarithms, for logits whose exponential overflows."""
    Q = logits.double() / temperature
    for _ in range(iterations):
        Q = Q - Q.logsumexp(0, keepdim=True)
        Q = Q - Q.logsumexp(1, keepdim=True)
    return Q.exp()


def normal(N: int, K: int, seed: int = 0) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("N", "K"), [(1, 5), (6, 4), (3, 17), (64, 32)])
@pytest.mark.parametrize("temperature", [0.04, 0.07, 1.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_equals_the_direct_form(N: int, K: int, temperature: float, iterations: int) -> None:
    logits = normal(N, K)
    result = sinkhorn_knopp(logits, temperature, iterations=iterations)
    torch.testing.assert_close(result.double(), direct(logits, temperature, iterations), rtol=2e-5, atol=1e-9)


@given(
    N=st.integers(1, 12), K=st.integers(1, 12), scale=st.sampled_from([0.1, 1.0, 30.0, 1e4]), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_rows_sum_to_one_for_logits_of_any_size(N: int, K: int, scale: float, seed: int) -> None:
    logits = scale * normal(N, K, seed)
    result = sinkhorn_knopp(logits, 0.05)
    assert result.isfinite().all()
    torch.testing.assert_close(result.sum(1), torch.ones(N))
    if scale <= 1.0:
        torch.testing.assert_close(result.double(), in_logarithms(logits, 0.05), rtol=1e-4, atol=1e-6)


def test_exact_where_the_exponential_overflows_and_where_a_prototype_underflows() -> None:
    logits = normal(8, 5) * 3
    logits[:, 2] += 1000.0
    logits[:, 4] -= 1000.0
    logits[3] += 500.0
    assert not direct(logits, 0.05).isfinite().all()
    torch.testing.assert_close(sinkhorn_knopp(logits, 0.05).double(), in_logarithms(logits, 0.05), rtol=1e-3, atol=1e-6)


def test_prototypes_are_used_equally_once_converged() -> None:
    result = sinkhorn_knopp(normal(40, 8), 0.5, iterations=50)
    torch.testing.assert_close(result.sum(0), torch.full((8,), 40 / 8), rtol=1e-4, atol=0.0)


def test_one_sample_is_spread_over_all_prototypes() -> None:
    torch.testing.assert_close(sinkhorn_knopp(normal(1, 6), 0.05), torch.full((1, 6), 1 / 6))


def test_no_samples_give_no_rows() -> None:
    assert sinkhorn_knopp(torch.zeros(0, 6), 0.05).shape == (0, 6)


def test_order_of_samples_and_a_common_offset_do_not_matter() -> None:
    logits, order = normal(10, 7), torch.randperm(10, generator=torch.Generator().manual_seed(1))
    result = sinkhorn_knopp(logits, 0.05)
    torch.testing.assert_close(sinkhorn_knopp(logits[order], 0.05), result[order])
    torch.testing.assert_close(sinkhorn_knopp(logits + 2.0, 0.05), result, rtol=1e-4, atol=1e-6)


def test_computed_in_float32_without_graph_and_leaving_its_input_alone() -> None:
    logits = normal(9, 7).bfloat16().requires_grad_()
    before = logits.detach().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = sinkhorn_knopp(logits, 0.05)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert torch.equal(logits, before)
    torch.testing.assert_close(result.double(), direct(before, 0.05), rtol=2e-5, atol=1e-9)
    assert sinkhorn_knopp(logits.double(), 0.05).dtype == torch.float64


@pytest.mark.parametrize(("shape", "temperature", "iterations"), [((4,), 0.1, 3), ((2, 3), 0.0, 3), ((2, 3), 0.1, 0)])
def test_wrong_arguments_are_named(shape: tuple[int, ...], temperature: float, iterations: int) -> None:
    with pytest.raises(ValueError, match=f"temperature {temperature}, iterations {iterations}"):
        sinkhorn_knopp(torch.zeros(shape), temperature, iterations=iterations)


def test_centering_is_a_sharpened_softmax_around_the_running_mean() -> None:
    logits, center = normal(5, 4), normal(1, 4, seed=1)[0]
    expected = torch.softmax((logits.double() - center.double()) / 0.04, dim=1)
    torch.testing.assert_close(softmax_center(logits, center, 0.04).double(), expected, rtol=1e-4, atol=1e-7)
    running, exact = center.clone(), center.double()
    for seed in range(3):
        batch = normal(6, 4, seed).view(2, 3, 4)
        assert update_center(running, batch, 0.8) is running
        exact = 0.8 * exact + 0.2 * batch.double().flatten(0, 1).mean(0)
    torch.testing.assert_close(running.double(), exact, rtol=1e-5, atol=1e-7)
    before = running.clone()
    assert torch.equal(update_center(running, torch.zeros(0, 4)), before)
    with pytest.raises(ValueError, match="temperature is -1"):
        softmax_center(logits, center, -1)
