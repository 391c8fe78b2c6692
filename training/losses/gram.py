"""The Gram anchoring loss: the student's patch-to-patch similarities should stay those of a good teacher."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.analysis.gram import gram_matrix

Negatives = Literal["keep", "clamp", "clamp_teacher"]


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
    into the teacher. `normalize` compares cosines. `per_image=False` takes one [B*N, B*N] matrix over the whole
    batch. `negatives`: "clamp" sets negative similarities of both to 0; "clamp_teacher" those of the teacher, and
    the student's where both are negative. Computed in at least float32; returns a scalar.
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
            return _DifferenceSum.apply(xs, xt, normalize)  # pyright: ignore[reportReturnType]
        return _clamped(gram_matrix(xs, normalize=normalize), gram_matrix(xt, normalize=normalize), negatives)


def _clamped(gs: Tensor, gt: Tensor, negatives: Negatives) -> Tensor:
    """Mean squared difference of two Gram matrices [B, N, N] after removing negative entries."""
    unwanted = gs < 0 if negatives == "clamp" else (gs < 0) & (gt < 0)
    return F.mse_loss(gs.masked_fill(unwanted, 0.0), gt.clamp(min=0.0))


class _DifferenceSum(torch.autograd.Function):
    """mean((Xs Xs^T - Xt Xt^T)^2) from one product: with D = Xs - Xt and S = Xs + Xt it is mean(R^2),
    R = (D S^T + S D^T) / 2, and its derivative by Xs is 4 R Xs / (B N^2).

    Subtracting two Gram matrices would cancel nearly all digits when the student is close to its teacher.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, normalize: bool) -> Tensor:
        if normalize:
            xs, difference, total, length = _unit_vectors(student, teacher)
        else:
            xs, difference, total, length = student, student - teacher, student + teacher, None
        M = torch.bmm(difference, total.mT)
        R = (M + M.mT).mul_(0.5)
        ctx.save_for_backward(R, xs, length)
        return R.square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        R, xs, length = ctx.saved_tensors
        slope = torch.bmm(R, xs).mul_(grad * (4.0 / R.numel()))
        if length is not None:  # through x / |x|: only what is orthogonal to x counts
            radial = (slope * xs).sum(-1, keepdim=True)
            slope.addcmul_(xs, radial, value=-1).div_(length)
        return slope, None, None


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
    gap = (difference * (a + b)).sum(-1, keepdim=True) / both
    return u, difference.mul_(2 / both).addcmul_(total, gap / both, value=-1), total, length_a
