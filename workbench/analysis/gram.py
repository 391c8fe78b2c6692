"""Gram matrices of patch tokens: what Gram anchoring compares (DINOv3, section 4.2). The Gram loss calls this file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gram_matrix(x: Tensor, *, normalize: bool = True) -> Tensor:
    """Pairwise inner products of the tokens of each image; cosines when `normalize`.

    `x` is [B, N, D] (any float dtype); the result is [B, N, N], entry [b, i, j] between tokens i and j, in float32
    (float64 for float64 input), also under autocast: half precision here would drown the small differences that the
    loss is made of. Differentiable. A zero token has cosine 0 with everything. Source: DINOv3, equation 2.
    """
    if x.dim() != 3:
        raise ValueError(
            f"gram_matrix wants tokens [B, N, D], got shape {tuple(x.shape)}; flatten a patch grid with flatten(1, 2)."
        )
    x = x if x.dtype == torch.float64 else x.float()
    with torch.autocast(device_type=x.device.type, enabled=False):
        if normalize:
            x = F.normalize(x, dim=-1)
        return x @ x.transpose(1, 2)


def gram_distance(a: Tensor, b: Tensor, *, normalize: bool = True) -> Tensor:
    """Mean squared difference of the Gram matrices of `a` [B, N, D] and `b` [B, N, E], one number an image: [B].

    The channel counts may differ: only the geometry between patches is compared. 0 means the same geometry (any
    rotation of the channels); with `normalize` it stays below 4. Source: DINOv3, equation 2, with the
    mean over entries in place of the squared Frobenius norm, so that the number does not grow with resolution.
    """
    if a.shape[:2] != b.shape[:2]:
        raise ValueError(
            f"gram_distance compares the same tokens of the same images, got {tuple(a.shape)} and {tuple(b.shape)}; "
            "resize one patch grid to the other first."
        )
    difference = gram_matrix(a, normalize=normalize) - gram_matrix(b, normalize=normalize)
    return difference.square().mean(dim=(1, 2))
