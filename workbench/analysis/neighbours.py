"""Weighted nearest-neighbour classification on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.analysis.similarity import unit

_COSINES_AT_ONCE = 8_000_000


def knn_classify(
    bank: Tensor, labels: Tensor, queries: Tensor, *, k: int = 20, temperature: float = 0.07, classes: int
) -> Tensor:
    """Class index [M] of each row of `queries` [M, D] by the votes of its `k` nearest rows of `bank` [N, D].

    Nearness is the cosine; neighbour j votes for its class `labels`[j] (int64 [N], in 0..classes-1) with weight
    exp(cosine / temperature). Equal votes go to the lower class. Source: Wu et al. 2018, section 3.4, as in DINO's
    k-NN evaluation. Raises ValueError when k exceeds N or shapes disagree.
    """
    if bank.dim() != 2 or queries.dim() != 2 or bank.shape[1] != queries.shape[1] or labels.shape != bank.shape[:1]:
        raise ValueError(
            "knn_classify wants bank [N, D], labels [N], queries [M, D], "
            f"got {tuple(bank.shape)}, {tuple(labels.shape)}, {tuple(queries.shape)}."
        )
    if not 1 <= k <= len(bank) or temperature <= 0:
        raise ValueError(f"k is {k} (1 to {len(bank)}, the bank's rows), temperature {temperature} (above 0).")
    bank, queries = unit(bank), unit(queries)
    votes = [
        _votes(block, bank, labels, k, temperature, classes)
        for block in queries.split(max(1, _COSINES_AT_ONCE // len(bank)))
    ]
    return torch.cat(votes).argmax(dim=1) if votes else labels.new_empty(0)


def _votes(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Votes [M, classes] of the k nearest rows, weighted relative to the nearest one, which changes no order."""
    cosines, nearest = (queries @ bank.T).topk(k, dim=1)
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    return weights.new_zeros(len(queries), classes).scatter_add_(1, labels[nearest], weights)
