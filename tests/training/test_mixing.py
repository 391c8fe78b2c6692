"""Mixed resolutions: the sizes of a step depend on (seed, step) alone, and everything in the batch has them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from training.data.augment import AugmentConfig, MultiCrop
from training.data.batch import Batch, BatchConfig, BatchStream, generator_for
from training.data.masking import MaskConfig
from training.data.mixing import ResolutionMix

CHOICES = ((32, 16, 48, 0.3), (48, 16, 72, 0.45), (48, 24, 0, 0.25))
CROPS = AugmentConfig(global_size=24, local_size=8, local_crops=3, gram_size=24)


class Noise:
    """Nine random images of different sizes."""

    bad = ()

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 60 + index, 90 - index), generator=generator, dtype=torch.uint8)


def stream(rank: int = 0, world: int = 1, seed: int = 0, workers: int = 0, choices=CHOICES) -> BatchStream:
    config = BatchConfig(batch_size=4, workers=workers, seed=seed)
    mix = ResolutionMix(choices=choices)
    return BatchStream(Noise(), MultiCrop(CROPS), MaskConfig(), 8, config, mix=mix, rank=rank, world=world)


def sizes(batch: Batch) -> tuple[int, int, int]:
    return batch.globals_.shape[-1], batch.locals_.shape[-1], batch.gram.shape[-1]


def tensors(batch: Batch) -> tuple[Tensor, ...]:
    return (batch.globals_, batch.locals_, batch.masks, batch.indices, batch.gram)


def test_a_batch_has_the_sizes_of_one_choice_and_masks_on_its_grid():
    seen = set()
    for step in range(12):
        batch = stream().batch_at(step)
        seen.add(sizes(batch))
        side = batch.globals_.shape[-1] // 8
        assert batch.masks.shape == (8, side, side)
        assert batch.masks.flatten(1).any(1).sum() == 4
        assert len(batch.gram) in (0, 8)
    assert seen == {choice[:3] for choice in CHOICES}


@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_of_every_world_draws_the_same_sizes_in_any_order(world: int):
    steps = list(range(10))
    whole = {step: stream().batch_at(step) for step in steps}
    random.Random(1).shuffle(steps)
    for step in steps:
        parts = [stream(rank, world).batch_at(step) for rank in range(world)]
        assert {sizes(part) for part in parts} == {sizes(whole[step])}
        for ours, theirs in zip(tensors(whole[step]), zip(*map(tensors, parts), strict=True), strict=True):
            shared = [part.unflatten(0, (-1, 4 // world)) for part in theirs if len(part)]
            assert not len(ours) if not shared else torch.equal(torch.cat(shared, dim=1).flatten(0, 1), ours)


def test_workers_and_a_later_start_change_nothing():
    whole = list(stream().iterate(0, 8))
    for other in (list(stream(workers=2).iterate(0, 8)), [None] * 3 + list(stream(workers=1).iterate(3, 8))):
        for ours, theirs in zip(whole, other, strict=True):
            assert theirs is None or all(map(torch.equal, tensors(ours), tensors(theirs)))


def test_choices_come_as_often_as_they_should_and_the_seed_matters():
    """Chi-squared of 2 degrees of freedom, 0.1 % point."""
    mix, draws = ResolutionMix(choices=CHOICES), {}
    for seed in (0, 1):
        draws[seed] = [mix.draw(generator_for(seed, "resolution", step)) for step in range(2000)]
        counts = Counter(draws[seed])
        expected = {index: 2000 * choice[3] for index, choice in enumerate(CHOICES)}
        assert sum((counts[i] - n) ** 2 / n for i, n in expected.items()) < 13.8
    assert draws[0] != draws[1]


def test_nothing_to_choose_changes_no_bit_of_a_batch():
    plain = BatchStream(Noise(), MultiCrop(CROPS), MaskConfig(), 8, BatchConfig(batch_size=4))
    one = stream(choices=((24, 8, 24, 1.0),))
    none = stream(choices=())
    for other in (one, none):
        assert all(map(torch.equal, tensors(plain.batch_at(3)), tensors(other.batch_at(3))))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (((32, 16, 48, 0.5), (48, 16, 72, 0.6)), "sum to 1.1"),
        (((32, 16, 48, 0.0), (48, 16, 72, 1.0)), "its probability"),
        (((32, 16, 48, 1.0), (48, 16, 72, -0.0)), "its probability"),
        (((36, 16, 48, 1.0),), "global_size is 36"),
        (((32, 16, 44, 1.0),), "gram_size is 44"),
        (((32, 0, 48, 1.0),), "local_size is 0"),
    ],
)
def test_impossible_mixes_are_refused(choices, message: str):
    with pytest.raises(ValueError, match=message):
        stream(choices=choices)
