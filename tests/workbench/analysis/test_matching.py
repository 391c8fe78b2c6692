"""Nearest neighbours between two images, against NumPy in float64 and on images whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.analysis import matching
from workbench.analysis.matching import dense_match, mutual_matches
from workbench.analysis.position import positional_subspace


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_hand(first: torch.Tensor, second: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = (x.double().flatten(0, 1).numpy() for x in (first, second))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    cosines = a @ b.T
    forward, backward = cosines.argmax(axis=1), cosines.argmax(axis=0)
    return forward, cosines.max(axis=1), backward[forward] == np.arange(len(a))


@pytest.mark.parametrize("shapes", [((4, 7, 16), (5, 3, 16)), ((1, 1, 4), (2, 9, 4)), ((6, 6, 8), (6, 6, 8))])
@pytest.mark.parametrize("at_once", [7, 10**9])
def test_it_is_the_nearest_neighbour(shapes, at_once, monkeypatch):
    monkeypatch.setattr(matching, "_COSINES_AT_ONCE", at_once)
    first, second = draw(*shapes[0]), draw(*shapes[1], seed=1)
    found = dense_match(first, second)
    forward, cosine, mutual = by_hand(first, second)
    width = shapes[1][1]
    assert (found.target[..., 0] * width + found.target[..., 1]).flatten().tolist() == forward.tolist()
    np.testing.assert_allclose(found.cosine.flatten().numpy(), cosine, atol=1e-6)
    assert found.mutual.flatten().tolist() == mutual.tolist()


def test_a_moved_picture_is_found_where_it_went():
    picture = draw(9, 12, 32)
    moved = draw(9, 12, 32, seed=1)
    moved[2:, 3:] = picture[:7, :9]
    pairs = mutual_matches(picture, moved)
    inside = (pairs.first[:, 0] < 7) & (pairs.first[:, 1] < 9)
    assert (pairs.second - pairs.first)[inside].unique(dim=0).tolist() == [[2, 3]]
    assert inside.sum() == 63
    assert torch.equal(pairs.cosine, pairs.cosine.sort(descending=True).values)
    assert len(mutual_matches(picture, moved, most=5).cosine) == 5
    mask = torch.zeros(9, 12, dtype=torch.bool)
    mask[0, 0] = True
    assert mutual_matches(picture, moved, mask=mask).first.tolist() == [[0, 0]]
    assert len(mutual_matches(picture, moved, mask=torch.zeros_like(mask)).cosine) == 0


def test_a_code_of_position_holds_patches_in_place_until_it_is_taken_out():
    content, code = draw(6, 10, 64), 6 * draw(6, 10, 3, seed=1) @ draw(3, 64, seed=2) / 8
    other = content.flip(1)
    first, second = content + code, other + code
    noise = code + 0.1 * draw(8, 6, 10, 64, seed=3)
    biased = dense_match(first, second)
    freed = dense_match(first, second, code=positional_subspace(noise, 3))
    mirrored = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(9, -1, -1), indexing="ij"), dim=-1)
    right = lambda found: (found.target == mirrored).all(dim=-1).float().mean().item()  # noqa: E731
    assert right(freed) > 0.95
    assert right(biased) < 0.5


def test_half_precision_and_constant_features():
    first = draw(3, 4, 16)
    assert torch.equal(dense_match(first.bfloat16(), first.bfloat16()).target, dense_match(first, first).target)
    flat = dense_match(torch.ones(3, 4, 8), torch.ones(2, 5, 8))
    assert flat.target.unique().tolist() == [0], "of equals the first"
    assert flat.cosine.allclose(torch.ones(3, 4))


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.ones(3, 4), torch.ones(3, 4, 5), "same channels"),
        (torch.ones(3, 4, 5), torch.ones(3, 4, 6), "same channels"),
        (torch.ones(3, 4, 5), torch.ones(0, 4, 5), "same channels"),
        (torch.full((3, 4, 5), torch.nan), torch.ones(3, 4, 5), "finite"),
    ],
)
def test_mistakes_are_told(first, second, words):
    with pytest.raises(ValueError, match=words):
        dense_match(first, second)
    with pytest.raises(ValueError, match="grid"):
        mutual_matches(torch.ones(3, 4, 5), torch.ones(3, 4, 5), mask=torch.ones(4, 3, dtype=torch.bool))
