"""Sinkhorn-Knopp: teacher logits to assignments that use all prototypes about equally."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from training.losses.chunks import CACHED, row_slices
from training.losses.cross_entropy import Logits, PrototypeLogits

_LOWEST = -70.0
"""Exponents below this are raised to it: beside the 1 in their row they count for nothing, and denormals are slow."""


@torch.no_grad()
def sinkhorn_knopp(
    logits: Logits, temperature: float, *, iterations: int = 3, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Alternately give every prototype, then every sample, the same mass, starting from exp(logits / temperature).

    `logits` [N, K]: N samples of this process over K prototypes; `PrototypeLogits` are multiplied out once and become
    the result in place. Returns probabilities [N, K], at least float32; the
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
    owned = isinstance(logits, PrototypeLogits)
    values = logits.multiplied() if isinstance(logits, PrototypeLogits) else logits
    with torch.autocast(values.device.type, enabled=False):
        E, mass = _kernel(values, temperature, group, overwrite=owned)
        for iteration in range(iterations):
            if group is not None:
                dist.all_reduce(mass, group=group)
            b, mass = mass.reciprocal_(), torch.zeros_like(mass)
            for part in row_slices(E.shape[0], E.shape[1], E.device, CACHED):
                rows, factors = E[part], torch.mv(E[part], b).reciprocal_()
                if iteration == iterations - 1:
                    rows.mul_(b).mul_(factors[:, None])
                else:
                    mass.addmv_(rows.t(), factors)
        return E


def _kernel(
    logits: Tensor, temperature: float, group: dist.ProcessGroup | None, *, overwrite: bool
) -> tuple[Tensor, Tensor]:
    """E [N, K] with a 1 in each row and column, and E^T a [K] with the row factors a that make a * E * (...) exact.

    With `overwrite`, E takes the place of the logits.
    """
    N, K = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    highest = logits.new_full((K,), -torch.inf, dtype=dtype) if not N else logits.amax(0).to(dtype)
    if group is not None:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    E = logits if overwrite and logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
    mass = torch.zeros_like(highest)
    for part in row_slices(N, K, logits.device, CACHED):
        rows = torch.sub(logits[part], highest, out=E[part]).mul_(1 / temperature)
        offset = rows.amax(1)
        rows.sub_(offset[:, None]).clamp_(min=_LOWEST).exp_()
        mass.addmv_(rows.t(), offset.clamp_(min=_LOWEST).exp_())
    return E, mass
