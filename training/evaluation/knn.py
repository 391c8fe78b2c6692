"""k-NN accuracy of frozen features: of whole images by their class token, and of single patches by their own token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.analysis.health.bootstrap import Weighted, mean_over_images, value_of
from workbench.analysis.neighbours import knn_classify

AMBIGUOUS = -1
"""Label of a patch that no class fills well enough."""


class Voting(NamedTuple):
    """How neighbours vote."""

    k: int
    """How many; all of them when the bank is smaller."""
    temperature: float
    """A vote weighs exp(cosine / temperature)."""
    classes: int
    """Number of class indices, background 0 included."""


class PatchSample(NamedTuple):
    """Chosen patches of a stack of images."""

    index: Tensor
    """int64 [S], positions in the flattened grid I * H * W."""
    labels: Tensor
    """int64 [S], class of each."""


def class_fractions(classes: Tensor, patch_size: int, count: int) -> Tensor:
    """Share of each class in each patch: [I, H, W, count], from class indices int64 [I, h, w]; shares sum to 1."""
    images, height, width = classes.shape
    grid = classes.reshape(images, height // patch_size, patch_size, width // patch_size, patch_size)
    pixels = grid.permute(0, 1, 3, 2, 4).flatten(3)
    totals = torch.zeros(*pixels.shape[:3], count)
    totals.scatter_add_(3, pixels, torch.ones(1).expand(pixels.shape))
    return totals / patch_size**2


def patch_labels(fractions: Tensor, purity: float = 0.75) -> Tensor:
    """Majority class of each patch, int64 [I, H, W], from `fractions` [I, H, W, C]; AMBIGUOUS below `purity`."""
    share, label = fractions.max(dim=-1)
    return torch.where(share >= purity, label, AMBIGUOUS)


def at_boundary(fractions: Tensor) -> Tensor:
    """Which patches touch another class: bool [I, H, W], from `fractions` [I, H, W, C].

    A patch touches when one of its 4-neighbours has another majority class. There dense features that have lost their
    place fail first: a neighbour's content, or that of the whole image, names the wrong class.
    """
    label = fractions.argmax(dim=-1)
    touches = torch.zeros_like(label, dtype=torch.bool)
    below, right = label[:, 1:] != label[:, :-1], label[:, :, 1:] != label[:, :, :-1]
    touches[:, 1:] |= below
    touches[:, :-1] |= below
    touches[:, :, 1:] |= right
    touches[:, :, :-1] |= right
    return touches


def balanced_sample(labels: Tensor, per_class: int, classes: int, generator: torch.Generator) -> PatchSample:
    """Up to `per_class` patches of each foreground class 1..classes-1 of `labels` [I, H, W], without replacement.

    The background is left out: it is most of an image and the easiest class. Classes that have fewer give all they
    have; classes that have none are absent.
    """
    flat = labels.flatten()
    chosen = []
    for label in range(1, classes):
        places = (flat == label).nonzero().squeeze(1)
        chosen.append(places[torch.randperm(len(places), generator=generator)[:per_class]])
    index = torch.cat(chosen) if chosen else flat.new_empty(0)
    return PatchSample(index, flat[index])


def patch_knn(
    train: Tensor, train_sample: PatchSample, test: Tensor, test_sample: PatchSample, voting: Voting
) -> float:
    """Class-balanced patch k-NN: mean over classes of the share of its test patches that are named right, in [0, 1].

    `train` and `test` are patches [I, H, W, D], the samples say which of them take part. Classes without a test patch
    do not count; chance is 1 / (number of foreground classes). NaN when either sample is empty.
    """
    return value_of(weighted_patch_knn(train, train_sample, test, test_sample, voting), len(test))


def weighted_patch_knn(
    train: Tensor, train_sample: PatchSample, test: Tensor, test_sample: PatchSample, voting: Voting
) -> Weighted:
    """`patch_knn` as a function of shares of the test images; the bank stays. Classes absent in a resample are out."""
    if not len(train_sample.index) or not len(test_sample.index):
        return lambda shares: shares.new_full((len(shares),), torch.nan)
    bank = train.flatten(0, 2)[train_sample.index.to(train.device)]
    queries = test.flatten(0, 2)[test_sample.index.to(test.device)]
    right = _vote(bank, train_sample.labels, queries, voting) == test_sample.labels
    image = test_sample.index // (test.shape[1] * test.shape[2])
    place = image * voting.classes + test_sample.labels
    asked, named = (
        torch.bincount(place, weights, minlength=len(test) * voting.classes).reshape(len(test), -1)
        for weights in (torch.ones(len(place), dtype=torch.float64), right.double())
    )
    return lambda shares: ((shares @ named) / (shares @ asked)).nanmean(dim=1)


def global_knn(bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, voting: Voting) -> float:
    """Share of the query images whose class token [M, D] is named right by the bank's [N, D], in [0, 1].

    Labels are int64 [N] and [M]. Source: DINO's k-NN evaluation.
    """
    return value_of(weighted_global_knn(bank, bank_labels, queries, query_labels, voting), len(queries))


def weighted_global_knn(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, voting: Voting
) -> Weighted:
    """`global_knn` as a function of shares of the query images; the bank stays."""
    return mean_over_images(_vote(bank, bank_labels, queries, voting) == query_labels)


def _vote(bank: Tensor, labels: Tensor, queries: Tensor, voting: Voting) -> Tensor:
    k = min(voting.k, len(bank))
    labels = labels.to(bank.device)
    predicted = knn_classify(bank, labels, queries, k=k, temperature=voting.temperature, classes=voting.classes)
    return predicted.cpu()
