"""The iBOT loss: the student predicts the teacher's assignment of the patches it could not see."""

from __future__ import annotations

import torch
from torch import Tensor

from training.losses.cross_entropy import Logits, one_group, soft_cross_entropy


def ibot_loss(
    student_logits: Logits, teacher_probs: Tensor, masks: Tensor, *, student_temperature: float = 0.1
) -> Tensor:
    """-(1/I) sum over masked patches p of w_p sum_k p_t[k] log softmax(student / temperature)[k].

    w_p is 1 / (number of masked patches in p's crop), and I counts all crops, the unmasked ones too, so with half of
    the crops masked the loss is half the mean over masked crops (iBOT eq. 2 with DINOv2's weights).
    `student_logits` (a tensor or `PrototypeLogits`) and `teacher_probs` [M, K]: the masked patches only, crop after
    crop, each in row-major order, as `patches[masks]` gives them. `masks` [I, P] (or [I, H, W]) bool, M = masks.sum().
    Keep `masks` on the CPU when the logits are on a GPU: counting them there makes the host wait. M == 0 gives 0 with
    a gradient of zeros.
    Returns a scalar, at least float32.

    Raises ValueError when shapes disagree, the masks are not bool, or there is no crop.
    """
    if masks.dtype != torch.bool or masks.ndim < 2 or masks.shape[0] == 0:
        raise ValueError(
            f"ibot_loss got masks {list(masks.shape)} of {masks.dtype}; expected bool [I, P] with at least one crop."
        )
    counts = masks.flatten(1).sum(1)
    M = int(counts.sum())
    if student_logits.shape != teacher_probs.shape or student_logits.ndim != 2 or student_logits.shape[0] != M:
        raise ValueError(
            f"ibot_loss got student logits {list(student_logits.shape)} and teacher probabilities "
            f"{list(teacher_probs.shape)} for {M} masked patches; expected [{M}, K] for both: gather the masked "
            "positions with patches[masks]."
        )
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    per_patch = 1.0 / (counts.to(dtype) * masks.shape[0])
    weights = torch.repeat_interleave(per_patch, counts, output_size=M).to(teacher_probs.device, non_blocking=True)
    return soft_cross_entropy(one_group(student_logits), teacher_probs[None], weights, student_temperature)
