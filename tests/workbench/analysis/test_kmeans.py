"""k-means against scikit-learn: the same steps from the same seeds, and as good a result from its own."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans

from workbench.analysis.kmeans import cluster_means, kmeans, lloyd


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(x: torch.Tensor, clusters: int, seed: int = 0) -> torch.Tensor:
    return kmeans(x, clusters, generator=torch.Generator().manual_seed(seed))


def inertia(x: torch.Tensor, labels: torch.Tensor, clusters: int) -> float:
    means, _ = cluster_means(x, labels, clusters)
    return (x - means.gather(1, labels[..., None].expand_as(x))).square().sum().item()


@pytest.mark.parametrize("seed", range(4))
def test_the_steps_are_those_of_scikit_learn(seed: int) -> None:
    x = tokens(3, 60, 5, seed=seed).double()
    centres = x[:, :6]
    ours = lloyd(x, centres, iterations=300)
    for one, start, labels in zip(x.numpy(), centres.numpy(), ours, strict=True):
        theirs = KMeans(6, init=start, n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(one)
        assert labels.tolist() == theirs.labels_.tolist()


def test_its_own_seeds_come_close_to_the_best_of_many_starts() -> None:
    x = tokens(4, 90, 8)
    ours = sum(inertia(x[i : i + 1], drawn(x[i : i + 1], 5, seed=i), 5) for i in range(4))
    best = sum(KMeans(5, n_init=20, random_state=0).fit(one.numpy()).inertia_ for one in x)
    at_random = torch.randint(5, (4, 90), generator=torch.Generator().manual_seed(0))
    assert best * 0.999 <= ours < 1.1 * best < inertia(x, at_random, 5)


def test_clusters_that_lie_apart_are_found_in_every_set() -> None:
    truth = torch.arange(3).repeat(7)
    x = torch.stack([torch.eye(4)[truth] * (1 + s) + 0.01 * tokens(21, 4, seed=s) for s in range(5)])
    for labels in drawn(x, 3):
        assert len({(int(a), int(b)) for a, b in zip(labels, truth, strict=True)}) == 3


def test_fewer_different_tokens_than_clusters_leave_some_empty() -> None:
    x = torch.eye(2).repeat(5, 1)[None]
    labels = drawn(x, 7)
    assert labels.unique().numel() == 2
    assert inertia(x, labels, 7) == 0
    assert drawn(torch.ones(1, 9, 3), 4).unique().numel() == 1


def test_more_clusters_than_tokens_put_each_into_its_own() -> None:
    assert drawn(tokens(2, 3, 5), 24).sort(1).values.tolist() == [[0, 1, 2]] * 2


def test_the_generator_decides_and_bf16_is_computed_in_float32() -> None:
    x = tokens(2, 50, 6)
    assert torch.equal(drawn(x, 8), drawn(x, 8))
    assert not torch.equal(drawn(x, 8), drawn(x, 8, seed=1))
    half = x.bfloat16()
    assert torch.equal(drawn(half, 8), drawn(half.float(), 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(drawn(x, 8), drawn(x.clone(), 8))


@pytest.mark.parametrize(("shape", "clusters"), [((4, 5), 2), ((1, 0, 5), 2), ((1, 4, 5), 0)])
def test_nonsense_is_refused(shape: tuple[int, ...], clusters: int) -> None:
    with pytest.raises(ValueError, match="kmeans got tokens"):
        drawn(torch.zeros(shape), clusters)
