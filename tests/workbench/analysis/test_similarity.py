"""Cosine maps against numpy in float64; the 8-bit rows against their error bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.analysis.similarity import (
    UnitPatches,
    dequantize_rows,
    quantize_rows,
    similarity,
    top_matches,
    unit,
)


def patches(seed: int = 0, shape: tuple[int, ...] = (3, 4, 6, 16)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("query", [(0, 0, 0), (2, 3, 5), (1, 0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_numpy_in_float64(query: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = patches().to(dtype)
    rows = x.double().numpy()
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    np.testing.assert_allclose(similarity(x, query).numpy(), rows @ rows[query], atol=1e-6)


def test_query_itself_is_one_and_a_zero_patch_is_nothing() -> None:
    x = patches()
    x[1, 1, 1] = 0
    cosines = similarity(x, (0, 2, 3))
    assert cosines[0, 2, 3].item() == pytest.approx(1.0, abs=1e-6)
    assert cosines[1, 1, 1] == 0
    assert torch.equal(similarity(x, (1, 1, 1)), torch.zeros(3, 4, 6))
    assert cosines.abs().max() <= 1


def test_unit_rows_have_length_one() -> None:
    assert torch.allclose(unit(1e4 * patches()).norm(dim=-1), torch.ones(3, 4, 6))


@pytest.mark.parametrize("query", [(3, 0, 0), (0, 4, 0), (0, 0, 6), (-1, 0, 0), (0, 0)])
def test_a_query_outside_is_told(query) -> None:
    with pytest.raises(ValueError, match=r"\(3, 4, 6\)"):
        similarity(patches(), query)


def test_wrong_shape_is_told() -> None:
    with pytest.raises(ValueError, match="B, H, W, D"):
        similarity(torch.ones(4, 4, 8), (0, 0, 0))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=5, max_size=5),
        min_size=1,
        max_size=6,
    )
)
def test_quantised_rows_come_back_within_half_a_step(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float32)
    quantized, scale = quantize_rows(x)
    assert quantized.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert quantized.min() >= -127
    error = (dequantize_rows(quantized, scale) - x).abs()
    assert (error <= scale.unsqueeze(-1) * 0.5001 + 1e-30).all()


def test_quantised_cosine_maps_stay_within_one_hundredth() -> None:
    x = patches(shape=(2, 8, 8, 96))
    restored = dequantize_rows(*quantize_rows(x))
    assert (similarity(restored, (0, 3, 3)) - similarity(x, (0, 3, 3))).abs().max() < 1e-2


def test_zero_rows_quantise_to_zero_and_nan_is_told() -> None:
    quantized, scale = quantize_rows(torch.zeros(2, 3))
    assert torch.equal(dequantize_rows(quantized, scale), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="finite"):
        quantize_rows(torch.tensor([[1.0, float("nan")]]))


def test_kept_units_give_the_same_maps():
    patches = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(0))
    patches[1, 2, 4] = 0
    units = UnitPatches(patches.bfloat16())
    for query in ((0, 0, 0), (1, 2, 3), (1, 2, 4)):
        torch.testing.assert_close(units.map(query), similarity(patches.bfloat16(), query), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="not a patch"):
        units.map((0, 3, 0))
    with pytest.raises(ValueError, match=r"patches \[B, H, W, D\]"):
        UnitPatches(patches[0])


@pytest.mark.parametrize("exclude", [0.0, 1.0, 1.5, 3.0])
def test_top_matches_are_numpys_without_the_neighbourhood(exclude: float) -> None:
    x, query = patches(), (1, 2, 3)
    rows = x.double().numpy()
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    cosines = rows @ rows[query]
    for row, column in np.ndindex(4, 6):
        if np.hypot(row - 2, column - 3) <= exclude:
            cosines[1, row, column] = -np.inf
    expected = np.dstack(np.unravel_index(np.argsort(-cosines, axis=None)[:9], cosines.shape))[0].tolist()
    found = top_matches(x, query, 9, exclude=exclude)
    assert [[match.image, match.row, match.column] for match in found] == expected
    for match in found:
        assert match.cosine == pytest.approx(cosines[match[:3]], abs=1e-6)


def test_top_matches_of_little_and_of_nothing() -> None:
    one = patches(shape=(1, 2, 2, 4))
    assert len(top_matches(one, (0, 0, 0), 9)) == 3
    assert top_matches(one, (0, 0, 0), exclude=5) == []
    assert top_matches(one[:, :1, :1], (0, 0, 0)) == []
    with pytest.raises(ValueError, match="1 or more"):
        top_matches(one, (0, 0, 0), 0)
    with pytest.raises(ValueError, match="NaN"):
        top_matches(torch.full((1, 2, 2, 4), torch.nan), (0, 0, 0))
