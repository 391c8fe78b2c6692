"""Fast forms of the losses against the plain ones in float64, at the sizes of training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.heads import HeadConfig, ProjectionHead
from training.losses import PrototypeLogits, chunks, dino_loss, gram, gram_loss, ibot_loss, sinkhorn_knopp

GRAM_TOLERANCE = 1e-5
"""Relative error of the Gram loss, and of its gradient by norm and at the worst entry over the largest entry."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patch_tokens(B: int, N: int, D: int, noise: float) -> tuple[Tensor, Tensor]:
    """Student and teacher [B, N, D]; patches of an image share a direction, as those of a network do."""
    teacher = normal(B, N, D) + normal(B, 1, D, seed=1)
    return (teacher + noise * normal(B, N, D, seed=2)).requires_grad_(), teacher


def two_matrices(student: Tensor, teacher: Tensor, normalize: bool, per_image: bool) -> Tensor:
    """Mean squared difference of both Gram matrices, as DINOv3 eq. 2 reads."""
    if normalize:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    if not per_image:
        student, teacher = student.flatten(0, 1)[None], teacher.flatten(0, 1)[None]
    return F.mse_loss(student @ student.mT, teacher @ teacher.mT)


def relative_errors(value: Tensor, x: Tensor, exact: Tensor, exact_x: Tensor) -> list[float]:
    """Of a value and of its gradient by x, against the same in float64."""
    (slope,), (exact_slope,) = torch.autograd.grad(value, x), torch.autograd.grad(exact, exact_x)
    gap = slope.double() - exact_slope
    return [
        ((value.double() - exact).abs() / exact).item(),
        (gap.norm() / exact_slope.norm()).item(),
        (gap.abs().max() / exact_slope.abs().max()).item(),
    ]


class LargestResult(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor that any operation made (views of its inputs apart)."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given]
        self.entries = max([self.entries, *(x.numel() for x in made)])
        return out


GRAM_SIZES = {  # B, N, D, per_image, whether the form with [D, D] products is due
    "ViT-S, 224 pixels": (2, 196, 384, True, False),
    "ViT-L, 256 pixels": (2, 256, 1024, True, False),
    "ViT-S, 768 pixels": (1, 2304, 384, True, True),
    "a masked subset": (1, 37, 384, True, False),
    "one batch": (2, 196, 384, False, False),
    "one batch of wide tokens": (2, 256, 1024, False, False),
    "one batch of many patches": (6, 196, 384, False, True),
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("noise", [1.0, 1e-3])
@pytest.mark.parametrize("size", GRAM_SIZES)
def test_gram_loss_at_training_sizes(size: str, noise: float, normalize: bool) -> None:
    B, N, D, per_image, by_channels = GRAM_SIZES[size]
    student, teacher = patch_tokens(B, N, D, noise)
    exact_student = student.detach().double().requires_grad_()
    exact = two_matrices(exact_student, teacher.double(), normalize, per_image)
    value = gram_loss(student, teacher, normalize=normalize, per_image=per_image)
    assert ("BetweenChannels" in value.grad_fn.name()) == by_channels  # pyright: ignore[reportOptionalMemberAccess]
    assert max(relative_errors(value, student, exact, exact_student)) <= GRAM_TOLERANCE


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-4])
def test_both_forms_of_the_gram_loss_agree(noise: float, normalize: bool, per_image: bool) -> None:
    student, teacher = (x if per_image else x.flatten(0, 1)[None] for x in patch_tokens(3, 70, 24, noise))
    values = [form.apply(student, teacher, normalize) for form in (gram._BetweenPatches, gram._BetweenChannels)]
    torch.testing.assert_close(values[1], values[0], rtol=GRAM_TOLERANCE, atol=0.0)  # pyright: ignore
    slopes = [torch.autograd.grad(value, student)[0] for value in values]  # pyright: ignore
    assert (slopes[1] - slopes[0]).abs().max() <= GRAM_TOLERANCE * slopes[0].abs().max()


def test_many_patches_make_no_matrix_of_their_number_squared() -> None:
    student, teacher = patch_tokens(1, 600, 16, 0.1)
    with LargestResult() as largest:
        gram_loss(student, teacher).backward()
    assert largest.entries == 600 * 16
    student, teacher = patch_tokens(1, 30, 16, 0.1)
    with LargestResult() as largest:
        gram_loss(student, teacher).backward()
    assert largest.entries == 30 * 30


def test_gram_loss_of_many_rotated_patches_is_rounding_and_never_negative() -> None:
    x, rotation = normal(1, 300, 32), torch.linalg.qr(normal(32, 32, seed=3)).Q
    assert 0.0 <= gram_loss(x @ rotation, x).item() < 1e-8
    near = (x @ rotation + 0.1 * normal(1, 300, 32, seed=4)).requires_grad_()
    exact_near = near.detach().double().requires_grad_()
    exact = two_matrices(exact_near, x.double(), True, True)
    assert max(relative_errors(gram_loss(near, x), near, exact, exact_near)) <= 3e-5


# ---- logits that are not multiplied out


def unit_rows(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=-1).to(dtype).requires_grad_()


def gradients_of_both(loss, x: Tensor, W: Tensor) -> list[list[Tensor]]:
    """[value, gradient by x, gradient by W], from `PrototypeLogits` and from the logits themselves."""
    logits = PrototypeLogits(x, W)
    values = [loss(logits), loss(logits.multiplied())]
    return [[value, *torch.autograd.grad(-2 * value, (x, W))] for value in values]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("entries", [2**24, 40, 1])
@pytest.mark.parametrize(("S", "T", "ignore_diagonal"), [(2, 2, True), (5, 2, False), (1, 1, False)])
def test_dino_loss_of_prototype_logits_is_that_of_their_product(
    S: int, T: int, ignore_diagonal: bool, entries: int, dtype: torch.dtype, tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(chunks.MULTIPLIED, "cpu", entries)
    x, W = unit_rows(S, 7, 6, seed=0, dtype=dtype), normal(13, 6, seed=1).to(dtype).requires_grad_()
    targets = torch.softmax(3 * normal(T, 7, 13, seed=2).to(dtype), dim=-1)
    ours, plain = gradients_of_both(lambda z: dino_loss(z, targets, ignore_diagonal=ignore_diagonal), x, W)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_ibot_loss_of_prototype_logits_against_float64(
    autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunks.MULTIPLIED, "cpu", 3 * 17)
    masks = torch.zeros(3, 3, 5, dtype=torch.bool)
    masks[0, 0], masks[2, 1:, ::2] = True, True
    x, W = unit_rows(11, 6, seed=0), unit_rows(17, 6, seed=1)
    targets = torch.softmax(3 * normal(11, 17, seed=2), dim=-1)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        value = ibot_loss(PrototypeLogits(x, W), targets, masks)
    value.backward()
    exact_x, exact_W = (y.detach().double().requires_grad_() for y in (x, W))
    weights = torch.tensor([1 / 15] * 5 + [1 / 18] * 6, dtype=torch.float64)
    exact = -(targets.double() * F.log_softmax(exact_x @ exact_W.T / 0.1, dim=-1)).sum(-1) @ weights
    exact.backward()
    tolerance = {None: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[autocast]
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=tolerance)
    for mine, true in ((x.grad, exact_x.grad), (W.grad, exact_W.grad)):
        assert mine is not None
        assert true is not None
        assert mine.dtype == torch.float32
        assert (mine.double() - true).norm() <= tolerance * true.norm()


def test_prototype_logits_without_rows_give_zero_with_gradients_of_zeros() -> None:
    x, W = unit_rows(0, 6, seed=0), unit_rows(17, 6, seed=1)
    loss = ibot_loss(PrototypeLogits(x, W), torch.zeros(0, 17), torch.zeros(2, 9, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert x.grad.shape == (0, 6)
    assert W.grad is not None
    assert torch.equal(W.grad, torch.zeros(17, 6))


@pytest.mark.parametrize("weight_norm", [False, True])
def test_a_head_and_its_losses_never_hold_the_students_logits(
    weight_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunks.MULTIPLIED, "cpu", 8 * 300)
    config = HeadConfig(hidden=24, bottleneck=12, prototypes=300, weight_norm=weight_norm, norm_last_layer=False)
    head, tokens = ProjectionHead(20, config), normal(50, 20)
    head.init_weights(torch.Generator().manual_seed(0), std=None)
    teacher_logits = head(tokens).detach()
    targets = sinkhorn_knopp(PrototypeLogits(head.embed(tokens).detach(), head.prototypes().detach()), 0.05)
    torch.testing.assert_close(targets, sinkhorn_knopp(teacher_logits, 0.05), rtol=1e-4, atol=1e-7)
    masks = torch.ones(5, 10, dtype=torch.bool)
    with LargestResult() as largest:
        ibot_loss(PrototypeLogits(head.embed(tokens), head.prototypes()), targets, masks).backward()
    assert largest.entries == 12 * 300
    fused = [p.grad.clone() for p in head.parameters() if p.grad is not None]
    head.zero_grad()
    ibot_loss(head(tokens), targets, masks).backward()
    plain = [p.grad for p in head.parameters()]
    assert len(fused) == len(plain)
    for mine, true in zip(fused, plain, strict=True):
        assert true is not None
        assert (mine - true).norm() <= 1e-5 * true.norm()


def test_sinkhorn_in_small_cuts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = normal(11, 7)
    whole = sinkhorn_knopp(logits, 0.05)
    monkeypatch.setitem(chunks.CACHED, "cpu", 15)
    torch.testing.assert_close(sinkhorn_knopp(logits, 0.05), whole)
