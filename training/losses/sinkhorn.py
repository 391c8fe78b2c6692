"""Sinkhorn-Knopp: teacher logits to assignments that use all prototypes about equally."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

_LOWEST = -70.0
"""Exponents below this are raised to it: beside the 1 in their row they count for nothing, and denormals are slow."""


@torch.no_grad()
def sinkhorn_knopp(
    logits: Tensor, temperature: float, *, iterations: int = 3, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Alternately give every prototype, then every sample, the same mass, starting from exp(logits / temperature).

    `logits` [N, K]: N samples of this process over K prototypes. Returns probabilities [N, K], at least float32; the
    last step normalises samples, so each row sums to 1. Never part of a graph. With `group` the prototype sums run
    over all its processes, whose N may differ or be 0 (K numbers are exchanged once as a maximum and once per
    iteration); the row of a sample is then what one process holding all samples would compute.

    Source: SwAV appendix, DINOv2 section 4, DINOv3 section 3.2. Scaling form: P = diag(a) E diag(b) with two vectors,
    E is never rewritten; the factors K and N of the papers cancel in the next step and are left out. E is
    exp((z - h_k - f_n) / temperature), h the maximum of each column, f that of each row after it: constant factors of
    a column cancel in b and those of a row are carried by the first a. Each row and each column of E then holds a 1,
    so logits of any size neither overflow nor leave an empty prototype.

    Raises ValueError when the temperature is not positive, iterations < 1, or logits are not [N, K] with K >= 1.
    """
    if logits.ndim != 2 or logits.shape[1] == 0 or temperature <= 0 or iterations < 1:
        raise ValueError(
            f"sinkhorn_knopp got logits {list(logits.shape)}, temperature {temperature}, iterations {iterations}; "
            "expected [N, K] with K >= 1, a temperature above 0 (the papers use 0.04 to 0.07) and iterations >= 1."
        )
    with torch.autocast(logits.device.type, enabled=False):
        E, a = _kernel(logits, temperature, group)
        b = a
        for _ in range(iterations):
            mass = torch.mv(E.t(), a)
            if group is not None:
                dist.all_reduce(mass, group=group)
            b = mass.reciprocal_()
            a = torch.mv(E, b).reciprocal_()
        return E.mul_(b).mul_(a[:, None])


def _kernel(logits: Tensor, temperature: float, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """E [N, K] with a 1 in each row and column, and the first row factors a [N] that make a * E * (...) exact."""
    N, K = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    empty = torch.full((K,), -torch.inf, dtype=dtype, device=logits.device)
    highest = logits.amax(0).to(dtype) if N else empty
    if group is not None:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    E = (logits - highest).mul_(1 / temperature)
    offset = E.amax(1)
    return E.sub_(offset[:, None]).clamp_(min=_LOWEST).exp_(), offset.clamp(min=_LOWEST).exp()
