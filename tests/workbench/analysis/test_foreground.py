"""Foreground: planted objects are found, thresholds and coefficients are those of scikit-image and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from skimage.filters import threshold_otsu
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from workbench.analysis.foreground import ForegroundClassifier, fit_pca_inside, foreground_by_pca


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def planted(noise: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches [3, 7, 10, 20] with an object inside each image, and where it is."""
    truth = torch.zeros(3, 7, 10, dtype=torch.bool)
    truth[0, 2:6, 2:8] = truth[1, 1:5, 3:7] = truth[2, 2:5, 5:9] = True
    axes = torch.linalg.qr(draw(20, 3)).Q
    parts = torch.where(torch.arange(10) % 2 == 0, 1.0, -1.0)[:, None] * axes[:, 2]
    return axes[:, 0] + truth[..., None] * (6 * axes[:, 1] + parts) + noise * draw(3, 7, 10, 20, seed=1), truth


def test_the_planted_object_is_found_whatever_the_sign() -> None:
    patches, truth = planted()
    for x in (patches, -patches, patches.bfloat16()):
        found = foreground_by_pca(x)
        assert torch.equal(found.mask, truth)
        assert torch.equal(found.mask, found.component > found.threshold)


def test_component_and_threshold_are_scikits() -> None:
    patches, _ = planted(1.5)
    rows = patches.flatten(0, 2).double().numpy()
    theirs = PCA(1, svd_solver="full").fit_transform(rows)[:, 0]
    found = foreground_by_pca(patches)
    ours = found.component.flatten().double().numpy()
    sign = np.sign(ours @ theirs)
    np.testing.assert_allclose(ours, sign * theirs, atol=1e-4)
    assert abs(found.threshold) == pytest.approx(abs(threshold_otsu(theirs)), abs=0.03)


def test_one_image_and_constant_features() -> None:
    patches, truth = planted(0.1)
    assert torch.equal(foreground_by_pca(patches[1:2]).mask, truth[1:2])
    assert not foreground_by_pca(torch.ones(2, 3, 4, 5)).mask.any()


def test_the_classifier_is_scikit_learns_and_a_median() -> None:
    patches, truth = planted(2.0)
    classifier = ForegroundClassifier(patches, truth.float() * 0.3)
    model = LogisticRegression(C=0.1, max_iter=1000)
    model.fit(patches.flatten(0, 2).numpy(), truth.flatten().numpy())
    new = planted(2.0)[0].flip(2)
    probability = model.predict_proba(new.flatten(0, 2).numpy())[:, 1].reshape(3, 7, 10)
    expected = np.stack([median_filter(image, 3, mode="nearest") for image in probability])
    np.testing.assert_allclose(classifier(new), expected, atol=1e-4)
    assert ((classifier(new) > 0.5) == truth.flip(2)).float().mean() > 0.85


def test_colours_inside_are_those_of_the_inside_alone() -> None:
    patches, truth = planted()
    basis = fit_pca_inside(patches, truth, 2)
    theirs = PCA(2, svd_solver="full").fit(patches[truth].double().numpy())
    np.testing.assert_allclose(basis.variance, theirs.explained_variance_, rtol=1e-4)
    with pytest.raises(ValueError, match="2 or more"):
        fit_pca_inside(patches, torch.zeros_like(truth))
    with pytest.raises(ValueError, match=r"\[B, H, W\]"):
        fit_pca_inside(patches, truth[0])


def test_what_cannot_be_split_is_refused() -> None:
    patches, truth = planted()
    with pytest.raises(ValueError, match=r"\[B, H, W, D\]"):
        foreground_by_pca(patches[0])
    with pytest.raises(ValueError, match="NaN"):
        foreground_by_pca(torch.full((1, 2, 2, 3), torch.nan))
    for coverage in (torch.zeros(3, 7, 10), torch.ones(3, 7, 10), truth[:1].float()):
        with pytest.raises(ValueError, match="both"):
            ForegroundClassifier(patches, coverage)
    with pytest.raises(ValueError, match="20"):
        ForegroundClassifier(patches, truth.float())(patches[..., :4])
