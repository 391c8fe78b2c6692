"""Properties of the rotary embedding, and its angles against the formula written as loops."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.backbones.rope import RopePositionEmbedding, Rotation, patch_coordinates, rotate


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rotation_keeps_norms() -> None:
    rotation = RopePositionEmbedding(32)((5, 3), prefix=2)
    x = torch.randn(4, 17, 32, generator=generator())
    torch.testing.assert_close(rotate(x, rotation).norm(dim=-1), x.norm(dim=-1))


def test_prefix_tokens_are_not_rotated() -> None:
    x = torch.randn(1, 3 + 6, 16, generator=generator())
    rotated = rotate(x, RopePositionEmbedding(16)((2, 3), prefix=3))
    assert torch.equal(rotated[:, :3], x[:, :3])
    assert (rotated[:, 3:] - x[:, 3:]).abs().amax(dim=-1).min() > 1e-3


def test_scores_depend_on_the_offset_between_patches_only() -> None:
    """<R(a) q, R(a + d) k> is the same for every a: the relative-position property."""
    height, width = 6, 4
    rotation = RopePositionEmbedding(32)((height, width))
    query, key = torch.randn(2, 32, generator=generator())
    queries = rotate(query.expand(height * width, 32), Rotation(rotation.cos[0], rotation.sin[0]))
    keys = rotate(key.expand(height * width, 32), Rotation(rotation.cos[0], rotation.sin[0]))
    scores = (queries @ keys.T).view(height, width, height, width)
    for down in range(height):
        for right in range(width):
            same = [scores[i, j, i + down, j + right] for i in range(height - down) for j in range(width - right)]
            torch.testing.assert_close(torch.stack(same), same[0].expand(len(same)), atol=1e-4, rtol=0)
    assert scores.std() > 0.1


@pytest.mark.parametrize("coords", ["separate", "min", "max"])
def test_angles_follow_the_formula(coords: str) -> None:
    """float64 loops: angle = 2 pi c / base^(4 j / D), rows in the first quarter, columns in the second, then again."""
    height, width, dim, base = 3, 5, 16, 100.0
    rotation = RopePositionEmbedding(dim, base=base, coords=coords)((height, width))
    over = {"separate": (height, width), "min": (3, 3), "max": (5, 5)}[coords]
    for i in range(height):
        for j in range(width):
            centre = (2 * (i + 0.5) / over[0] - 1, 2 * (j + 0.5) / over[1] - 1)
            angles = [2 * math.pi * c / base ** (4 * k / dim) for c in centre for k in range(dim // 4)]
            cos = torch.tensor([math.cos(a) for a in angles] * 2)
            sin = torch.tensor([-math.sin(a) for a in angles] + [math.sin(a) for a in angles])
            torch.testing.assert_close(rotation.cos[0, i * width + j], cos, atol=2e-6, rtol=0)
            torch.testing.assert_close(rotation.sin[0, i * width + j], sin, atol=2e-6, rtol=0)


def test_row_zero_is_the_top_and_column_zero_the_left() -> None:
    coordinates = patch_coordinates((2, 4), "separate", "cpu")
    assert coordinates[0, :, 0].tolist() == [-0.5] * 4
    assert coordinates[:, 0, 1].tolist() == [-0.75] * 2
    assert coordinates[1, 3].tolist() == [0.5, 0.75]


def test_augmentation_is_for_training_only() -> None:
    rope = RopePositionEmbedding(16, rescale=2.0)
    plain = RopePositionEmbedding(16)((3, 3))
    rope.eval()
    assert torch.equal(rope((3, 3), generator=generator()).cos, plain.cos)
    rope.train()
    assert not torch.equal(rope((3, 3), generator=generator()).cos, plain.cos)


def test_each_draw_is_another_augmentation_and_a_seed_repeats_it() -> None:
    rope = RopePositionEmbedding(16, shift=0.3, jitter=1.5, rescale=2.0)
    first, again = (rope((2, 3), draws=4, generator=generator(5)).cos for _ in range(2))
    assert first.shape == (4, 6, 16)
    assert torch.equal(first, again)
    assert min((first[a] - first[b]).abs().max().item() for a in range(4) for b in range(a)) > 1e-3


@pytest.mark.parametrize(
    ("setting", "low", "high"),
    [({"rescale": 2.0}, 0.5, 2.0), ({"jitter": 1.5}, 1 / 1.5, 1.5)],
    ids=["rescale", "jitter"],
)
def test_scales_are_log_uniform_within_bounds(setting: dict[str, float], low: float, high: float) -> None:
    rope = RopePositionEmbedding(16, **setting)
    before = patch_coordinates((2, 2), "separate", "cpu")[None]
    scale = rope._augment(before, 4000, generator())[:, 0, 0] / before[:, 0, 0]
    assert scale.min() >= low - 1e-6
    assert scale.max() <= high + 1e-6
    assert scale.log().mean().abs() < 0.03 * math.log(high) + 0.01
    assert scale.log().std() == pytest.approx(math.log(high) / math.sqrt(3), rel=0.05)
    same_on_both_axes = torch.allclose(scale[:, 0], scale[:, 1])
    assert same_on_both_axes == ("rescale" in setting)


def test_shift_moves_all_patches_alike() -> None:
    rope = RopePositionEmbedding(16, shift=0.25)
    before = patch_coordinates((3, 2), "separate", "cpu")[None]
    moved = rope._augment(before, 1000, generator()) - before
    assert moved.abs().max() <= 0.25 + 1e-6
    assert moved.abs().max() > 0.24
    torch.testing.assert_close(moved, moved[:, :1, :1].expand_as(moved), atol=1e-6, rtol=0)


def test_augmentation_without_a_generator_says_what_to_set() -> None:
    with pytest.raises(ValueError, match=r"model\.generator"):
        RopePositionEmbedding(16, rescale=2.0)((2, 2))


def test_rotation_is_computed_in_float32_for_half_precision_input() -> None:
    rotation = RopePositionEmbedding(32)((4, 4))
    x = torch.randn(16, 32, generator=generator()).bfloat16()
    assert rotate(x, rotation).dtype == torch.bfloat16
    torch.testing.assert_close(rotate(x, rotation), rotate(x.float(), rotation).bfloat16())
