"""Gram matrices against numpy in float64, and the invariances that make them worth comparing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.analysis.gram import gram_distance, gram_matrix


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
