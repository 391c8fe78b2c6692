"""The weightless backbone keeps the contract of a real one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from workbench.backbones import SyntheticBackbone
from workbench.features import Backbone


def pictures(batch: int = 2, height: int = 48, width: int = 80) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def test_keeps_the_backbone_contract() -> None:
    backbone = SyntheticBackbone(patch_size=16, embed_dim=32, depth=3)
    features = backbone.features(pictures(), attention=True)
    assert isinstance(backbone, Backbone)
    assert (backbone.patch_size, backbone.embed_dim, backbone.depth) == (16, 32, 3)
    assert features.patches.shape == (2, 3, 5, 32)
    assert features.cls.shape == (2, 32)
    assert features.registers.shape == (2, 0, 32)
    assert features.attention is not None
    assert features.attention.shape == (2, 4, 16, 16)
    torch.testing.assert_close(features.attention.sum(-1), torch.ones(2, 4, 16))
    assert backbone.features(pictures()).attention is None


def test_is_deterministic_in_seed_and_images() -> None:
    one, two, other = SyntheticBackbone(seed=1), SyntheticBackbone(seed=1), SyntheticBackbone(seed=2)
    assert torch.equal(one.features(pictures()).patches, two.features(pictures()).patches)
    assert not torch.allclose(one.features(pictures()).patches, other.features(pictures()).patches)


def test_each_image_is_computed_by_itself() -> None:
    backbone = SyntheticBackbone()
    torch.testing.assert_close(backbone.features(pictures())[0][:1], backbone.features(pictures()[:1])[0])


def test_like_patches_have_like_features() -> None:
    """Two flat colours and a texture: same with same is closer than with any other."""
    image = torch.zeros(1, 3, 16, 96)
    for column, colour in enumerate([(1.0, -1.0, 0.0), (-1.0, 1.0, 0.5)] * 2):
        image[0, :, :, 16 * column : 16 * column + 16] = torch.tensor(colour)[:, None, None]
    stripes = torch.arange(16) % 2 * 2.0 - 1.0
    image[0, :, :, 64:80] = stripes
    image[0, :, :, 80:96] = stripes
    patches = F.normalize(SyntheticBackbone().features(image, layer=0).patches[0, 0], dim=-1)
    cosine = patches @ patches.T
    for left, right in ((0, 2), (1, 3), (4, 5)):
        others = [k for k in range(6) if k not in (left, right)]
        assert cosine[left, right] > 0.9
        assert cosine[left, right] > cosine[left, others].max() + 0.1


def test_later_layers_are_smoother() -> None:
    def roughness(layer: int) -> float:
        patches = F.normalize(SyntheticBackbone().features(pictures(1, 160, 160), layer=layer).patches, dim=-1)
        return 1 - (patches[:, 1:] * patches[:, :-1]).sum(-1).mean().item()

    values = [roughness(layer) for layer in range(4)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.5 * values[0]
    assert roughness(-1) == values[3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SyntheticBackbone(embed_dim=30), "embed_dim is 30.*multiple of 4"),
        (lambda: SyntheticBackbone(depth=0), "depth is 0"),
        (lambda: SyntheticBackbone().features(pictures(), layer=4), "layer is 4.*allowed: -4 to 3"),
        (lambda: SyntheticBackbone().features(pictures(1, 40, 48)), "height is 40.*nearest allowed: 32 or 48"),
    ],
)
def test_errors_name_what_is_allowed(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
