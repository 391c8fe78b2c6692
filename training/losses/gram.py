"""The Gram anchoring loss: the student's patch-to-patch similarities should stay those of a good teacher."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.analysis.gram import gram_matrix

Negatives = Literal["keep", "clamp", "clamp_teacher"]

_PATCHES_PER_CHANNEL = 2.5
"""Above this N / D the form with [D, D] products is taken: 10 N D^2 operations against 4 N^2 D, forward and
backward. On one CPU thread the two cost the same near 2 (docs/log.md)."""


def gram_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    normalize: bool = True,
    per_image: bool = True,
    negatives: Negatives = "keep",
) -> Tensor:
    """Mean squared difference over all entries of the Gram matrices X X^T of student and teacher patch tokens.

    `student`, `teacher` [B, N, D] at the same N grid positions (resize the teacher's map before); no gradient flows
    into the teacher. `normalize` compares cosines. `per_image=False` compares one [B*N, B*N] matrix over the whole
    batch. `negatives`: "clamp" sets negative similarities of both to 0; "clamp_teacher" those of the teacher, and
    the student's where both are negative. Computed in at least float32; returns a scalar. With "keep", nothing of
    size N^2 is made once N (or B*N) is above 2.5 D.
    Source: DINOv3 eq. 2, as a mean over entries like the released code, where the paper writes a sum.

    Raises ValueError when shapes differ or `negatives` is unknown.
    """
    if student.shape != teacher.shape or student.ndim != 3 or student.numel() == 0:
        raise ValueError(
            f"gram_loss got student {list(student.shape)} and teacher {list(teacher.shape)}; expected the same "
            "non-empty [B, N, D]: flatten the grid, and resize the teacher's patch map to the student's grid before."
        )
    if negatives not in get_args(Negatives):
        raise ValueError(f"negatives is {negatives!r}; choose one of {', '.join(get_args(Negatives))}.")
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    xs, xt = student.to(dtype), teacher.detach().to(dtype)
    if not per_image:
        xs, xt = xs.flatten(0, 1)[None], xt.flatten(0, 1)[None]
    with torch.autocast(xs.device.type, enabled=False):
        if negatives == "keep":
            form = _BetweenChannels if xs.shape[1] > _PATCHES_PER_CHANNEL * xs.shape[2] else _BetweenPatches
            return form.apply(xs, xt, normalize)  # pyright: ignore[reportReturnType]
        return _clamped(gram_matrix(xs, normalize=normalize), gram_matrix(xt, normalize=normalize), negatives)


def _clamped(gs: Tensor, gt: Tensor, negatives: Negatives) -> Tensor:
    """Mean squared difference of two Gram matrices [B, N, N] after removing negative entries."""
    unwanted = gs < 0 if negatives == "clamp" else (gs < 0) & (gt < 0)
    return F.mse_loss(gs.masked_fill(unwanted, 0.0), gt.clamp(min=0.0))


class _BetweenPatches(torch.autograd.Function):
    """mean((Xs Xs^T - Xt Xt^T)^2) from one [N, N] product: with D = Xs - Xt and S = Xs + Xt it is mean(R^2),
    R = (D S^T + S D^T) / 2, and its derivative by Xs is 4 R Xs / (B N^2).

    Subtracting two Gram matrices would cancel nearly all digits when the student is close to its teacher.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, normalize: bool) -> Tensor:
        xs, difference, total, length = _compared(student, teacher, normalize)
        M = torch.bmm(difference, total.mT)
        doubled = M + M.mT  # 2 R
        ctx.save_for_backward(doubled, xs, length)
        return doubled.square().mean() / 4

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        doubled, xs, length = ctx.saved_tensors
        return _through_length(torch.bmm(doubled, xs), xs, length, grad * (2 / doubled.numel())), None, None


class _BetweenChannels(torch.autograd.Function):
    """The same number from three [D, D] products, for more patches than channels; nothing of size N^2 is made.

    With D, S and R as above, A = D^T D, B = S^T S and C = S^T D: sum(R^2) = (<A, B> + tr(C C)) / 2 and
    R Xs = (D (B + C) + S (A + C^T)) / 4. A and C hold the difference as a factor, so both vanish with it digit by
    digit; the identity |Gs|^2 - 2 <Gs, Gt> + |Gt|^2 would cancel. What does cancel here is a *rotation* of the
    channels: tr(C C) is then -<A, B>, and the loss is rounding of about 1e-7 of mean(|D|^2 |S|^2), cut off at 0.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, normalize: bool) -> Tensor:
        xs, difference, total, length = _compared(student, teacher, normalize)
        A, B = torch.bmm(difference.mT, difference), torch.bmm(total.mT, total)
        C = torch.bmm(total.mT, difference)
        ctx.entries = xs.shape[0] * xs.shape[1] ** 2
        squares = ((A * B).sum() + (C * C.mT).sum()).clamp_(min=0.0)
        ctx.save_for_backward(xs, difference, total, B.add_(C), A.add_(C.mT), length)
        return squares / (2 * ctx.entries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        xs, difference, total, by_difference, by_total, length = ctx.saved_tensors
        slope = torch.bmm(difference, by_difference).baddbmm_(total, by_total)
        return _through_length(slope, xs, length, grad / ctx.entries), None, None


def _through_length(slope: Tensor, unit: Tensor, length: Tensor | None, factor: Tensor) -> Tensor:
    """`factor` times the derivative by x, from the one by x / |x|: only what is orthogonal to x counts. In place."""
    if length is None:
        return slope.mul_(factor)
    radial = (slope * unit).sum(-1, keepdim=True)
    return slope.addcmul_(unit, radial, value=-1).mul_(factor / length)


def _compared(student: Tensor, teacher: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(xs, xs - xt, xs + xt, student lengths) of the tokens that enter the Gram matrices; no lengths as they are."""
    if normalize:
        return _unit_vectors(student, teacher)
    return student, student - teacher, student + teacher, None


def _unit_vectors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(u, u - v, u + v, |a|) of the unit vectors u = a / |a| and v = b / |b| of tokens [B, N, D].

    u - v without cancellation: a - b = (u - v) (|a| + |b|) / 2 + (u + v) (|a| - |b|) / 2, and
    |a| - |b| = (a - b).(a + b) / (|a| + |b|).
    """
    length_a = a.norm(dim=-1, keepdim=True).clamp_(min=1e-12)
    length_b = b.norm(dim=-1, keepdim=True).clamp_(min=1e-12)
    u = a / length_a
    total = torch.addcdiv(u, b, length_b)
    difference, both = a - b, length_a + length_b
    gap = (a + b).mul_(difference).sum(-1, keepdim=True) / both
    return u, difference.mul_(2 / both).addcmul_(total, gap / both, value=-1), total, length_a
