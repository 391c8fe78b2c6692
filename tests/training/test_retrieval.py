"""Retrieval against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from training.evaluation.retrieval import retrieval


def test_it_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    identities = torch.randint(0, 7, (61,), generator=generator)
    features = torch.randn(7, 5, generator=generator)[identities] + torch.randn(61, 5, generator=generator)
    x = features.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    hits, precisions = [], []
    for i in range(61):
        others = [j for j in range(61) if j != i]
        same = (identities[others] == identities[i]).numpy()
        scores = x[others] @ x[i]
        hits.append(same[np.argmax(scores)])
        precisions.append(average_precision_score(same, scores))
    found = retrieval(features, identities)
    assert found.recall_at_1 == pytest.approx(np.mean(hits), abs=1e-12)
    assert found.mean_average_precision == pytest.approx(np.mean(precisions), abs=1e-12)


def test_a_lonely_picture_is_ranked_but_does_not_ask():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    found = retrieval(features, torch.tensor([0, 1, 0]))
    assert found == (1.0, 1.0)
    between = retrieval(torch.tensor([[1.0, 0.0], [1.0, 0.3], [1.0, 1.0]]), torch.tensor([0, 1, 0]))
    assert between == (0.0, 0.5)
    assert all(math.isnan(value) for value in retrieval(features, torch.tensor([0, 1, 2])))


def test_shapes_that_disagree_are_told():
    with pytest.raises(ValueError, match=r"\[3, 2\] and identities \[2\]"):
        retrieval(torch.zeros(3, 2), torch.tensor([0, 1]))
