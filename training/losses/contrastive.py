"""Symmetric InfoNCE between images and texts, for text alignment."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def clip_loss(
    image: Tensor, text: Tensor, logit_scale: Tensor | float, *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Mean of image-to-text and text-to-image cross-entropy; row i of `image` belongs to row i of `text`.

    `image`, `text` [B, D], L2-normalised here. `logit_scale` multiplies the cosines: it is exp(s) of the trained s
    (CLIP and dino.txt start s at ln(1 / 0.07) and clamp it to [0, ln 100]). Computed in at least float32.
    With `group`, the other processes' rows are negatives too; every process must hold the same B. The value is the
    mean over this process's rows; averaged over processes it is the loss of the whole batch, and gradients averaged
    over processes (as data-parallel training does) are those of the whole batch.
    Source: CLIP figure 3; dino.txt section 3.

    Raises ValueError when the two shapes differ or the batch is empty.
    """
    if image.shape != text.shape or image.ndim != 2 or image.shape[0] == 0:
        raise ValueError(
            f"clip_loss got image {list(image.shape)} and text {list(text.shape)}; "
            "expected the same [B, D] with B >= 1."
        )
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        image, text = F.normalize(image.to(dtype), dim=-1), F.normalize(text.to(dtype), dim=-1)
        images, texts, first = image, text, 0
        if group is not None:
            images, texts = _gather(image, group), _gather(text, group)
            first = dist.get_rank(group) * image.shape[0]
        labels = torch.arange(first, first + image.shape[0], device=image.device)
        to_text = F.cross_entropy(logit_scale * image @ texts.t(), labels)
        to_image = F.cross_entropy(logit_scale * text @ images.t(), labels)
        return (to_text + to_image) / 2


class _AllGather(torch.autograd.Function):
    """Rows of all processes, in rank order; the gradient of a row is summed over all processes that used it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.size = group, rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, rows.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        first = dist.get_rank(ctx.group) * ctx.size
        return total[first : first + ctx.size], None


def _gather(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _AllGather.apply(rows, group)  # pyright: ignore[reportReturnType]
