"""Large images by windows: every patch once, from a window that shows its neighbourhood, in bounded memory."""

from __future__ import annotations

import pytest
import torch

from workbench.backbones import SyntheticBackbone, VisionTransformer, ViTConfig
from workbench.tiles import _windows, tiled_features


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [1, 7, 8, 9, 15, 16, 17, 31, 100])
@pytest.mark.parametrize(("tile", "edge"), [(8, 0), (8, 2), (8, 3)])
def test_windows_cover_every_patch_once_and_keep_their_margin(side, tile, edge):
    windows = list(_windows(side, tile, edge))
    owned = [place for window in windows for place in range(*window.own)]
    assert owned == list(range(side))
    for window in windows:
        assert window.stop - window.start == min(tile, side)
        assert 0 <= window.start <= window.own[0] < window.own[1] <= window.stop <= side
        assert window.start == 0 or window.own[0] - window.start >= edge
        assert window.stop == side or window.stop - window.own[1] >= edge


@pytest.mark.parametrize(("height", "width"), [(96, 208), (16, 320), (176, 16)])
def test_local_features_are_those_of_the_whole_image(height, width):
    """A backbone that looks one patch around at its second layer is not changed by windows with a margin of two."""
    backbone = SyntheticBackbone(16, 32, 3)
    picture = image(height, width)
    whole = backbone.features(picture[None], layer=1)
    found = tiled_features(backbone, picture, tile=96, margin=32, layer=1)
    torch.testing.assert_close(found.patches, whole.patches, atol=1e-6, rtol=0)
    bare = tiled_features(backbone, picture, tile=96, margin=0, layer=1)
    if max(height, width) > 96:
        assert (bare.patches - whole.patches).abs().max() > 1e-3, "without a margin the edges of windows show"


def test_one_window_is_the_network_itself():
    torch.manual_seed(0)
    network = VisionTransformer(ViTConfig(patch_size=8, embed_dim=24, depth=2, num_heads=2, num_registers=2)).eval()
    picture = image(40, 64)
    whole, found = network.features(picture[None]), tiled_features(network, picture, tile=64, margin=8)
    for ours, theirs in zip(found[:3], whole[:3], strict=True):
        assert torch.equal(ours, theirs.detach())
    half = tiled_features(network, picture, tile=64, margin=8, dtype=torch.float16)
    assert half.patches.dtype == torch.float16


def test_progress_and_class_token_are_over_all_windows():
    backbone, seen, told = SyntheticBackbone(16, 32, 1), [], []

    class Watched:
        patch_size, embed_dim, depth = 16, 32, 1

        def features(self, images, **options):
            seen.append(tuple(images.shape))
            return backbone.features(images, **options)

    found = tiled_features(Watched(), image(160, 96), tile=96, margin=16, progress=lambda *now: told.append(now))
    assert set(seen) == {(1, 3, 96, 96)}
    assert told == [(k + 1, len(seen)) for k in range(len(seen))]
    assert found.patches.shape == (1, 10, 6, 32)
    assert found.cls.shape == (1, 32)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((3, 100, 96), {}, "whole multiples of 16"),
        ((1, 3, 96, 96), {}, "whole multiples of 16"),
        ((3, 96, 96), {"tile": 100}, "multiple of 16"),
        ((3, 96, 96), {"tile": 64, "margin": 32}, "twice the margin"),
    ],
)
def test_mistakes_are_told(shape, options, words):
    with pytest.raises(ValueError, match=words):
        tiled_features(SyntheticBackbone(16), torch.zeros(shape), **options)
