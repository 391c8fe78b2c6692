"""The KoLeo regulariser: features of a batch should spread evenly over the sphere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-8


def koleo_loss(cls: Tensor) -> Tensor:
    """-mean_i log(distance of x_i to its nearest neighbour in the batch), x on the unit sphere.

    `cls` [B, D]: class tokens of B different images (one crop each), before any head. Computed in at least float32;
    the gradient flows through both ends of each distance, not through the choice of the neighbour. A batch of one
    has no neighbour and gives 0. Source: DINOv2 section 4 (Kozachenko-Leonenko estimator; Sablayrolles et al. 2019).

    Raises ValueError when `cls` is not [B, D].
    """
    if cls.ndim != 2:
        raise ValueError(f"koleo_loss got {list(cls.shape)}; expected class tokens [B, D] of one crop per image.")
    x = cls.to(torch.promote_types(cls.dtype, torch.float32))
    if x.shape[0] < 2:
        return x.sum() * 0.0
    with torch.autocast(x.device.type, enabled=False):
        x = F.normalize(x, dim=-1, eps=_EPS)
        distance = F.pairwise_distance(x, x[_nearest(x.detach())], eps=_EPS)
        return -torch.log(distance + _EPS).mean()


def _nearest(x: Tensor) -> Tensor:
    """Index [B] of the other row with the largest dot product, for unit rows [B, D]."""
    return (x @ x.t()).fill_diagonal_(-torch.inf).argmax(1)
