"""DSE against numpy and scikit-learn in float64, on features whose answer is known, and the choice of checkpoints."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from workbench.analysis.dse import (
    DSEParts,
    Structure,
    choose_checkpoints,
    dse,
    dse_parts,
    dse_scores,
    find_structure,
)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_clusters(images: int, grid: tuple[int, int], channels: int = 16, noise: float = 0.3) -> Tensor:
    """[B, H, W, D] of three kinds of patches, the same in all images."""
    kinds = torch.arange(grid[0] * grid[1]).remainder(3).view(grid)
    return tokens(3, channels, seed=5)[kinds] + noise * tokens(images, *grid, channels)


def numpy_parts(patches: Tensor, structure: Structure) -> list[float]:
    """DSE's parts by loops in float64, with the clusters given."""
    x = patches.double().flatten(1, -2).numpy()
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    images, count, channels = x.shape
    spread = np.linalg.norm(x - x.reshape(-1, channels).mean(0), axis=-1).mean()
    away, group_rooms, image_rooms, ranks = [], [], [], []
    for number, labels in enumerate(structure.groups):
        flat, labels = x[8 * number : 8 * number + 8].reshape(-1, channels), labels.flatten().numpy()
        centres = {label: flat[labels == label].mean(0) for label in set(labels)}
        for token, own in zip(flat, labels, strict=True):
            others = [np.linalg.norm(token - centre) for label, centre in centres.items() if label != own]
            away.append(min(others, default=0.0))
        group_rooms += [room(flat[labels == label]) for label in centres if (labels == label).sum() > 1]
    for image, labels in zip(x, structure.images.numpy(), strict=True):
        image_rooms += [room(image[labels == label]) for label in set(labels) if (labels == label).sum() > 1]
    order = structure.order.numpy()
    for place in range(count):
        singular = np.linalg.svd(np.stack([x[b, order[b, place]] for b in range(images)]), compute_uv=False)
        shares = singular[singular > 1e-14] / singular.sum()
        ranks.append(math.exp(-(shares * np.log(shares)).sum()) / min(images, channels))
    means = [float(np.mean(values)) if values else 0.0 for values in (away, group_rooms, image_rooms)]
    return [means[0] / spread, (means[1] + means[2]) / 2 / spread, float(np.mean(ranks))]


def room(cluster: np.ndarray) -> float:
    centred = cluster - cluster.mean(0)
    return np.linalg.norm(centred, ord="nuc") / math.sqrt(max(len(cluster) - 1, cluster.shape[1]))


def seeded(patches: Tensor, seed: int = 0) -> Structure:
    return find_structure(patches, torch.Generator().manual_seed(seed))


def values(parts: DSEParts) -> list[float]:
    return [float(part) for part in parts]


@pytest.mark.parametrize(
    ("images", "grid", "channels"),
    [(16, (6, 6), 12), (11, (3, 5), 20), (3, (4, 2), 7), (1, (5, 7), 9), (9, (1, 1), 4)],
)
def test_equals_loops_in_float64(images: int, grid: tuple[int, int], channels: int) -> None:
    patches = tokens(images, *grid, channels, seed=images)
    structure = seeded(patches)
    assert values(dse_parts(patches, structure)) == pytest.approx(numpy_parts(patches, structure), rel=2e-5)
    assert values(dse(patches)) == pytest.approx(numpy_parts(patches, structure), rel=2e-5)


def test_with_the_clusters_of_scikit_learn_it_is_nearly_the_same() -> None:
    patches = in_clusters(16, (6, 6), noise=0.6)
    x = torch.nn.functional.normalize(patches.flatten(1, 2), dim=-1)
    images = torch.stack([torch.from_numpy(KMeans(3, n_init=10, random_state=0).fit(one).labels_).long() for one in x])
    groups = [
        torch.from_numpy(KMeans(24, n_init=10, random_state=0).fit(group.flatten(0, 1)).labels_).long().view(8, -1)
        for group in x.split(8)
    ]
    theirs = numpy_parts(patches, Structure(images, tuple(groups), seeded(patches).order))
    assert values(dse(patches)) == pytest.approx(theirs, rel=0.05)


def test_the_clusters_are_found_in_images_and_in_groups_of_eight() -> None:
    patches = tokens(19, 2, 5, 6)
    structure = seeded(patches)
    assert [group.shape for group in structure.groups] == [(8, 10), (8, 10), (3, 10)]
    assert [int(group.max()) for group in structure.groups] == [23, 23, 23]
    assert structure.images.shape == (19, 10)
    assert structure.images.max() == 2
    assert structure.order.sort(1).values.tolist() == [list(range(10))] * 19
    assert torch.equal(structure.images, seeded(3 * patches).images), "only directions count"


def test_constant_patches_take_no_room_and_use_one_direction() -> None:
    parts = dse(torch.ones(5, 3, 4, 6))
    assert values(parts) == pytest.approx([0, 0, 1 / 5], abs=1e-5)


def test_images_of_one_patch_each_have_tight_clusters_that_lie_apart() -> None:
    patches = torch.eye(8)[:, None, None].expand(8, 3, 4, 8)  # each image one direction of its own
    inter, intra, dim = values(dse(patches))
    spread = math.sqrt(7 / 8)
    assert inter == pytest.approx(math.sqrt(2) / spread, rel=1e-5)
    assert intra == pytest.approx(0, abs=1e-5)
    assert dim == pytest.approx(1, rel=1e-5), "eight images, eight directions"


def test_perfect_clusters_beat_noise_in_separation() -> None:
    """24 kinds of patches, three an image, as the estimator supposes."""
    kinds = torch.eye(24).view(8, 3, 24)[:, torch.arange(12).remainder(3)].view(8, 3, 4, 24)
    perfect, loose = dse(kinds), dse(kinds + 0.3 * tokens(8, 3, 4, 24))
    assert values(perfect)[:2] == pytest.approx([math.sqrt(2) / math.sqrt(23 / 24), 0], abs=1e-5)
    assert perfect.separation > loose.separation + 0.2
    assert perfect.separation > dse(tokens(8, 3, 4, 24)).separation + 0.5


def test_dim_falls_when_all_tokens_share_a_direction() -> None:
    patches = tokens(16, 4, 4, 12)
    assert dse(patches + 10).dim < 0.6 * dse(patches).dim


def test_bf16_is_computed_in_float32_and_the_seed_decides() -> None:
    patches = in_clusters(10, (3, 5)).bfloat16()
    parts = dse(patches)
    assert parts.inter.dtype == torch.float32
    assert values(parts) == values(dse(patches.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert values(dse(patches)) == pytest.approx(values(parts), rel=1e-6)
    assert values(dse(patches)) == values(dse(patches, seed=0)) != values(dse(patches, seed=1))
    assert values(dse(patches.flatten(1, 2))) == values(parts)


def test_a_zero_token_is_no_error() -> None:
    patches = tokens(8, 2, 3, 6)
    patches[2, 0, 1] = 0
    assert all(math.isfinite(value) for value in values(dse(patches)))


@pytest.mark.parametrize("shape", [(4, 6), (0, 2, 3, 5), (1, 1, 1, 1, 4)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"DSE got patches \["):
        dse(torch.zeros(shape))


# ---- the scores of checkpoints


def made_up(separation: list[float], dim: list[float]) -> list[DSEParts]:
    return [
        DSEParts(torch.tensor(a + 2.0), torch.tensor(2.0), torch.tensor(b))
        for a, b in zip(separation, dim, strict=True)
    ]


def test_lambda_is_the_ratio_of_standard_deviations() -> None:
    separation, dim = [0.1, -0.2, 0.4, 0.3], [0.80, 0.85, 0.90, 0.70]
    scores = dse_scores(made_up(separation, dim))
    assert scores.dim_weight == pytest.approx(np.std(separation) / np.std(dim), rel=1e-4)
    assert scores.values == pytest.approx(np.array(separation) + scores.dim_weight * np.array(dim), rel=1e-4)
    assert scores.dim_weight != pytest.approx(dse_scores(made_up(separation[:3], dim[:3])).dim_weight, rel=0.01)


def test_lambda_is_one_where_no_spread_is_known() -> None:
    assert dse_scores([]).values == []
    assert dse_scores(made_up([0.5], [0.25])).values == pytest.approx([0.75])
    assert dse_scores(made_up([0.5, 0.7], [0.25, 0.25])).dim_weight == 1


@pytest.mark.parametrize(
    ("curve", "chosen"),
    [
        ([1, 2, 5, 3, 2, 1, 4, 0, 0], [2, 6]),
        ([5, 1, 1, 1, 1, 6, 1, 1, 7, 1, 1, 4], [8, 5, 0]),  # a fourth, 4 at the end, is left out
        ([1, 2, 3, 4], [3]),
        ([4, 3, 5, 1, 1], [2]),
        ([2, 2, 2], [0, 1, 2]),
        ([3], [0]),
        ([], []),
    ],
)
def test_local_maxima_within_two_checkpoints_the_best_three(curve: list[float], chosen: list[int]) -> None:
    assert choose_checkpoints(curve) == chosen


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        choose_checkpoints([1.0, math.nan])
