"""Every loss against a loop in float64 written from its formula: value and gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from training.losses import chunks, clip_loss, dino_loss, gram_loss, ibot_loss, koleo_loss
from workbench.analysis.gram import gram_matrix

# ---- the formulas, one number at a time


def log_softmax_row(row: Tensor) -> list[Tensor]:
    top = row.detach().max()
    log_sum = torch.log(sum((torch.exp(z - top) for z in row), torch.zeros((), dtype=torch.float64))) + top
    return [z - log_sum for z in row]


def row_cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    return -sum(
        (p * lp for p, lp in zip(target, log_softmax_row(logits / temperature), strict=True)),
        torch.zeros((), dtype=torch.float64),
    )


def dino_loop(student: Tensor, teacher: Tensor, temperature: float, ignore_diagonal: bool) -> Tensor:
    terms = [
        row_cross_entropy(student[s, b], teacher[t, b], temperature)
        for s, t, b in itertools.product(range(len(student)), range(len(teacher)), range(student.shape[1]))
        if not (ignore_diagonal and s == t)
    ]
    return torch.stack(terms).mean()


def ibot_loop(student: Tensor, teacher: Tensor, masks: Tensor, temperature: float) -> Tensor:
    total, row = torch.zeros((), dtype=torch.float64), 0
    for mask in masks:
        for _ in range(int(mask.sum())):
            total = total + row_cross_entropy(student[row], teacher[row], temperature) / mask.sum()
            row += 1
    return total / len(masks)


def koleo_loop(cls: Tensor) -> Tensor:
    x = [row / row.norm() for row in cls]
    total = torch.zeros((), dtype=torch.float64)
    for i, row in enumerate(x):
        nearest = max((j for j in range(len(x)) if j != i), key=lambda j: float((row @ x[j]).detach()))
        total = total - torch.log((row - x[nearest] + 1e-8).square().sum().sqrt() + 1e-8)
    return total / len(x)


def gram_loop(student: Tensor, teacher: Tensor, normalize: bool, per_image: bool, negatives: str) -> Tensor:
    if not per_image:
        student, teacher = student.flatten(0, 1)[None], teacher.flatten(0, 1)[None]
    total, B, N = torch.zeros((), dtype=torch.float64), student.shape[0], student.shape[1]
    for b, i, j in itertools.product(range(B), range(N), range(N)):
        gs, gt = student[b, i] @ student[b, j], teacher[b, i] @ teacher[b, j]
        if normalize:
            gs = gs / (student[b, i].norm() * student[b, j].norm())
            gt = gt / (teacher[b, i].norm() * teacher[b, j].norm())
        if (negatives == "clamp" and gs < 0) or (negatives == "clamp_teacher" and gs < 0 and gt < 0):
            gs = gs * 0
        if negatives != "keep" and gt < 0:
            gt = gt * 0
        total = total + (gs - gt) ** 2
    return total / (B * N * N)


def clip_loop(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    image, text = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    logits, B = scale * image @ text.T, len(image)
    terms = [log_softmax_row(logits[i])[i] + log_softmax_row(logits[:, i])[i] for i in range(B)]
    return -torch.stack(terms).sum() / (2 * B)


# ---- the comparison


def check(loss: Callable[..., Tensor], formula: Callable[..., Tensor], *inputs: Tensor, grad_tol: float = 1e-5) -> None:
    """`loss` and `formula` agree in value and in the gradient by each input that requires one."""
    mine = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    value, expected = loss(*mine), formula(*exact)
    value.backward()
    expected.backward()
    assert value.dtype in (torch.float32, torch.float64)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-15)
    for x, y in zip(mine, exact, strict=True):
        if x.requires_grad:
            assert x.grad is not None
            assert y.grad is not None
            assert x.grad.dtype == x.dtype
            assert (x.grad.double() - y.grad).abs().max() <= grad_tol * y.grad.abs().max() + 1e-15


def normal(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def assignments(*shape: int, seed: int = 1) -> Tensor:
    return torch.softmax(3 * normal(*shape, seed=seed), dim=-1)


DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-7), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]


@pytest.mark.parametrize("ignore_diagonal", [False, True])
@pytest.mark.parametrize(("S", "T", "B", "K"), [(2, 2, 3, 7), (5, 2, 1, 4), (1, 3, 2, 5), (3, 1, 2, 2)])
def test_dino_loss_is_the_mean_cross_entropy_over_pairs(S: int, T: int, B: int, K: int, ignore_diagonal: bool) -> None:
    student, teacher = normal(S, B, K).requires_grad_(), assignments(T, B, K)
    check(
        lambda s, t: dino_loss(s, t, student_temperature=0.1, ignore_diagonal=ignore_diagonal),
        lambda s, t: dino_loop(s, t, 0.1, ignore_diagonal),
        student,
        teacher,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_dino_loss_in_any_dtype_and_with_large_logits(dtype: torch.dtype, tolerance: float, scale: float) -> None:
    student = normal(3, 2, 9, scale=scale, dtype=dtype).requires_grad_()
    check(lambda s, t: dino_loss(s, t), lambda s, t: dino_loop(s, t, 0.1, False), student, assignments(2, 2, 9),
          grad_tol=tolerance)  # fmt: skip


def test_dino_loss_of_a_student_equal_to_its_teacher_is_the_entropy_with_zero_gradient() -> None:
    logits = normal(1, 4, 6)
    student, teacher = logits.clone().requires_grad_(), torch.softmax(logits / 0.1, dim=-1)
    loss = dino_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(torch.distributions.Categorical(teacher).entropy().mean().item(), rel=1e-5)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def test_cutting_rows_into_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = normal(2, 7, 5).requires_grad_(), assignments(2, 7, 5)
    whole = dino_loss(student, teacher)
    (gradient,) = torch.autograd.grad(whole, student)
    monkeypatch.setitem(chunks.CACHED, "cpu", 15)
    cut = dino_loss(student, teacher)
    torch.testing.assert_close(cut, whole)
    torch.testing.assert_close(torch.autograd.grad(cut, student)[0], gradient)


def test_cross_entropy_gradient_can_be_scaled_and_used_twice() -> None:
    student, teacher = normal(2, 3, 5).requires_grad_(), assignments(2, 3, 5)
    loss = dino_loss(student, teacher)
    (once,) = torch.autograd.grad(loss, student, retain_graph=True)
    (again,) = torch.autograd.grad(-3 * loss, student)
    torch.testing.assert_close(again, -3 * once)
    assert not dino_loss(student.detach(), teacher).requires_grad
    with torch.no_grad():
        assert not dino_loss(student, teacher).requires_grad


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_ibot_loss_weighs_each_crop_equally_and_counts_the_unmasked(dtype: torch.dtype, tolerance: float) -> None:
    masks = torch.zeros(4, 15, dtype=torch.bool)
    masks[0, :7], masks[2, [1, 4]], masks[3, 14] = True, True, True
    student = normal(10, 6, dtype=dtype).requires_grad_()
    check(lambda s, t: ibot_loss(s, t, masks), lambda s, t: ibot_loop(s, t, masks, 0.1), student, assignments(10, 6),
          grad_tol=tolerance)  # fmt: skip
    grid = ibot_loss(student, assignments(10, 6), masks.view(4, 3, 5))
    torch.testing.assert_close(grid, ibot_loss(student, assignments(10, 6), masks))


def test_ibot_loss_without_masked_patches_is_zero_with_a_graph() -> None:
    student = torch.zeros(0, 6, requires_grad=True)
    loss = ibot_loss(student, torch.zeros(0, 6), torch.zeros(2, 9, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None
    assert student.grad.shape == (0, 6)


@pytest.mark.parametrize(("B", "D"), [(2, 3), (7, 5), (33, 16)])
def test_koleo_loss(B: int, D: int) -> None:
    check(koleo_loss, koleo_loop, normal(B, D).requires_grad_())


def test_koleo_loss_in_bfloat16_and_under_autocast_is_computed_in_float32() -> None:
    cls = normal(9, 6, dtype=torch.bfloat16).requires_grad_()
    check(koleo_loss, koleo_loop, cls, grad_tol=8e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert koleo_loss(cls.float()).item() == pytest.approx(koleo_loss(cls).item(), rel=1e-6)


def test_koleo_loss_at_its_edges() -> None:
    alone = normal(1, 4).requires_grad_()
    koleo_loss(alone).backward()
    assert koleo_loss(alone).item() == 0.0
    assert alone.grad is not None
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert koleo_loss(opposite).item() == pytest.approx(-math.log(2), rel=1e-6)
    twins = torch.ones(2, 4, requires_grad=True)
    loss = koleo_loss(twins)
    loss.backward()
    assert 10 < loss.item() < 20
    assert twins.grad is not None
    assert twins.grad.isfinite().all()


@pytest.mark.parametrize("negatives", ["keep", "clamp", "clamp_teacher"])
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("B", "N", "D"), [(2, 5, 3), (1, 1, 4), (1, 7, 2)])
def test_gram_loss(B: int, N: int, D: int, normalize: bool, per_image: bool, negatives: str) -> None:
    student, teacher = normal(B, N, D).requires_grad_(), normal(B, N, D, seed=1)
    check(
        lambda s, t: gram_loss(s, t, normalize=normalize, per_image=per_image, negatives=negatives),  # pyright: ignore
        lambda s, t: gram_loop(s, t, normalize, per_image, negatives),
        student,
        teacher,
    )


@pytest.mark.parametrize("noise", [1.0, 1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("B", "N", "D"), [(1, 4, 4), (2, 35, 48)])
def test_gram_loss_is_precise_close_to_the_teacher(B: int, N: int, D: int, normalize: bool, noise: float) -> None:
    teacher = normal(B, N, D)
    student = (teacher + noise * normal(B, N, D, seed=1)).requires_grad_()
    check(
        lambda s, t: gram_loss(s, t, normalize=normalize),
        lambda s, t: (
            (gram_matrix(s, normalize=normalize) - gram_matrix(t, normalize=normalize)).square().mean()
        ),
        student,
        teacher,
    )  # fmt: skip


def test_gram_loss_is_zero_for_equal_tokens_and_blind_to_rotation_and_length() -> None:
    x = normal(2, 12, 6)
    rotation = torch.linalg.qr(normal(6, 6, seed=3)).Q
    assert gram_loss(x, x).item() == 0.0
    assert gram_loss(x @ rotation, x).item() < 1e-12
    assert gram_loss(100 * x, x).item() < 1e-12
    assert gram_loss(x, 100 * x).item() < 1e-12


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_gram_loss_with_zero_tokens_is_finite(side: str) -> None:
    student, teacher = normal(1, 4, 3), normal(1, 4, 3, seed=1)
    (student if side == "student" else teacher)[0, 2] = 0.0
    student.requires_grad_()
    loss = gram_loss(student, teacher)
    loss.backward()
    expected = (gram_matrix(student.double()) - gram_matrix(teacher.double())).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_gram_loss_in_bfloat16_and_under_autocast_is_computed_in_float32() -> None:
    student = normal(2, 9, 8, dtype=torch.bfloat16).requires_grad_()
    teacher = normal(2, 9, 8, seed=1, dtype=torch.bfloat16)
    check(gram_loss, lambda s, t: gram_loop(s, t, True, True, "keep"), student, teacher, grad_tol=8e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gram_loss(student, teacher).item() == gram_loss(student.float(), teacher.float()).item()


@pytest.mark.parametrize(("B", "D"), [(1, 3), (5, 4), (8, 17)])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_clip_loss(B: int, D: int, scale: float) -> None:
    image, text = normal(B, D).requires_grad_(), normal(B, D, seed=1, scale=5.0).requires_grad_()
    check(clip_loss, clip_loop, image, text, torch.tensor(scale, requires_grad=True))


def test_clip_loss_falls_when_pairs_match() -> None:
    image = normal(6, 16)
    assert clip_loss(image, image, 100.0).item() < 1e-6
    assert clip_loss(image, image.flip(0), 100.0).item() > 10
    assert clip_loss(image, image, 0.0).item() == pytest.approx(math.log(6))


MASK = torch.ones(1, 2, dtype=torch.bool)
BAD_CALLS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "dino K differs": (lambda: dino_loss(normal(2, 3, 4), normal(2, 3, 5)), r"\[2, 3, 4\].*\[2, 3, 5\]"),
    "dino no pair": (lambda: dino_loss(normal(1, 3, 4), normal(1, 3, 4), ignore_diagonal=True), "1 teacher crops"),
    "dino no image": (lambda: dino_loss(normal(1, 0, 4), normal(1, 0, 4)), "0 images"),
    "dino temperature": (
        lambda: dino_loss(normal(1, 1, 4), normal(1, 1, 4), student_temperature=0),
        "is 0; it must",
    ),
    "ibot count": (lambda: ibot_loss(normal(3, 4), normal(3, 4), MASK), r"2 masked patches; expected \[2, K\]"),
    "ibot float mask": (lambda: ibot_loss(normal(2, 4), normal(2, 4), MASK.float()), "float32"),
    "ibot no crop": (lambda: ibot_loss(normal(0, 4), normal(0, 4), MASK[:0]), "at least one crop"),
    "koleo shape": (lambda: koleo_loss(normal(2, 3, 4)), r"\[2, 3, 4\]"),
    "gram grids differ": (lambda: gram_loss(normal(1, 4, 3), normal(1, 9, 3)), "resize the teacher"),
    "gram negatives": (lambda: gram_loss(normal(1, 4, 3), normal(1, 4, 3), negatives="drop"), "keep, clamp"),  # pyright: ignore
    "clip shapes": (lambda: clip_loss(normal(3, 4), normal(2, 4), 1.0), r"\[3, 4\].*\[2, 4\]"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_wrong_shapes_are_named(name: str) -> None:
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        call()
