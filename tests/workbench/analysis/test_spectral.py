"""Graphs of patch similarities: against SciPy's generalised eigenvectors and scikit-learn's clustering."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from workbench.analysis.spectral import spectral_segments, token_cut


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def regions(noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches [9, 14, 16] of three regions, each with a vector of its own, and which region each belongs to."""
    labels = torch.zeros(9, 14, dtype=torch.int64)
    labels[2:7, 3:8] = 1
    labels[:, 11:] = 2
    vectors = torch.linalg.qr(draw(16, 3, seed=5)).Q.T
    return vectors[labels] + noise * draw(9, 14, 16, seed=seed), labels


def test_token_cut_is_scipys_generalised_eigenvector():
    patches, _ = regions(0.15)
    units = patches.flatten(0, 1).double().numpy()
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    weights = np.where(units @ units.T > 0.2, 1.0, 1e-5)
    degrees = np.diag(weights.sum(axis=1))
    _, vectors = eigh(degrees - weights, degrees, subset_by_index=[1, 1])
    ours = token_cut(patches).eigenvector.flatten().double().numpy()
    theirs = vectors[:, 0]
    assert abs(ours @ theirs) / np.linalg.norm(ours) / np.linalg.norm(theirs) == pytest.approx(1, abs=1e-6)


def test_token_cut_finds_the_object_and_its_box():
    patches = 0.05 * draw(9, 14, 16)
    patches += torch.eye(16)[0]
    patches[2:7, 3:8] += 4 * torch.eye(16)[1] - torch.eye(16)[0]
    found = token_cut(patches)
    truth = torch.zeros(9, 14, dtype=torch.bool)
    truth[2:7, 3:8] = True
    assert torch.equal(found.mask, truth)
    assert found.box == (2, 3, 7, 8)
    assert (found.eigenvector[truth] > 0).all()


def test_the_box_is_of_the_part_around_the_strongest_patch():
    patches = torch.eye(4)[0].expand(8, 10, 4).clone()
    patches[1:4, 1:4] = torch.eye(4)[1]
    patches[6:8, 8:10] = torch.eye(4)[1]
    found = token_cut(patches)
    assert found.mask.sum() == 13
    assert found.box in {(1, 1, 4, 4), (6, 8, 8, 10)}


@pytest.mark.parametrize("noise", [0.02, 0.15])
def test_segments_are_scikit_learns(noise):
    patches, labels = regions(noise)
    units = patches.flatten(0, 1) / patches.flatten(0, 1).norm(dim=1, keepdim=True)
    affinity = (units @ units.T).clamp_min(0).double().numpy()
    theirs = SpectralClustering(3, affinity="precomputed", random_state=0).fit_predict(affinity)
    ours = spectral_segments(patches, 3, generator=torch.Generator().manual_seed(0))
    assert ours.shape == (9, 14)
    assert adjusted_rand_score(theirs, ours.flatten()) > 0.99
    assert adjusted_rand_score(labels.flatten(), ours.flatten()) > 0.99


def test_one_segment_constant_features_and_half_precision():
    generator = torch.Generator().manual_seed(0)
    assert spectral_segments(draw(2, 3, 4), 1, generator=generator).unique().tolist() == [0]
    assert spectral_segments(torch.ones(3, 5, 4), 2, generator=generator).shape == (3, 5)
    assert token_cut(torch.ones(3, 5, 4)).mask.shape == (3, 5)
    patches, _ = regions(0.02)
    assert torch.equal(token_cut(patches.bfloat16()).mask, token_cut(patches).mask)


@pytest.mark.parametrize(
    ("patches", "words"),
    [
        (torch.ones(3, 4), "patches"),
        (torch.ones(1, 1, 4), "2 or more"),
        (torch.ones(65, 64, 2), "too many"),
        (torch.full((3, 4, 5), torch.nan), "finite"),
    ],
)
def test_mistakes_are_told(patches, words):
    with pytest.raises(ValueError, match=words):
        token_cut(patches)
    with pytest.raises(ValueError, match="choose 1 to 12"):
        spectral_segments(torch.ones(3, 4, 5), 13, generator=torch.Generator())
