"""Gram matrices against numpy in float64, and the invariances that make them worth comparing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.analysis.gram import (
    gram_difference,
    gram_distance,
    gram_distances,
    gram_matrix,
    gram_order,
    gram_rows,
)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("normalize", [True, False])
def test_equals_numpy_in_float64(normalize: bool) -> None:
    x = tokens(2, 7, 5)
    rows = x.double().numpy()
    if normalize:
        rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    expected = np.einsum("bid,bjd->bij", rows, rows)
    np.testing.assert_allclose(gram_matrix(x, normalize=normalize).numpy(), expected, atol=1e-5)


def test_normalised_has_a_unit_diagonal_and_zero_tokens_do_not_divide_by_zero() -> None:
    x = tokens(1, 4, 3)
    x[0, 2] = 0
    gram = gram_matrix(x)
    assert torch.allclose(gram.diagonal(dim1=1, dim2=2), torch.tensor([[1.0, 1.0, 0.0, 1.0]]), atol=1e-6)
    assert torch.isfinite(gram).all()


def test_half_precision_and_autocast_compute_in_float32() -> None:
    x = tokens(1, 6, 64)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = gram_matrix(x)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, gram_matrix(x))
    assert gram_matrix(x.half()).dtype == torch.float32
    assert gram_matrix(x.double()).dtype == torch.float64


def test_distance_ignores_rotations_and_sees_changed_geometry() -> None:
    x = tokens(3, 9, 8)
    rotation = torch.linalg.qr(tokens(8, 8, seed=1)).Q
    assert gram_distance(x, x @ rotation).max() < 1e-12
    assert gram_distance(x, 7 * x).max() < 1e-12
    collapsed = x.mean(dim=1, keepdim=True).expand_as(x)
    assert gram_distance(x, collapsed).min() > 0.1


def test_distance_of_opposite_geometries_is_the_largest() -> None:
    same = torch.ones(1, 2, 1)
    opposite = torch.tensor([[[1.0], [-1.0]]])
    assert gram_distance(same, opposite).item() == pytest.approx(2.0)  # 4 off the diagonal, 0 on it


def test_distance_allows_other_channel_counts_but_not_other_grids() -> None:
    assert gram_distance(tokens(2, 4, 3), tokens(2, 4, 6)).shape == (2,)
    with pytest.raises(ValueError, match="resize"):
        gram_distance(tokens(2, 4, 3), tokens(2, 9, 3))


def test_gradient_reaches_the_tokens() -> None:
    x = tokens(1, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(gram_matrix, (x,))


def test_refuses_a_grid() -> None:
    with pytest.raises(ValueError, match=r"flatten\(1, 2\)"):
        gram_matrix(tokens(1, 2, 2, 4))


def test_rows_and_differences_are_those_of_the_matrices() -> None:
    x, y = tokens(2, 12, 5), tokens(2, 12, 8, seed=1)
    for normalize in (True, False):
        matrix = gram_matrix(x, normalize=normalize)
        torch.testing.assert_close(gram_rows(x[1], [3, 0, 11], normalize=normalize), matrix[1, [3, 0, 11]])
    assert gram_rows(x[0].bfloat16(), torch.tensor([2])).dtype == torch.float32
    assert gram_rows(x[0], []).shape == (0, 12)
    rows = [part.double().numpy() / np.linalg.norm(part.double().numpy(), axis=-1, keepdims=True) for part in (x, y)]
    expected = rows[0] @ rows[0].transpose(0, 2, 1) - rows[1] @ rows[1].transpose(0, 2, 1)
    np.testing.assert_allclose(gram_difference(x, y), expected, atol=1e-6)
    for wrong in ([12], [-1]):
        with pytest.raises(ValueError, match="N - 1"):
            gram_rows(x[0], wrong)


@pytest.mark.parametrize("rows", [1, 5, 1024])
def test_distances_in_blocks_are_the_distances(rows: int) -> None:
    anchor, steps = tokens(3, 11, 6), [tokens(3, 11, 8, seed=seed) for seed in (1, 2)]
    found = gram_distances([anchor, *steps], anchor, rows=rows)
    assert found.shape == (3, 3)
    assert found[0].max() < 1e-10
    for mine, step in zip(found[1:], steps, strict=True):
        torch.testing.assert_close(mine, gram_distance(step, anchor))
    assert gram_distances([], anchor).shape == (0, 3)
    with pytest.raises(ValueError, match="resize"):
        gram_distances([tokens(3, 12, 6)], anchor)


def groups(size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [3 * size, 16] of three kinds in turn, and the kind of each."""
    kinds = torch.arange(3 * size) % 3
    return torch.linalg.qr(tokens(16, 3)).Q.T[kinds] * 4 + 0.2 * tokens(3 * size, 16, seed=1), kinds


def test_orders_are_permutations_and_put_alike_tokens_together() -> None:
    x, kinds = groups()
    for order in ("raster", "alike", "cluster"):
        places, _ = gram_order(x, order, clusters=3, generator=torch.Generator().manual_seed(0))
        assert sorted(places.tolist()) == list(range(21))
    places, labels = gram_order(x, "cluster", clusters=3, generator=torch.Generator().manual_seed(0))
    assert (kinds[places].diff() != 0).sum() == 2, "three kinds, two borders"
    assert labels[places].tolist() == sorted(labels.tolist())
    assert gram_order(x, "raster")[0].tolist() == list(range(21))


def test_alike_is_the_order_along_scikit_learns_component() -> None:
    from sklearn.decomposition import PCA

    x = tokens(30, 9, seed=4)
    units = x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
    theirs = PCA(1, svd_solver="full").fit_transform(units)[:, 0].argsort().tolist()
    ours = gram_order(x, "alike")[0].tolist()
    assert ours in (theirs, theirs[::-1])


def test_an_order_refuses_what_it_cannot() -> None:
    with pytest.raises(ValueError, match="raster, alike, cluster"):
        gram_order(tokens(4, 2), "random")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="generator"):
        gram_order(tokens(4, 2), "cluster")
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        gram_order(tokens(1, 4, 2), "alike")
    assert gram_order(torch.ones(5, 3), "alike")[0].shape == (5,)
    assert gram_order(tokens(2, 3), "cluster", generator=torch.Generator().manual_seed(0))[0].shape == (2,)
