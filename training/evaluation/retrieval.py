"""Open-set retrieval: does a picture find other pictures of the same thing, of a thing that training never saw?"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Retrieval(NamedTuple):
    """Means over queries, in [0, 1]."""

    recall_at_1: float
    """Share of the queries whose nearest other picture shows the same identity."""
    mean_average_precision: float
    """Mean of the average precision of each query's ranking of all other pictures."""


def retrieval(features: Tensor, identities: Tensor) -> Retrieval:
    """Leave-one-out retrieval by cosine: every picture is a query, all the others are ranked.

    `features` [N, D], `identities` int64 [N]. Pictures that are alone of their identity are ranked but do not ask.
    Average precision of a ranking with R relevant pictures at places p_1 < ... < p_R: mean over j of j / p_j.
    Ties are broken by the order of the pictures. Both are NaN when no identity has two pictures.
    Source: Philbin et al. 2007, section 3.2; recall@1 as in metric learning (Musgrave et al. 2020).

    Raises ValueError when the shapes disagree.
    """
    if features.ndim != 2 or identities.shape != features.shape[:1]:
        raise ValueError(
            f"retrieval got features {list(features.shape)} and identities {list(identities.shape)}; expected [N, D] "
            "and [N]."
        )
    units = F.normalize(features.double(), dim=-1)
    cosines = (units @ units.t()).fill_diagonal_(-torch.inf)
    order = cosines.sort(dim=1, descending=True, stable=True).indices[:, :-1]
    relevant = (identities[order] == identities[:, None]).double()
    asking = relevant.sum(1) > 0
    if not asking.any():
        return Retrieval(float("nan"), float("nan"))
    relevant = relevant[asking]
    places = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64, device=relevant.device)
    precision = relevant.cumsum(1) / places
    average = (precision * relevant).sum(1) / relevant.sum(1)
    return Retrieval(relevant[:, 0].mean().item(), average.mean().item())
