"""Cross-entropy with soft targets; the gradient is made in the forward pass, a few rows at a time.

From logits, one buffer of their size is held beside them. From `PrototypeLogits`, the logits are never held at all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.losses.chunks import CACHED, MULTIPLIED, row_slices


class PrototypeLogits(NamedTuple):
    """Logits x W^T that are not multiplied out: `dino_loss`, `ibot_loss` and `sinkhorn_knopp` take them as logits.

    A loss then multiplies a few rows, adds their part of the derivatives by x and by W, and forgets them: [..., K]
    never exists. `sinkhorn_knopp` turns the product into the assignments in place.
    """

    x: Tensor
    """Input of the last layer of a head, [..., D]."""
    weight: Tensor
    """The prototypes W, [K, D]."""

    @property
    def shape(self) -> torch.Size:
        """[..., K]."""
        return torch.Size((*self.x.shape[:-1], self.weight.shape[0]))

    @property
    def ndim(self) -> int:
        return self.x.ndim

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.x.dtype, self.weight.dtype)

    def multiplied(self) -> Tensor:
        """The logits [..., K], as a linear layer gives them (autocast included)."""
        return torch.nn.functional.linear(self.x, self.weight)


Logits = Tensor | PrototypeLogits


def one_group(logits: Logits) -> Logits:
    """Logits [R, K] as [1, R, K]."""
    return logits._replace(x=logits.x[None]) if isinstance(logits, PrototypeLogits) else logits[None]


def soft_cross_entropy(logits: Logits, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Sum over s, r of weights[r] * (-sum_k targets[s, r, k] * log softmax(logits[s, r] / temperature)[k]).

    `logits` [S, R, K] of any float dtype; `targets` [S or 1, R, K], not normalised here (a sum of several
    distributions is fine) and without gradient; `weights` [R]. Returns a scalar in float32 (float64 for
    float64 logits). Peak extra memory: one gradient in the dtype of the logits and cache-sized buffers; for
    `PrototypeLogits` the gradients by x and W and buffers of `chunks.MULTIPLIED` entries.
    """
    if temperature <= 0:
        raise ValueError(f"student temperature is {temperature}; it must be positive. The papers use 0.1.")
    weights = weights.to(torch.promote_types(logits.dtype, torch.float32))
    targets = targets.detach()
    if isinstance(logits, PrototypeLogits):
        return _FromPrototypes.apply(*logits, targets, weights, temperature)  # pyright: ignore[reportReturnType]
    return _FromLogits.apply(logits, targets, weights, temperature)  # pyright: ignore[reportReturnType]


class _FromLogits(torch.autograd.Function):
    """Sum of weighted cross-entropies and its derivative by the logits, kept in their dtype."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
        ctx.dtype = logits.dtype
        gradient = torch.empty_like(logits, dtype=_stored(logits.dtype), memory_format=torch.contiguous_format)
        total = _cross_entropy(logits, targets, weights, temperature, slopes=gradient)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad.to(gradient.dtype)).to(ctx.dtype), None, None, None


class _FromPrototypes(torch.autograd.Function):
    """The same from x [S, R, D] and W [K, D]; products in the dtype of autocast, their sums at least in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, targets: Tensor, weights: Tensor, temperature: float) -> Tensor:
        ctx.dtypes = x.dtype, W.dtype
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        dx = torch.empty_like(x, dtype=weights.dtype, memory_format=torch.contiguous_format)
        dW = torch.zeros_like(W, dtype=weights.dtype) if ctx.needs_input_grad[1] else None
        with torch.autocast(device, enabled=False):
            total = _by_product(x.to(dtype), W.to(dtype), targets, weights, temperature, dx, dW)
        ctx.save_for_backward(dx, dW)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        (dx, dW), (of_x, of_W) = ctx.saved_tensors, ctx.dtypes
        return (dx * grad).to(of_x), None if dW is None else (dW * grad).to(of_W), None, None, None


def _by_product(
    x: Tensor, W: Tensor, targets: Tensor, weights: Tensor, temperature: float, dx: Tensor, dW: Tensor | None
) -> Tensor:
    """Weighted cross-entropy of the logits x W^T; writes the derivative by x into `dx`, adds that by W to `dW`."""
    (S, R, D), K = x.shape, W.shape[0]
    total, buffer = weights.new_zeros(()), None
    slope_weight = W.to(_stored(W.dtype))
    for part in row_slices(R, S * K, x.device, MULTIPLIED):
        rows = x[:, part].reshape(-1, D)
        buffer = rows.new_empty(len(rows), K) if buffer is None else buffer  # one for all parts: new pages cost time
        logits = torch.mm(rows, W.t(), out=buffer[: len(rows)]).view(S, -1, K)
        slopes = logits if logits.dtype == slope_weight.dtype else torch.empty_like(logits, dtype=slope_weight.dtype)
        total += _cross_entropy(logits, targets[:, part], weights[part], temperature, slopes=slopes)
        dx[:, part] = slopes @ slope_weight
        if dW is not None:
            _add_product(dW, slopes.view(-1, K).t(), rows.to(slopes.dtype))
    return total


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, where total may have a wider dtype than the factors."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _stored(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which derivatives by logits are kept: that of the logits, but float16 would underflow."""
    return torch.float32 if dtype == torch.float16 else dtype


def _cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, temperature: float, *, slopes: Tensor) -> Tensor:
    """Weighted cross-entropy of logits [S, R, K]; writes its derivative into `slopes`, which may be the logits."""
    S, R, K = logits.shape
    total = weights.new_zeros(())
    for part in row_slices(R, S * K, logits.device, CACHED):
        loss, slope = _chunk(logits[:, part], targets[:, part], weights[part], temperature)
        total += loss
        slopes[:, part] = slope
    return total


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
