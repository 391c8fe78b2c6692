"""The DINO loss: every student crop predicts the teacher's assignment of every global crop."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.cross_entropy import Logits, soft_cross_entropy


def dino_loss(
    student_logits: Logits,
    teacher_probs: Tensor,
    *,
    student_temperature: float = 0.1,
    ignore_diagonal: bool = False,
) -> Tensor:
    """Mean over crop pairs and images of -sum_k p_t[k] log softmax(student / temperature)[k].

    `student_logits` [S, B, K]: S crops of B images over K prototypes, any float dtype, or `PrototypeLogits` of that
    shape. `teacher_probs` [T, B, K]: rows sum to 1, no gradient flows into them. With `ignore_diagonal`, student crop
    i is not compared with teacher crop i (global crops: both saw the same pixels), and the mean runs over the
    S*T - min(S, T) pairs left.
    Returns a scalar, at least float32. Source: DINO eq. 2-3; DINOv2 and DINOv3 split it into a global and a local term.

    Raises ValueError when shapes disagree or no pair is left.
    """
    if student_logits.ndim != 3 or teacher_probs.ndim != 3 or student_logits.shape[1:] != teacher_probs.shape[1:]:
        raise ValueError(
            f"dino_loss got student logits {list(student_logits.shape)} and teacher probabilities "
            f"{list(teacher_probs.shape)}; expected [S, B, K] and [T, B, K] with the same images B and prototypes K."
        )
    S, B, _ = student_logits.shape
    T = teacher_probs.shape[0]
    pairs = S * T - (min(S, T) if ignore_diagonal else 0)
    if pairs == 0 or B == 0:
        raise ValueError(
            f"dino_loss has nothing to average: {S} student crops, {T} teacher crops, {B} images, "
            f"ignore_diagonal={ignore_diagonal}. Give at least one image and one pair of different crops."
        )
    targets = _targets(teacher_probs, S, ignore_diagonal)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    weights = teacher_probs.new_full((B,), 1.0 / (B * pairs), dtype=dtype)
    return soft_cross_entropy(student_logits, targets, weights, student_temperature)


def _targets(teacher_probs: Tensor, students: int, ignore_diagonal: bool) -> Tensor:
    """Sum of the teacher distributions each student crop is compared with: [1 or S, B, K]."""
    T = teacher_probs.shape[0]
    if not ignore_diagonal:
        return teacher_probs if T == 1 else teacher_probs.sum(0, keepdim=True)
    return torch.stack([teacher_probs[[t for t in range(T) if t != s]].sum(0) for s in range(students)])
