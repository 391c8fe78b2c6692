"""InfoNCE in its three uses: images with texts (CLIP), two views (SimCLR), and a query with its key (MoCo)."""

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


def nt_xent_loss(
    first: Tensor, second: Tensor, *, temperature: float, group: dist.ProcessGroup | None = None
) -> Tensor:
    """SimCLR's loss: each of the 2B views finds the other view of its image among the 2B - 1 views that are not itself.

    `first`, `second` [B, D]: two views of the same B images, row by row, L2-normalised here; the gradient flows into
    both. Returns the mean over the 2B views of -log(exp(s_ij / t) / sum_{k != i} exp(s_ik / t)), s the cosines and t
    the `temperature`, in at least float32. A single pair has no negative: 0, with a gradient of zeros.
    With `group`, the other processes' views are negatives too; see `clip_loss` for what the value then is.
    Source: SimCLR equation 1 and algorithm 1.

    Raises ValueError when the two shapes differ, the batch is empty, or the temperature is not positive.
    """
    _check_pairs("nt_xent_loss", "first", first, "second", second, temperature)
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    with torch.autocast(first.device.type, enabled=False):
        first, second = F.normalize(first.to(dtype), dim=-1), F.normalize(second.to(dtype), dim=-1)
        firsts, seconds, start = first, second, 0
        if group is not None:
            firsts, seconds = _gather(first, group), _gather(second, group)
            start = dist.get_rank(group) * first.shape[0]
        views, total = torch.cat([firsts, seconds]), firsts.shape[0]
        own = torch.arange(start, start + first.shape[0], device=first.device)
        itself, other = torch.cat([own, own + total]), torch.cat([own + total, own])
        logits = torch.cat([first, second]) @ views.t() / temperature
        alone = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, itself[:, None], True)
        return F.cross_entropy(logits.masked_fill(alone, -torch.inf), other)


def info_nce_loss(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float,
    queue: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """MoCo's loss: each query finds its own key among others. No gradient flows into keys or queue.

    `query`, `key` [B, D], row i of one belongs to row i of the other, L2-normalised here; computed in at least float32.

    - With a `queue` [Q, D] (keys of earlier batches, L2-normalised here) its rows are the negatives and the other keys
      of the batch are none: the mean of -log(exp(q.k / t) / (exp(q.k / t) + sum_j exp(q.queue_j / t))).
      Source: MoCo equation 1, algorithm 1.
    - Without, the other keys of the batch are the negatives, and the mean cross-entropy is multiplied by 2 t, t the
      `temperature`. Source: MoCo v3 algorithm 1 and its released code. Equation 1 of that paper has no such factor;
      it is kept because published learning rates go with it: the gradient no longer grows as t falls.
      One query alone has no negative: 0, with a gradient of zeros.

    With `group` (only without a queue, whose rows every process holds) the keys of the other processes are negatives
    too; every process must hold the same B, and values averaged over processes are those of the whole batch.

    Raises ValueError when shapes disagree, the batch or the queue is empty, the temperature is not positive, or both
    queue and group are given.
    """
    _check_pairs("info_nce_loss", "query", query, "key", key, temperature)
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        q, k = F.normalize(query.to(dtype), dim=-1), F.normalize(key.detach().to(dtype), dim=-1)
        if queue is not None:
            _check_queue(queue, query, group)
            negatives = F.normalize(queue.detach().to(dtype), dim=-1)
            logits = torch.cat([(q * k).sum(-1, keepdim=True), q @ negatives.t()], dim=1) / temperature
            return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))
        keys, start = (k, 0) if group is None else (_gather(k, group), dist.get_rank(group) * len(k))
        labels = torch.arange(start, start + len(q), device=q.device)
        return 2 * temperature * F.cross_entropy(q @ keys.t() / temperature, labels)


def _check_pairs(loss: str, one: str, a: Tensor, two: str, b: Tensor, temperature: float) -> None:
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] == 0:
        raise ValueError(
            f"{loss} got {one} {list(a.shape)} and {two} {list(b.shape)}; expected the same [B, D] with B >= 1."
        )
    if not temperature > 0:
        raise ValueError(f"{loss} got temperature {temperature}; it must be positive. The papers use 0.07 to 1.")


def _check_queue(queue: Tensor, query: Tensor, group: dist.ProcessGroup | None) -> None:
    if queue.ndim != 2 or queue.shape[0] == 0 or queue.shape[1] != query.shape[1]:
        raise ValueError(
            f"info_nce_loss got a queue {list(queue.shape)} for queries {list(query.shape)}; expected [Q, D] with "
            "Q >= 1 and the same D."
        )
    if group is not None:
        raise ValueError(
            "info_nce_loss got a queue and a group: with a queue no key of another process is a negative; drop group."
        )


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
