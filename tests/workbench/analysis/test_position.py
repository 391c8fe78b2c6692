"""Switches: directions of position against NumPy's singular vectors, norms against its median."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.analysis.health.outliers import channel_energies, outlier_channels
from workbench.analysis.position import clip_norms, positional_subspace, without, without_channels


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_directions_are_the_singular_vectors_of_the_mean_over_images():
    noise = draw(5, 4, 7, 16)
    code = noise.double().numpy().mean(axis=0).reshape(28, 16)
    _, _, theirs = np.linalg.svd(code - code.mean(axis=0))
    ours = positional_subspace(noise, 4).double().numpy()
    assert ours.shape == (16, 4)
    np.testing.assert_allclose(np.abs(np.diag(theirs[:4] @ ours)), 1, atol=1e-6)
    np.testing.assert_allclose(ours.T @ ours, np.eye(4), atol=1e-6)


def test_a_code_that_was_put_in_is_taken_out():
    axes = torch.linalg.qr(draw(32, 2)).Q
    code = draw(6, 9, 2, seed=1) @ axes.T
    content = without(draw(3, 6, 9, 32, seed=2), axes)
    directions = positional_subspace(code + 0.01 * draw(8, 6, 9, 32, seed=3), 2)
    torch.testing.assert_close(without(content + 5 * code, directions), content, atol=0.2, rtol=0)
    assert (without(content + code, directions) @ directions).abs().max() < 1e-5


def test_no_code_no_directions():
    assert positional_subspace(torch.ones(2, 3, 4, 8)).shape == (8, 0)
    patches = draw(2, 3, 4, 8)
    assert torch.equal(without(patches, torch.zeros(8, 0)), patches)
    assert positional_subspace(draw(1, 1, 3, 8), 8).shape == (8, 2), "three places, less their mean"


def test_outlier_channels_are_levelled():
    patches = draw(2, 5, 6, 24)
    patches[..., 3] = 80 + patches[..., 3]
    strange = outlier_channels(channel_energies(patches)[0])
    assert strange.nonzero().tolist() == [[3]]
    levelled = without_channels(patches, strange)
    assert levelled[..., 3].std() < 1e-4
    assert torch.equal(levelled[..., :3], patches[..., :3])


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="noise must be patches"):
        positional_subspace(torch.ones(3, 4, 5))
    with pytest.raises(ValueError, match="finite"):
        positional_subspace(torch.full((1, 3, 4, 5), torch.nan))
    with pytest.raises(ValueError, match="directions"):
        without(torch.ones(3, 4, 5), torch.ones(6, 2))
    with pytest.raises(ValueError, match="channels"):
        without_channels(torch.ones(3, 4, 5), torch.ones(6, dtype=torch.bool))


def test_long_patches_are_shortened_and_keep_their_direction():
    x = draw(3, 5, 7, 24)
    x[1, 2, 3] *= 40
    norms = np.linalg.norm(x.double().numpy(), axis=-1)
    longest = np.median(norms) + 5 * np.median(np.abs(norms - np.median(norms)))
    clipped = clip_norms(x)
    ours = clipped.double().norm(dim=-1).numpy()
    np.testing.assert_allclose(ours, np.minimum(norms, longest), rtol=1e-5)
    assert ours[1, 2, 3] == pytest.approx(longest, rel=1e-5)
    torch.testing.assert_close(clipped[1, 2, 3] / clipped[1, 2, 3].norm(), x[1, 2, 3] / x[1, 2, 3].norm())
    assert torch.equal(clip_norms(torch.ones(2, 5, 7, 24).bfloat16()), torch.ones(2, 5, 7, 24).bfloat16())
    assert not clip_norms(torch.zeros(1, 1, 1, 3)).any()


def test_norms_of_what_is_no_features_are_refused():
    for wrong in (draw(3, 4), draw(0, 2, 2, 3), torch.full((1, 2, 2, 3), torch.inf)):
        with pytest.raises(ValueError, match=r"\[B, H, W, D\]|infinity"):
            clip_norms(wrong)
    with pytest.raises(ValueError, match="0 or more"):
        clip_norms(draw(1, 2, 2, 3), -1)
