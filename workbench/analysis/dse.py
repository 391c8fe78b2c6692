"""DSE, the Dense representation Structure Estimator: a label-free gauge of dense features, and a choice of checkpoints.

Source: Dai et al. 2025 (arXiv 2510.17299), sections 4 and 5, and what its released code settles. It rises where patch
tokens fall into clusters that are tight and far from each other, and where they use many directions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.analysis.kmeans import cluster_means, kmeans

IMAGES_PER_GROUP, CLUSTERS_PER_GROUP, CLUSTERS_PER_IMAGE = 8, 24, 3
_NOTHING = 1e-12
_ROUNDING = 1e-6
"""Unit tokens whose mean distance to their mean is less than this are all equal."""


class DSEParts(NamedTuple):
    """The three measures of one backbone, scalars. DSE is their sum with a weight, see `dse_scores`."""

    inter: Tensor
    """M_inter, 0 or more, higher is better: distance from a token to the nearest cluster that is not its own."""
    intra: Tensor
    """M_intra, 0 or more, lower is better: how much room clusters take, as their nuclear norm."""
    dim: Tensor
    """M_dim, in (0, 1], higher is better: effective rank of tokens of different images, over the most possible."""

    @property
    def separation(self) -> Tensor:
        """M_inter - M_intra: the first of the two parts whose spreads lambda compares."""
        return self.inter - self.intra

    def total(self, dim_weight: float = 1.0) -> Tensor:
        """DSE with lambda = `dim_weight`."""
        return self.separation + dim_weight * self.dim


class Structure(NamedTuple):
    """What is drawn or clustered before DSE is computed; held fixed when it is differentiated."""

    images: Tensor
    """int64 [B, N]: which of 3 clusters of its image a token belongs to."""
    groups: tuple[Tensor, ...]
    """int64 [8, N] each, the last one of the images that remain: which of 24 clusters of its group."""
    order: Tensor
    """int64 [B, N]: the tokens of each image in another order."""


def dse(patches: Tensor, *, seed: int = 0) -> DSEParts:
    """DSE's parts of patch tokens [B, H, W, D] or [B, N, D] of B images, without a graph.

    Compare them at the same B, grid and D only: all three depend on those. Groups of 8 images in their order, so
    shuffle a sorted set before; the images that remain make a smaller group. `seed` is that of k-means and of the
    token order. All tokens equal gives 0, 0 and the least `dim`.

    Known failures: a judge of clusters without labels does not know whether they are objects or positions; under the
    lab's induced stress DSE rises or hardly moves, by grid and lambda (docs/alternatives.md). M_inter depends on where
    k-means starts: by some hundredths on 64 images, by a tenth on 8.
    """
    with torch.no_grad():
        return dse_parts(patches, find_structure(patches, torch.Generator().manual_seed(seed)))


@torch.no_grad()
def find_structure(patches: Tensor, generator: torch.Generator) -> Structure:
    """Cluster the unit tokens of `patches` in images and in groups of 8, and draw an order; `generator` on the CPU."""
    tokens = _unit_tokens(patches)
    images, count, channels = tokens.shape
    groups = [
        kmeans(group.reshape(1, -1, channels), CLUSTERS_PER_GROUP, generator=generator).view(-1, count)
        for group in tokens.split(IMAGES_PER_GROUP)
    ]
    order = torch.rand(images, count, generator=generator).argsort(1).to(tokens.device)
    return Structure(kmeans(tokens, CLUSTERS_PER_IMAGE, generator=generator), tuple(groups), order)


def dse_parts(patches: Tensor, structure: Structure) -> DSEParts:
    """DSE's parts of `patches` [B, H, W, D] or [B, N, D], in at least float32.

    Differentiable: through distances to the centres of clusters, which are constants, and through singular values.
    """
    tokens = _unit_tokens(patches)
    with torch.autocast(tokens.device.type, enabled=False):
        spread = (tokens - tokens.mean((0, 1))).norm(dim=-1).mean()
        scale = torch.where(spread > _ROUNDING, 1 / spread.clamp_min(_ROUNDING), 0.0)
        split = [group.flatten(0, 1)[None] for group in tokens.split(IMAGES_PER_GROUP)]
        labels = [group.reshape(1, -1) for group in structure.groups]
        away = torch.cat([_to_nearest_other(*pair) for pair in zip(split, labels, strict=True)])
        rooms = torch.cat([_rooms(*pair, CLUSTERS_PER_GROUP) for pair in zip(split, labels, strict=True)])
        intra = (_mean(rooms) + _mean(_rooms(tokens, structure.images, CLUSTERS_PER_IMAGE))) / 2
        shuffled = tokens.gather(1, structure.order[..., None].expand_as(tokens)).transpose(0, 1)
        return DSEParts(away.mean() * scale, intra * scale, _relative_rank(shuffled).mean())


def _unit_tokens(patches: Tensor) -> Tensor:
    """Patches [B, ..., D] as unit tokens [B, N, D] in at least float32; a zero token stays one."""
    if patches.ndim not in (3, 4) or not patches.numel():
        raise ValueError(
            f"DSE got patches {list(patches.shape)}; expected non-empty [B, H, W, D] or [B, N, D] of B images."
        )
    tokens = patches.to(torch.promote_types(patches.dtype, torch.float32))
    tokens = tokens.flatten(1, 2) if patches.ndim == 4 else tokens
    return F.normalize(tokens, dim=-1)


def _to_nearest_other(tokens: Tensor, labels: Tensor) -> Tensor:
    """Distances [N] from tokens [1, N, D] to the nearest centre that is not their own; 0 where there is no other."""
    with torch.no_grad():
        centres, sizes = cluster_means(tokens, labels, CLUSTERS_PER_GROUP)
        centres = centres[0, sizes[0] > 0]
        own = F.one_hot(labels[0], CLUSTERS_PER_GROUP)[:, sizes[0] > 0].bool()
        if len(centres) == 1:
            return tokens.new_zeros(tokens.shape[1])
        nearest = torch.cdist(tokens[0], centres).masked_fill(own, torch.inf).argmin(1)
    return (tokens[0] - centres[nearest]).norm(dim=-1)


def _rooms(tokens: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Nuclear norm over sqrt(max(n - 1, D)) of each centred cluster of n tokens: [C]; clusters of one are left out.

    All clusters of `tokens` [S, N, D] are padded with rows of zeros to the size of the largest, which leaves their
    singular values as they are.
    """
    means, sizes = cluster_means(tokens, labels, clusters)
    centred = tokens - means.gather(1, labels[..., None].expand_as(tokens))
    members = F.one_hot(labels, clusters)
    place = (members.cumsum(1) - 1).gather(2, labels[..., None])[..., 0]
    sets = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(labels)
    padded = tokens.new_zeros(len(tokens), clusters, int(sizes.max()), tokens.shape[2])
    padded = padded.index_put((sets, labels, place), centred)[sizes > 1]
    scale = (sizes[sizes > 1] - 1).clamp_min(tokens.shape[2]).to(tokens.dtype).sqrt()
    return torch.linalg.svdvals(padded).sum(-1) / scale if len(padded) else tokens.new_zeros(0)


def _mean(values: Tensor) -> Tensor:
    return values.mean() if len(values) else values.sum()


def _relative_rank(matrices: Tensor) -> Tensor:
    """exp(entropy of the singular values over their sum) / min(B, D) of matrices [N, B, D]: [N]. Not centred.

    Singular values below rounding count as 0, where entropy has no finite slope.
    """
    singular = torch.linalg.svdvals(matrices)
    floor = singular.detach()[:, :1] * max(matrices.shape[1:]) * torch.finfo(matrices.dtype).eps
    share = singular / singular.sum(-1, keepdim=True).clamp_min(_NOTHING)
    share = torch.where(singular > floor, share, 1.0)  # whose entropy is 0
    return torch.special.entr(share).sum(-1).exp() / min(matrices.shape[1:])


class Scores(NamedTuple):
    """DSE of several checkpoints."""

    values: list[float]
    dim_weight: float
    """lambda: standard deviation of M_inter - M_intra over that of M_dim."""


def dse_scores(parts: Sequence[DSEParts]) -> Scores:
    """DSE of checkpoints with the lambda that makes its two parts equally wide over these checkpoints.

    A new checkpoint changes lambda, and so all values: give all that were seen so far. Lambda is 1 for fewer than two
    checkpoints, and where M_dim does not change.
    """
    separation, dim = [float(one.separation) for one in parts], [float(one.dim) for one in parts]
    spread = statistics.pstdev(dim) if len(dim) > 1 else 0.0
    weight = statistics.pstdev(separation) / spread if spread > 0 else 1.0
    return Scores([a + weight * b for a, b in zip(separation, dim, strict=True)], weight)


def choose_checkpoints(values: Sequence[float], *, window: int = 2, best: int = 3) -> list[int]:
    """Indices of at most `best` local maxima of DSE, the highest first, the earlier of equals first.

    A local maximum is no lower than any of the `window` checkpoints before and after it; at the ends there are fewer.
    Raises ValueError for values that are not finite. Source: Dai et al. 2025, section 5 (+-2 checkpoints, 3 kept).
    """
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"choose_checkpoints got {list(values)}; every DSE must be a finite number.")
    peaks = [i for i, value in enumerate(values) if value == max(values[max(0, i - window) : i + window + 1])]
    return sorted(peaks, key=lambda i: (-values[i], i))[:best]
