"""SimCLR's and MoCo's losses against their formulas in float64, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.losses import clip_loss, info_nce_loss, nt_xent_loss


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.pow(2).sum().sqrt() * b.pow(2).sum().sqrt())


def nt_xent_loop(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """SimCLR's algorithm 1 with its interleaved numbering: views 2k and 2k + 1 are of image k."""
    views = [view for pair in zip(first, second, strict=True) for view in pair]
    total = torch.zeros((), dtype=torch.float64)
    for i, view in enumerate(views):
        partner = i + 1 if i % 2 == 0 else i - 1
        below = sum((cosine(view, views[k]) / temperature).exp() for k in range(len(views)) if k != i)
        total = total - torch.log((cosine(view, views[partner]) / temperature).exp() / below)
    return total / len(views)


def queue_loop(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    terms = []
    for q, k in zip(query, key, strict=True):
        positive = (cosine(q, k) / temperature).exp()
        terms.append(-torch.log(positive / (positive + sum((cosine(q, old) / temperature).exp() for old in queue))))
    return torch.stack(terms).mean()


def batch_loop(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    terms = []
    for i, q in enumerate(query):
        weights = [(cosine(q, k) / temperature).exp() for k in key]
        terms.append(-torch.log(weights[i] / sum(weights)))
    return 2 * temperature * torch.stack(terms).mean()


def check(loss: Callable[[Tensor, Tensor], Tensor], loop: Callable[[Tensor, Tensor], Tensor], *inputs: Tensor) -> None:
    """Value and every gradient of `loss` in float32 and float64 against `loop` in float64."""
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = loop(*exact)
    wanted = torch.autograd.grad(expected, exact, allow_unused=True)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        given = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        value = loss(*given)
        assert value.dtype == dtype
        assert value.item() == pytest.approx(expected.item(), rel=1e-5 if dtype == torch.float32 else 1e-12)
        for got, want in zip(torch.autograd.grad(value, given, allow_unused=True), wanted, strict=True):
            if got is not None:  # what is held constant has no gradient, whatever the loop says
                torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize(("B", "D", "temperature"), [(2, 3, 1.0), (5, 4, 0.1), (7, 9, 0.5)])
def test_nt_xent_equals_equation_1(B: int, D: int, temperature: float) -> None:
    check(
        lambda a, b: nt_xent_loss(a, b, temperature=temperature),
        lambda a, b: nt_xent_loop(a, b, temperature),
        normal(B, D),
        normal(B, D, seed=1, scale=5.0),
    )


@pytest.mark.parametrize(("B", "Q", "temperature"), [(1, 1, 0.2), (3, 7, 0.07), (5, 2, 1.0)])
def test_info_nce_with_a_queue_equals_equation_1_of_moco(B: int, Q: int, temperature: float) -> None:
    queue = normal(Q, 6, seed=2, scale=3.0)
    check(
        lambda q, k: info_nce_loss(q, k, temperature=temperature, queue=queue.to(q.dtype)),
        lambda q, k: queue_loop(q, k, queue.double(), temperature),
        normal(B, 6),
        normal(B, 6, seed=1, scale=5.0),
    )


@pytest.mark.parametrize(("B", "temperature"), [(2, 1.0), (5, 0.2)])
def test_info_nce_without_a_queue_equals_algorithm_1_of_moco_v3(B: int, temperature: float) -> None:
    check(
        lambda q, k: info_nce_loss(q, k, temperature=temperature),
        lambda q, k: batch_loop(q, k, temperature),
        normal(B, 6),
        normal(B, 6, seed=1, scale=5.0),
    )


def test_keys_and_queue_get_no_gradient_and_both_views_of_simclr_do() -> None:
    query, key, queue = (normal(4, 5, seed=seed).requires_grad_() for seed in range(3))
    (info_nce_loss(query, key, temperature=0.2) + info_nce_loss(query, key, temperature=0.2, queue=queue)).backward()
    assert (key.grad, queue.grad) == (None, None)
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
    first, second = normal(4, 5).requires_grad_(), normal(4, 5, seed=1).requires_grad_()
    nt_xent_loss(first, second, temperature=0.2).backward()
    assert all(view.grad is not None and view.grad.abs().sum() > 0 for view in (first, second))


def test_lengths_do_not_matter_and_views_may_be_exchanged() -> None:
    a, b, queue = normal(4, 5), normal(4, 5, seed=1), normal(6, 5, seed=2)
    torch.testing.assert_close(
        nt_xent_loss(a, b, temperature=0.3), nt_xent_loss(9 * b, 0.1 * a, temperature=0.3), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        info_nce_loss(a, b, temperature=0.3, queue=queue), info_nce_loss(3 * a, b, temperature=0.3, queue=7 * queue)
    )


def test_matching_views_cost_little_and_random_ones_about_the_number_of_choices() -> None:
    distinct = torch.eye(8)
    assert nt_xent_loss(distinct, distinct, temperature=0.05).item() < 1e-6
    assert info_nce_loss(distinct, distinct, temperature=0.05).item() < 1e-6
    same = torch.ones(8, 3)
    assert nt_xent_loss(same, same, temperature=0.5).item() == pytest.approx(math.log(15), rel=1e-5)
    assert info_nce_loss(same, same, temperature=0.5).item() == pytest.approx(math.log(8), rel=1e-5)
    queue = torch.ones(11, 3)
    assert info_nce_loss(same, same, temperature=0.5, queue=queue).item() == pytest.approx(math.log(12), rel=1e-5)


def test_without_a_queue_it_is_the_query_half_of_clip_times_twice_the_temperature() -> None:
    a, b = normal(5, 6), normal(5, 6, seed=1)
    both = (info_nce_loss(a, b, temperature=0.2) + info_nce_loss(b, a, temperature=0.2)) / 2
    assert both.item() == pytest.approx(0.4 * clip_loss(a, b, 5.0).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [nt_xent_loss, info_nce_loss])
def test_one_pair_has_no_negative_and_costs_nothing(loss: Callable[..., Tensor]) -> None:
    first, second = normal(1, 4).requires_grad_(), normal(1, 4, seed=1).requires_grad_()
    value = loss(first, second, temperature=0.1)
    value.backward()
    assert value.item() == 0
    assert first.grad is not None
    assert first.grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_compute_in_float32(dtype: torch.dtype) -> None:
    a, b, queue = (normal(6, 8, seed=seed).to(dtype) for seed in range(3))
    calls: list[Callable[..., Tensor]] = [
        lambda *x: nt_xent_loss(x[0], x[1], temperature=0.1),
        lambda *x: info_nce_loss(x[0], x[1], temperature=0.1),
        lambda *x: info_nce_loss(x[0], x[1], temperature=0.1, queue=x[2]),
    ]
    for call in calls:
        exact = call(a.float(), b.float(), queue.float())
        with torch.autocast("cpu", torch.bfloat16):
            value = call(a, b, queue)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=1e-6)


BAD_CALLS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "views differ": (lambda: nt_xent_loss(normal(3, 4), normal(2, 4), temperature=1.0), r"\[3, 4\].*\[2, 4\]"),
    "no pair": (lambda: nt_xent_loss(normal(0, 4), normal(0, 4), temperature=1.0), "B >= 1"),
    "not rows": (lambda: info_nce_loss(normal(4), normal(4), temperature=1.0), r"query \[4\]"),
    "temperature": (lambda: nt_xent_loss(normal(2, 4), normal(2, 4), temperature=0.0), "temperature 0.0; it must"),
    "not a temperature": (lambda: info_nce_loss(normal(2, 4), normal(2, 4), temperature=math.nan), "nan"),
    "queue width": (
        lambda: info_nce_loss(normal(2, 4), normal(2, 4), temperature=1.0, queue=normal(5, 3)),
        r"queue \[5, 3\].*\[2, 4\]",
    ),
    "empty queue": (
        lambda: info_nce_loss(normal(2, 4), normal(2, 4), temperature=1.0, queue=normal(0, 4)),
        "Q >= 1",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_wrong_calls_are_explained(name: str) -> None:
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        call()
