"""Weighted k-NN against scikit-learn and against a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from workbench.analysis import neighbours
from workbench.analysis.neighbours import knn_classify


def problem(seed: int = 0, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 8, generator=generator)
    labels = torch.randint(classes, (120,), generator=generator)
    bank = centres[labels] + torch.randn(120, 8, generator=generator)
    queries = torch.randn(50, 8, generator=generator) + centres[torch.randint(classes, (50,), generator=generator)]
    return bank, labels, queries


@pytest.mark.parametrize("k", [1, 7, 20])
def test_equals_scikit_learn(k: int) -> None:
    bank, labels, queries = problem()
    reference = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = reference.fit(bank.numpy(), labels.numpy()).predict(queries.numpy())
    assert (knn_classify(bank, labels, queries, k=k, classes=4).numpy() == expected).all()


def test_equals_a_loop() -> None:
    bank, labels, queries = problem(seed=1)
    for query, predicted in zip(
        queries, knn_classify(bank, labels, queries, k=9, temperature=0.2, classes=4), strict=True
    ):
        cosines = [
            (torch.cosine_similarity(query, row, dim=0).item(), int(label))
            for row, label in zip(bank, labels, strict=True)
        ]
        votes = [0.0] * 4
        for cosine, label in sorted(cosines, reverse=True)[:9]:
            votes[label] += math.exp(cosine / 0.2)
        assert predicted == votes.index(max(votes))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels, queries = problem(seed=2)
    whole = knn_classify(bank, labels, queries, k=5, classes=4)
    monkeypatch.setattr(neighbours, "_COSINES_AT_ONCE", 3 * len(bank))
    assert torch.equal(knn_classify(bank, labels, queries, k=5, classes=4), whole)


def test_length_of_vectors_does_not_matter() -> None:
    bank, labels, queries = problem(seed=3)
    scaled = bank * torch.linspace(0.1, 50, len(bank))[:, None]
    expected = knn_classify(bank, labels, queries, classes=4)
    assert torch.equal(knn_classify(scaled, labels, 9 * queries, classes=4), expected)


def test_low_temperature_does_not_overflow() -> None:
    bank, labels, queries = problem(seed=4)
    cold = knn_classify(bank, labels, queries, k=5, temperature=1e-4, classes=4)
    assert torch.equal(cold, knn_classify(bank, labels, queries, k=1, classes=4))


def test_no_queries_give_no_answers() -> None:
    bank, labels, _ = problem()
    assert knn_classify(bank, labels, torch.empty(0, 8), classes=4).shape == (0,)


def test_mistakes_are_told() -> None:
    bank, labels, queries = problem()
    with pytest.raises(ValueError, match="k is 121"):
        knn_classify(bank, labels, queries, k=121, classes=4)
    with pytest.raises(ValueError, match=r"bank \[N, D\]"):
        knn_classify(bank, labels[:3], queries, classes=4)
