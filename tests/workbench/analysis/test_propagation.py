"""Masks through frames: against a loop in NumPy float64, and on a square that moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.analysis.propagation import propagate


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_hand(frames, mask, context, radius, neighbours, temperature):
    """The same, patch by patch."""
    classes, height, width = mask.shape
    units = [f.double().numpy() / np.linalg.norm(f.double().numpy(), axis=-1, keepdims=True) for f in frames]
    shares = [mask.double().numpy()]
    for index in range(1, len(frames)):
        sources = [0, *range(max(1, index - context), index)]
        new = np.zeros((classes, height, width))
        for row in range(height):
            for column in range(width):
                found = []
                for source in sources:
                    for y in range(height):
                        for x in range(width):
                            if np.hypot(y - row, x - column) <= radius:
                                found.append((units[index][row, column] @ units[source][y, x], shares[source][:, y, x]))
                found.sort(key=lambda pair: -pair[0])
                weights = np.exp(np.array([cosine for cosine, _ in found[:neighbours]]) / temperature)
                new[:, row, column] = sum(w * s for w, (_, s) in zip(weights, found, strict=False)) / weights.sum()
        shares.append(new)
    return shares


@pytest.mark.parametrize("context", [1, 2, 7])
@pytest.mark.parametrize("radius", [0.0, 1.5, 99.0])
def test_it_is_the_weighted_vote_of_the_nearest(context, radius):
    frames = list(draw(5, 4, 3, 8))
    mask = draw(3, 4, 3, seed=1).softmax(dim=0)
    options = {"context": context, "radius": radius, "neighbours": 4, "temperature": 0.2}
    found = list(propagate(iter(frames), mask, **options))
    for ours, theirs in zip(found, by_hand(frames, mask, *options.values()), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)
        torch.testing.assert_close(ours.sum(dim=0), torch.ones(4, 3))


def test_a_moving_square_keeps_its_mask():
    ground = draw(12, 1, 24).expand(12, 16, 24)  # what the square uncovers looks like what was seen
    square = draw(3, 3, 24, seed=1)
    frames, truth = [], []
    for step in range(8):
        frame, mask = ground.clone(), torch.zeros(12, 16, dtype=torch.bool)
        frame[4:7, step : step + 3] = square
        mask[4:7, step : step + 3] = True
        frames.append(frame + 0.2 * draw(12, 16, 24, seed=10 + step))
        truth.append(mask)
    begin = torch.stack((~truth[0], truth[0])).float()
    for shares, mask in zip(propagate(frames, begin, radius=4, neighbours=3), truth, strict=True):
        guess = shares.argmax(dim=0).bool()
        assert (guess & mask).sum() / (guess | mask).sum() > 0.8


def test_old_frames_are_let_go():
    import weakref

    alive = []

    def frames():
        for step in range(6):
            frame = draw(3, 3, 4, seed=step)
            alive.append(weakref.ref(frame))
            yield frame

    mask = torch.ones(1, 3, 3)
    for shares in propagate(frames(), mask, context=1):
        torch.testing.assert_close(shares, torch.ones(1, 3, 3))
        assert sum(frame() is not None for frame in alive) <= 2


@pytest.mark.parametrize(
    ("frames", "mask", "options", "words"),
    [
        ([torch.ones(3, 4, 5)], torch.ones(3, 4), {}, "mask"),
        ([torch.ones(3, 4, 5)], torch.ones(2, 4, 3), {}, "grid of the mask"),
        ([torch.ones(3, 4, 5), torch.full((3, 4, 5), torch.inf)], torch.ones(2, 3, 4), {}, "finite"),
        ([torch.ones(3, 4, 5)], torch.ones(2, 3, 4), {"temperature": 0.0}, "temperature"),
        ([torch.ones(3, 4, 5)], torch.ones(2, 3, 4), {"context": 0}, "context"),
    ],
)
def test_mistakes_are_told(frames, mask, options, words):
    with pytest.raises(ValueError, match=words):
        list(propagate(frames, mask, **options))
