"""PCA against scikit-learn, and what colours need: fixed signs, steadiness along time, clear edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from workbench.analysis.pca import (
    Basis,
    align_basis,
    basis_drift,
    choose,
    color_range,
    explained,
    fit_pca,
    fit_pca_sampled,
    project,
    refit_pca,
    subspace_cosine,
    to_rgb,
)


def tokens(count: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator)
    return torch.randn(count, channels, generator=generator) @ mixing + 3


@pytest.mark.parametrize(("count", "channels"), [(500, 12), (9, 40), (200, 3)])
@pytest.mark.parametrize("accumulate", [torch.float64, torch.float32])
def test_equals_scikit_learn(count: int, channels: int, accumulate: torch.dtype) -> None:
    x = tokens(count, channels)
    basis = fit_pca(x, accumulate=accumulate)
    reference = PCA(3, svd_solver="full").fit(x.double().numpy())
    overlap = np.linalg.svd(basis.components.numpy() @ reference.components_.T, compute_uv=False)
    assert overlap.min() > 1 - 1e-5
    for mine, theirs in zip(basis.components.numpy(), reference.components_, strict=True):
        assert abs(mine @ theirs) > 1 - 1e-4
    np.testing.assert_allclose(basis.variance, reference.explained_variance_, rtol=1e-3)
    share = basis.variance.sum().item() / basis.total_variance
    assert share == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-3)
    mine, theirs = project(basis, x).numpy(), reference.transform(x.double().numpy())
    np.testing.assert_allclose(np.abs(mine), np.abs(theirs), atol=2e-2 * np.abs(theirs).max())


def test_signs_are_fixed_by_rule_and_do_not_depend_on_row_order() -> None:
    x = tokens(300, 8)
    basis, again = fit_pca(x), fit_pca(x.flip(0))
    assert torch.allclose(basis.components, again.components, atol=1e-4)
    largest = basis.components.gather(1, basis.components.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()


def test_constant_features_project_to_zero_and_show_as_grey() -> None:
    x = torch.full((50, 6), 2.5)
    basis = fit_pca(x)
    assert basis.total_variance == 0
    assert torch.equal(basis.variance, torch.zeros(3))
    assert torch.allclose(basis.components @ basis.components.T, torch.eye(3), atol=1e-6)
    projected = project(basis, x)
    assert torch.equal(to_rgb(projected, color_range(projected)), torch.full((50, 3), 0.5))


def test_alignment_undoes_flips_and_rotations_inside_the_subspace() -> None:
    x = tokens(400, 10)
    reference = fit_pca(x)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(4))).Q
    turned = reference._replace(components=-turn @ reference.components)
    turned_variance = (turn.square() * reference.variance).sum(dim=1)
    aligned = align_basis(turned._replace(variance=turned_variance), reference)
    assert torch.allclose(aligned.components, reference.components, atol=1e-5)


def test_alignment_keeps_subspace_mean_and_variance() -> None:
    x, later = tokens(400, 10), tokens(400, 10, seed=1)
    basis = fit_pca(later)
    aligned = align_basis(basis, fit_pca(x))
    overlap = torch.linalg.svdvals(aligned.components @ basis.components.T)
    assert torch.allclose(overlap, torch.ones(3), atol=1e-5)
    assert torch.equal(aligned.mean, basis.mean)
    measured = project(aligned, later).var(dim=0)
    assert torch.allclose(aligned.variance, measured, rtol=1e-3)


def test_alignment_brings_colours_nearer_than_leaving_them() -> None:
    x = tokens(400, 10)
    reference = fit_pca(x)
    noisy = fit_pca(x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2)))
    flipped = noisy._replace(components=noisy.components * torch.tensor([[-1.0], [1.0], [-1.0]]))
    before = (project(flipped, x) - project(reference, x)).norm()
    after = (project(align_basis(flipped, reference), x) - project(reference, x)).norm()
    assert after < 0.05 * before


def test_range_is_that_of_numpy_percentiles_and_shrugs_off_an_outlier() -> None:
    x = torch.randn(2, 10, 20, 3, generator=torch.Generator().manual_seed(3))
    expected = np.percentile(x.flatten(0, -2).numpy(), [1, 99], axis=0).T
    np.testing.assert_allclose(color_range(x).numpy(), expected, rtol=1e-4)
    x[0, 0, 0] = 1e6
    assert color_range(x).max() < 10


def test_rgb_is_linear_between_the_limits_and_cut_outside() -> None:
    limits = torch.tensor([[0.0, 2.0]] * 3)
    colours = to_rgb(torch.tensor([[-1.0, 1.0, 5.0]]), limits)
    assert torch.allclose(colours, torch.tensor([[0.0, 0.5, 1.0]]))


def test_projection_keeps_the_grid() -> None:
    basis = fit_pca(tokens(50, 7))
    assert project(basis, torch.randn(2, 3, 5, 7)).shape == (2, 3, 5, 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fit_pca(torch.ones(1, 4)), "2 or more"),
        (lambda: fit_pca(torch.ones(2, 3, 4)), "N, D"),
        (lambda: fit_pca(torch.randn(9, 2)), "1 to 2"),
        (lambda: fit_pca(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), 1), "finite"),
        (lambda: project(fit_pca(torch.randn(9, 4)), torch.ones(5)), "5 channels"),
        (lambda: align_basis(fit_pca(torch.randn(9, 4)), fit_pca(torch.randn(9, 5))), "same channels"),
        (lambda: color_range(torch.empty(0, 3)), "token"),
    ],
)
def test_mistakes_are_told(call, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_basis_is_a_plain_tuple_of_tensors() -> None:
    mean, components, variance, total = fit_pca(tokens(30, 5))
    rebuilt = Basis(mean, components, variance, total)
    assert (rebuilt.mean.shape, rebuilt.components.shape, rebuilt.variance.shape) == ((5,), (3, 5), (3,))


def test_a_sample_meets_the_subspace_and_is_exact_where_it_holds_all():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(20_000, 32, generator=generator) * torch.arange(1, 33).float().pow(-0.8) + 5
    exact = fit_pca(tokens)
    assert torch.equal(fit_pca_sampled(tokens, sample=20_000).components, exact.components)
    for draw in (None, generator):
        found = fit_pca_sampled(tokens, sample=4096, generator=draw)
        assert subspace_cosine(found, exact) > 0.99
    again = fit_pca_sampled(tokens, sample=4096)
    assert torch.equal(again.components, fit_pca_sampled(tokens, sample=4096).components)
    with pytest.raises(ValueError, match="2 or more"):
        fit_pca_sampled(tokens, sample=1)


def test_a_large_mean_drowns_nothing():
    """Deviations of 1 beside a mean of 1,000, against NumPy in float64."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(5000, 12, generator=generator) * torch.arange(1, 13).float().rsqrt() + 1000
    for accumulate in (torch.float32, torch.float64):
        basis = fit_pca(tokens, accumulate=accumulate)
        theirs = np.linalg.eigvalsh(np.cov(tokens.double().numpy().T))[::-1][:3]
        np.testing.assert_allclose(basis.variance.numpy(), theirs, rtol=1e-4)


def test_the_cosine_of_subspaces_is_scipys():
    from scipy.linalg import subspace_angles

    generator = torch.Generator().manual_seed(0)
    a, b = (fit_pca(torch.randn(500, 9, generator=generator)) for _ in range(2))
    angle = subspace_angles(a.components.double().numpy().T, b.components.double().numpy().T).max()
    assert subspace_cosine(a, b) == pytest.approx(np.cos(angle), abs=1e-6)
    assert subspace_cosine(a, a._replace(components=a.components.flip(0))) == pytest.approx(1)
    with pytest.raises(ValueError, match="cannot compare"):
        subspace_cosine(a, fit_pca(torch.randn(50, 8, generator=generator)))


def spectrum(count: int, channels: int, seed: int = 0) -> torch.Tensor:
    """Tokens with variances that fall by a fifth from one direction to the next, as features' do, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    return torch.randn(count, channels, generator=generator) * 0.8 ** torch.arange(channels) @ axes + 5


def test_a_warm_start_meets_scikit_learn_and_keeps_the_colours() -> None:
    x = spectrum(3000, 48)
    near = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    before = fit_pca(x)
    warm = refit_pca(near, before)
    reference = PCA(3, svd_solver="covariance_eigh").fit(near.double().numpy())
    overlap = np.linalg.svd(warm.components.double().numpy() @ reference.components_.T, compute_uv=False)
    assert overlap.min() > 0.9999
    assert warm.total_variance == pytest.approx(near.double().var(dim=0).sum().item(), rel=1e-5)
    assert warm.variance.sum().item() == pytest.approx(reference.explained_variance_.sum(), rel=1e-4)
    assert (warm.components * before.components).sum(dim=1).min() > 0.99, "the same colours as before"


def test_a_start_from_nowhere_gets_there_with_more_rounds() -> None:
    x, exact = spectrum(2000, 40), fit_pca(spectrum(2000, 40))
    start = fit_pca(tokens(200, 40, seed=9))
    cosines = [subspace_cosine(refit_pca(x, start, rounds=rounds), exact) for rounds in (1, 3, 20)]
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] > 0.99999


def test_a_warm_start_takes_edges_and_refuses_what_it_cannot() -> None:
    start = fit_pca(tokens(50, 3))
    assert refit_pca(tokens(2, 3), start).components.shape == (3, 3)
    assert refit_pca(torch.ones(9, 3), start).variance.tolist() == [0, 0, 0]
    assert refit_pca(tokens(50, 3).bfloat16(), start).components.dtype == torch.float32
    with pytest.raises(ValueError, match=r"tokens \[N, 3\]"):
        refit_pca(tokens(50, 4), start)
    with pytest.raises(ValueError, match="NaN"):
        refit_pca(torch.full((9, 3), torch.nan), start)


def test_any_three_components_are_those_of_scikit_learn() -> None:
    x = spectrum(400, 20)
    basis = choose(fit_pca(x, 7), [6, 4, 5])
    reference = PCA(7, svd_solver="full").fit(x.double().numpy())
    for mine, which in zip(basis.components.double().numpy(), (6, 4, 5), strict=True):
        assert abs(mine @ reference.components_[which]) > 1 - 1e-4
    np.testing.assert_allclose(explained(basis), reference.explained_variance_ratio_[[6, 4, 5]], rtol=1e-3)
    for wrong in ([], [0, 0, 1], [0, 1, 7], [-1, 0, 1]):
        with pytest.raises(ValueError, match="0 to 6"):
            choose(fit_pca(x, 7), wrong)


def test_drift_is_the_largest_principal_angle() -> None:
    from scipy.linalg import subspace_angles

    bases = [fit_pca(spectrum(300, 12, seed=seed)) for seed in range(3)]
    theirs = [np.degrees(subspace_angles(a.components.T, b.components.T).max()) for a, b in itertools.pairwise(bases)]
    np.testing.assert_allclose(basis_drift(bases), theirs, atol=1e-2)
    assert basis_drift([bases[0], bases[0]])[0] < 0.1
    assert basis_drift(bases[:1]) == []
    assert explained(fit_pca(torch.ones(4, 3))) == [0, 0, 0]
