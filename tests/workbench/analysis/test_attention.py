"""Attention maps and rollout: against NumPy float64, and through a real vision transformer with registers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.analysis.attention import attention_entropy, attention_maps, rollout
from workbench.backbones import VisionTransformer, ViTConfig


def weights(blocks: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 9, 9, generator=generator).softmax(dim=-1) for _ in range(blocks)]


def test_rollout_is_the_product_of_mixed_blocks():
    blocks = weights()
    for keep in (0.0, 0.5, 0.9):
        total = np.eye(9)[None].repeat(2, axis=0)
        for block in blocks:
            total = (keep * np.eye(9) + (1 - keep) * block.double().numpy().mean(axis=1)) @ total
        found = rollout(blocks, keep=keep)
        np.testing.assert_allclose(found.numpy(), total, atol=1e-6)
        torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 9))
    assert torch.equal(rollout(blocks, keep=1.0), torch.eye(9).expand(2, -1, -1))


def test_maps_lie_where_the_patches_lie():
    network = VisionTransformer(ViTConfig(patch_size=8, embed_dim=24, depth=2, num_heads=2, num_registers=3)).eval()
    features = network.features(torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)), attention=True)
    maps = attention_maps(features.attention, features.grid)
    assert maps.shape == (2, 2, 3, 5)
    assert maps[1, 0, 2, 1] == features.attention[1, 0, 0, 4 + 2 * 5 + 1]
    whole = features.attention[:, :, 0]
    torch.testing.assert_close(maps.sum(dim=(2, 3)), whole.sum(dim=-1) - whole[..., :4].sum(dim=-1))
    register = attention_maps(features.attention, features.grid, token=2)
    assert register[0, 1, 0, 0] == features.attention[0, 1, 2, 4]


def test_entropy_is_one_where_attention_is_even_and_zero_where_it_is_one_token():
    even, one = torch.full((1, 1, 5, 5), 0.2), torch.eye(5)[None, None]
    torch.testing.assert_close(attention_entropy(torch.cat((even, one), dim=1)), torch.tensor([[1.0, 0.0]]))


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="of CLS and 3 x 4"):
        attention_maps(torch.ones(1, 2, 12, 12), (3, 4))
    with pytest.raises(ValueError, match="no token 13"):
        attention_maps(torch.ones(1, 2, 13, 13), (3, 4), token=13)
    with pytest.raises(ValueError, match="every block"):
        rollout([])
    with pytest.raises(ValueError, match="every block"):
        rollout([torch.ones(1, 2, 3, 3), torch.ones(1, 2, 4, 4)])
    with pytest.raises(ValueError, match="residual share"):
        rollout(weights(), keep=1.2)
