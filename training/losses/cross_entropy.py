"""Cross-entropy with soft targets that never holds more than one [rows, K] buffer beside its inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
"""Entries handled at once: small enough for a CPU's cache, large enough to keep a GPU busy."""


class _SoftCrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropies; the gradient is made in the forward pass, in the dtype of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
        S, R, K = logits.shape
        rows = max(1, _CHUNK_ELEMENTS.get(logits.device.type, 2**24) // max(1, S * K))
        ctx.dtype = logits.dtype
        stored = torch.float32 if logits.dtype == torch.float16 else logits.dtype  # float16 would underflow
        if rows >= R:
            total, slope = _chunk(logits, targets, weights, temperature)
            gradient = slope.to(stored)
        else:
            total, gradient = weights.new_zeros(()), torch.empty_like(logits, dtype=stored)
            for part in (slice(i, i + rows) for i in range(0, R, rows)):
                loss, slope = _chunk(logits[:, part], targets[:, part], weights[part], temperature)
                total += loss
                gradient[:, part] = slope
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad.to(gradient.dtype)).to(ctx.dtype), None, None, None


def _chunk(logits: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of a few rows (logits [S, r, K], weights [r]) and its derivative by the logits.

    With x the logits over the temperature minus their maximum, a row costs mass * log(sum exp x) - targets . x.
    """
    targets = targets.to(weights.dtype)
    x = (logits - logits.amax(-1, keepdim=True).to(weights.dtype)).mul_(1 / temperature)
    agreement = (targets * x).sum(-1)
    mass, e = targets.sum(-1), x.exp_()
    partition = e.sum(-1)
    loss = ((mass * partition.log() - agreement) * weights).sum()
    scale = weights / temperature
    return loss, e.mul_((mass * scale / partition)[..., None]).addcmul_(targets, scale[:, None], value=-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Sum over s, r of weights[r] * (-sum_k targets[s, r, k] * log softmax(logits[s, r] / temperature)[k]).

    `logits` [S, R, K] of any float dtype; `targets` [S or 1, R, K], not normalised here (a sum of several
    distributions is fine) and without gradient; `weights` [R]. Returns a scalar in float32 (float64 for
    float64 logits). Peak extra memory: one gradient in the dtype of the logits and two cache-sized buffers.
    """
    if temperature <= 0:
        raise ValueError(f"student temperature is {temperature}; it must be positive. The papers use 0.1.")
    weights = weights.to(torch.promote_types(logits.dtype, torch.float32))
    return _SoftCrossEntropy.apply(logits, targets.detach(), weights, temperature)  # pyright: ignore[reportReturnType]
