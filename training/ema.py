"""The teacher: an exponential moving average of the student's parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def copy_weights(teacher: nn.Module, student: nn.Module) -> None:
    """Make `teacher` an exact copy of `student`, buffers included, and stop its parameters from collecting gradients.

    Train/eval mode is left alone. Raises RuntimeError (from torch) naming the keys when the modules differ.
    """
    teacher.load_state_dict(student.state_dict(), strict=True)
    teacher.requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, over parameters only, in one fused pass.

    Buffers stay as `copy_weights` left them. Call it after the optimizer's step (DINO section 3.1).

    Raises ValueError when the momentum is outside [0, 1] or the modules have different parameters.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"EMA momentum is {momentum}; it must lie in [0, 1]. The papers use 0.99 to 1.")
    averaged: list[Tensor] = list(teacher.parameters())
    current: list[Tensor] = list(student.parameters())
    if len(averaged) != len(current) or any(a.shape != c.shape for a, c in zip(averaged, current, strict=True)):
        raise ValueError(
            f"teacher ({len(averaged)} parameters) and student ({len(current)}) do not match; "
            "build both from the same configuration."
        )
    if averaged:
        torch._foreach_lerp_(averaged, current, 1.0 - momentum)  # pyright: ignore[reportPrivateImportUsage]
