"""Centering and sharpening: DINO's first way to keep the teacher from collapsing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def softmax_center(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """softmax((logits - center) / temperature) over prototypes: teacher probabilities without gradient.

    `logits` [..., K], `center` [K]; returns [..., K], at least float32. Source: DINO section 3.1 (eq. 1 and 4).
    Raises ValueError when the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"teacher temperature is {temperature}; it must be positive. The papers use 0.04 to 0.07.")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.softmax((logits.to(dtype) - center.to(dtype)).mul_(1 / temperature), dim=-1)


@torch.no_grad()
def update_center(
    center: Tensor, logits: Tensor, momentum: float = 0.9, group: dist.ProcessGroup | None = None
) -> Tensor:
    """center <- momentum * center + (1 - momentum) * mean teacher logit, in place; returns `center`.

    `center` [K], float32; `logits` [..., K]. The mean runs over all rows of all processes in `group`, which may
    hold different numbers of rows; with no rows at all the center stays. Call it after the step that used the old
    center (DINO eq. 4).
    """
    rows = logits.reshape(-1, logits.shape[-1])
    total = torch.cat([rows.sum(0, dtype=center.dtype), center.new_tensor([float(rows.shape[0])])])
    if group is not None:
        dist.all_reduce(total, group=group)
    count = total[-1]
    mean = torch.where(count > 0, total[:-1] / count.clamp(min=1), center)
    return center.lerp_(mean, 1 - momentum)
