"""The DSE regulariser: patch tokens should fall into tight clusters far from each other, and use many directions."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.analysis.dse import dse_parts, find_structure


def dse_loss(patches: Tensor, *, generator: torch.Generator, dim_weight: float = 1.0) -> Tensor:
    """-(M_inter - M_intra + `dim_weight` M_dim) of the patch tokens [B, H, W, D] or [B, N, D] of B images.

    The very DSE of `workbench.analysis.dse`, computed in at least float32; one crop of each image. The gradient flows
    through distances and singular values; k-means, with its centres, has none. `generator` (on the CPU) draws the seeds
    of k-means and the order of the tokens, anew at each call. A batch of one image has M_dim 1.
    Source: Dai et al. 2025 (arXiv 2510.17299), section 5, with lambda 1 as in its released code, whose regulariser
    takes M_dim once over all tokens, not place by place as the estimator does.

    Raises ValueError when `patches` is empty or has another shape.
    """
    structure = find_structure(patches.detach(), generator)
    return -dse_parts(patches, structure).total(dim_weight)
