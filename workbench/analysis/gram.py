"""Gram matrices of patch tokens: what Gram anchoring compares (DINOv3, section 4.2). The Gram loss calls this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.analysis.kmeans import kmeans
from workbench.analysis.similarity import unit

Order = Literal["raster", "alike", "cluster"]
"""As the image is read; along the leading principal component; by k-means cluster, clusters and members along it."""


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
    _check_same_tokens(a, b)
    difference = gram_matrix(a, normalize=normalize) - gram_matrix(b, normalize=normalize)
    return difference.square().mean(dim=(1, 2))


def gram_rows(x: Tensor, rows: Sequence[int] | Tensor, *, normalize: bool = True) -> Tensor:
    """Some rows of the Gram matrix of one image, [K, N], without the matrix: for grids whose N x N is too large.

    `x` is [N, D], `rows` names K tokens. float32 as `gram_matrix`. Raises ValueError for a token that is not there.
    """
    chosen = torch.as_tensor(rows, dtype=torch.int64, device=x.device)
    if x.dim() != 2 or chosen.dim() != 1 or (len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(x)):
        raise ValueError(f"gram_rows wants tokens [N, D] and rows in 0 to N - 1, got {tuple(x.shape)} and {rows}.")
    x = unit(x) if normalize else x.to(torch.promote_types(x.dtype, torch.float32))
    return x[chosen] @ x.T


def gram_difference(a: Tensor, b: Tensor, *, normalize: bool = True) -> Tensor:
    """Gram matrix of `a` [B, N, D] less that of the anchor `b` [B, N, E]: [B, N, N], in [-2, 2] with `normalize`.

    Positive where two patches have grown alike since the anchor. Raises ValueError as `gram_distance`.
    """
    _check_same_tokens(a, b)
    return gram_matrix(a, normalize=normalize) - gram_matrix(b, normalize=normalize)


@torch.no_grad()
def gram_distances(steps: Sequence[Tensor], anchor: Tensor, *, rows: int = 1024) -> Tensor:
    """`gram_distance` of every one of `steps` [B, N, D] to the `anchor` [B, N, E]: [S, B], in float32.

    At most `rows` rows of the matrices are held at once, so that large grids fit. Raises ValueError as
    `gram_distance`.
    """
    target = unit(anchor)
    found = []
    for step in steps:
        _check_same_tokens(step, anchor)
        units, total = unit(step), step.new_zeros(len(step), dtype=torch.float64)
        for start in range(0, step.shape[1], rows):
            block = slice(start, start + rows)
            difference = units[:, block] @ units.transpose(1, 2) - target[:, block] @ target.transpose(1, 2)
            total += difference.square().sum(dim=(1, 2), dtype=torch.float64)
        found.append((total / step.shape[1] ** 2).float())
    return torch.stack(found) if found else anchor.new_zeros(0, len(anchor), dtype=torch.float32)


def gram_order(
    x: Tensor, order: Order, *, clusters: int = 6, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """In which order to show the tokens of one image, `x` [N, D]: (order int64 [N], cluster of each token int64 [N]).

    "raster" keeps the image's, "alike" sorts along the leading principal component of the unit tokens, "cluster" puts
    k-means clusters of them one after another, by their mean along that component, and sorts inside by it. Clusters
    are all 0 but for "cluster", which needs a `generator`. Raises ValueError for another order or shape.
    """
    if order not in get_args(Order):
        raise ValueError(f"tokens are ordered by {', '.join(get_args(Order))}, not {order!r}.")
    if x.dim() != 2 or not x.numel():
        raise ValueError(f"gram_order wants tokens [N, D], got shape {tuple(x.shape)}.")
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    if order == "raster":
        return torch.arange(len(x), device=x.device), labels
    units = unit(x).double()
    centred = units - units.mean(dim=0)
    leading = centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    if order == "alike":
        return leading.argsort(stable=True), labels
    if generator is None:
        raise ValueError("an order by cluster draws its seeds; give it a generator.")
    labels = kmeans(units[None].float(), clusters, generator=generator)[0]
    sums = torch.zeros(clusters, dtype=leading.dtype, device=x.device).scatter_reduce(
        0, labels, leading, "mean", include_self=False
    )
    rank = sums.argsort(stable=True).argsort()[labels]
    inside = leading.argsort(stable=True)
    return inside[rank[inside].argsort(stable=True)], rank


def _check_same_tokens(a: Tensor, b: Tensor) -> None:
    if a.dim() != 3 or b.dim() != 3 or a.shape[:2] != b.shape[:2]:
        raise ValueError(
            f"Gram matrices of the same tokens of the same images are compared, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}; resize one patch grid to the other first."
        )
