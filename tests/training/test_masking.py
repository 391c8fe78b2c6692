"""Block masks: exact counts, shares, blockiness, determinism."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.masking import MaskConfig, block_masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def share_of_equal_neighbours(masks: torch.Tensor) -> float:
    """Mean over masked crops: of the patches right of a masked patch, the share that is masked as well."""
    masked = masks[masks.flatten(1).any(1)]
    pairs = masked[:, :, :-1]
    return float((masked[:, :, 1:] & pairs).sum() / pairs.sum())


@given(
    count=st.integers(0, 24),
    H=st.integers(1, 17),
    W=st.integers(1, 17),
    probability=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    ratio=st.sampled_from([(0.1, 0.5), (0.0, 0.3), (0.25, 0.25), (0.4, 1.0)]),
    roll=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_exact_counts_on_any_grid(
    count: int, H: int, W: int, probability: float, ratio: tuple[float, float], roll: bool, seed: int
) -> None:
    config = MaskConfig(probability=probability, ratio=ratio, roll=roll)
    masks = block_masks(count, (H, W), config, generator(seed))
    assert masks.shape == (count, H, W)
    assert masks.dtype == torch.bool
    n = int(count * probability)
    edges = np.linspace(*ratio, n + 1)
    expected = [int(H * W * edges[i + 1]) for i in range(n)] + [0] * (count - n)
    assert sorted(masks.flatten(1).sum(1).tolist()) == sorted(expected)


@given(H=st.integers(2, 16), W=st.integers(2, 16), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_dinov2_masks_stay_below_the_upper_edges_and_are_whole_blocks(H: int, W: int, seed: int) -> None:
    masks = block_masks(8, (H, W), MaskConfig(exact=False), generator(seed))
    counts = sorted(masks.flatten(1).sum(1).tolist())
    edges = np.linspace(0.1, 0.5, 5)
    assert counts[:4] == [0, 0, 0, 0] or min(H, W) < 5
    assert all(c <= int(H * W * edge) for c, edge in zip(counts[4:], edges[1:], strict=True))


def test_half_of_the_crops_are_masked_in_random_places() -> None:
    places = torch.zeros(64)
    for seed in range(40):
        masks = block_masks(64, (6, 6), MaskConfig(), generator(seed))
        masked = masks.flatten(1).any(1)
        assert int(masked.sum()) == 32
        places += masked
    assert places.min() > 5
    assert places.max() < 35


def test_no_patch_of_the_grid_is_left_out() -> None:
    masks = block_masks(400, (9, 14), MaskConfig(), generator())
    often = masks.float().mean(0)
    assert often.min() > 0.005  # the corners are the rarest
    assert often.max() < 0.3


@pytest.mark.parametrize("exact", [True, False])
def test_masks_are_blocks_not_single_patches(exact: bool) -> None:
    blocks = block_masks(200, (14, 14), MaskConfig(exact=exact), generator())
    shuffled = blocks.flatten(1)
    order = torch.rand(shuffled.shape, generator=generator(1)).argsort(1)
    scattered = shuffled.gather(1, order).view_as(blocks)
    assert share_of_equal_neighbours(blocks) > share_of_equal_neighbours(scattered) + 0.25


def test_one_draw_from_the_generator_decides_everything() -> None:
    a, b = generator(5), generator(5)
    first = block_masks(8, (6, 9), MaskConfig(), a)
    assert torch.equal(first, block_masks(8, (6, 9), MaskConfig(), b))
    assert not torch.equal(first, block_masks(8, (6, 9), MaskConfig(), a))
    block_masks(50, (3, 3), MaskConfig(exact=False), b)
    assert torch.equal(a.get_state(), b.get_state())


def test_rolling_moves_masks_over_the_border() -> None:
    config = MaskConfig(probability=1.0, ratio=(0.2, 0.2), exact=False)
    straight = block_masks(100, (8, 8), config, generator())
    rolled = block_masks(100, (8, 8), replace(config, roll=True), generator())

    def wrapped(masks: torch.Tensor) -> int:
        rows = masks.any(2)
        return int((rows[:, 0] & rows[:, -1] & ~rows.all(1)).sum())

    assert wrapped(rolled) > wrapped(straight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskConfig(probability=1.5), "probability is 1.5"),
        (lambda: MaskConfig(ratio=(0.5, 0.1)), r"ratio is \(0.5, 0.1\)"),
        (lambda: MaskConfig(min_aspect=0), "min_aspect is 0"),
        (lambda: MaskConfig(min_patches=0), "min_patches is 0"),
        (lambda: block_masks(-1, (3, 3), MaskConfig(), generator()), "-1 crops"),
        (lambda: block_masks(2, (0, 3), MaskConfig(), generator()), "grid 0 x 3"),
    ],
)
def test_mistakes_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
