"""k-means on many small sets of tokens at once, where the tokens are: on the CPU or a GPU, without a graph.

scikit-learn has a k-means, too, but takes one set at a time, from the CPU. DSE needs hundreds of sets, and as a loss it
needs them at every step; one code for both, so that what is trained on is what is looked at. Tests hold it to
scikit-learn's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def kmeans(tokens: Tensor, clusters: int, *, generator: torch.Generator, iterations: int = 50) -> Tensor:
    """The cluster of each token, int64 [S, N] in 0 to clusters - 1, for S separate sets `tokens` [S, N, D].

    One start from k-means++ seeds, then Lloyd's steps until nothing changes, at most `iterations`. `generator` (on the
    CPU) draws the seeds. A set with fewer different tokens than clusters leaves some empty. Raises ValueError for
    another shape or no clusters. Source: Arthur and Vassilvitskii 2007; Lloyd 1982.
    """
    if tokens.ndim != 3 or not tokens.numel() or clusters < 1:
        raise ValueError(
            f"kmeans got tokens {list(tokens.shape)} and {clusters} clusters; expected non-empty [S, N, D] and "
            "1 or more."
        )
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    with torch.autocast(tokens.device.type, enabled=False):
        return lloyd(tokens, _spread_seeds(tokens, min(clusters, tokens.shape[1]), generator), iterations=iterations)


@torch.no_grad()
def lloyd(tokens: Tensor, centres: Tensor, *, iterations: int = 50) -> Tensor:
    """Lloyd's steps from `centres` [S, K, D] on `tokens` [S, N, D]: the nearest centre of each token, int64 [S, N].

    Of equally near ones the first. A centre that loses all its tokens stays where it is.
    """
    labels = _nearest(tokens, centres)
    for _ in range(iterations):
        means, sizes = cluster_means(tokens, labels, centres.shape[1])
        centres = torch.where(sizes[..., None] > 0, means, centres)
        before, labels = labels, _nearest(tokens, centres)
        if torch.equal(before, labels):
            break
    return labels


def cluster_means(tokens: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """(means [S, K, D], sizes int64 [S, K]) of the clusters `labels` [S, N] of `tokens` [S, N, D]; 0 where empty."""
    members = F.one_hot(labels, clusters)
    sizes = members.sum(1)
    sums = members.to(tokens.dtype).transpose(1, 2) @ tokens
    return sums / sizes.clamp_min(1)[..., None], sizes


def _nearest(tokens: Tensor, centres: Tensor) -> Tensor:
    """argmin of the squared distance, less the token's own length, which is the same for all centres."""
    return (centres.square().sum(-1)[:, None] - 2 * tokens @ centres.transpose(1, 2)).argmin(-1)


def _spread_seeds(tokens: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next seed [S, K, D] is a token, drawn with the square of its distance to the seeds so far."""
    sets, count, _ = tokens.shape
    which = torch.arange(sets, device=tokens.device)
    draws = torch.rand(clusters, sets, 1, generator=generator, dtype=torch.float64).to(tokens.device)
    picks = (draws[0, :, 0] * count).long().clamp_max(count - 1)
    seeds, away = [tokens[which, picks]], torch.full((sets, count), torch.inf, device=tokens.device)
    for draw in draws[1:]:
        away = torch.minimum(away, (tokens - seeds[-1][:, None]).square().sum(-1))
        mass = away.double().cumsum(-1)
        picks = torch.searchsorted(mass, draw * mass[:, -1:], right=True)[:, 0].clamp_max(count - 1)
        seeds.append(tokens[which, picks])
    return torch.stack(seeds, dim=1)
