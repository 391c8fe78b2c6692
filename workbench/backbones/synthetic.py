"""A backbone without weights: features computed from colour and texture, for tests and demos that need no network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.backbones.packing import block_index, check_images
from workbench.features import Features

HEADS = 4
STATISTICS = 24  # per patch: 3 channel means, 3 deviations, 6 mean gradients, 12 quadrant means


def patch_statistics(images: Tensor, patch_size: int) -> Tensor:
    """Colour and texture of every patch of [B, 3, h, w]: [B, H, W, 24].

    Channel means (3), standard deviations (3), mean absolute vertical and horizontal gradients (6), and the means of
    the four quadrants relative to the patch mean (12).
    """
    mean = F.avg_pool2d(images, patch_size)
    deviation = (F.avg_pool2d(images.square(), patch_size) - mean.square()).clamp_min(0).sqrt()
    vertical = F.avg_pool2d(F.pad(images.diff(dim=2).abs(), (0, 0, 0, 1)), patch_size)
    horizontal = F.avg_pool2d(F.pad(images.diff(dim=3).abs(), (0, 1, 0, 0)), patch_size)
    quarters = F.pixel_unshuffle(F.adaptive_avg_pool2d(images, (2 * mean.shape[2], 2 * mean.shape[3])), 2)
    quarters = quarters - mean.repeat_interleave(4, dim=1)
    return torch.cat((mean, deviation, vertical, horizontal, quarters), dim=1).permute(0, 2, 3, 1)


class SyntheticBackbone:
    """Weightless `Backbone`: a fixed random projection of patch statistics, smoothed once more at every layer.

    Deterministic in (seed, images). Similar-looking patches get similar features, and later layers mix more of the
    neighbourhood in, as in a real network. There are no registers.

    Args:
        patch_size: pixels. embed_dim: channels, a multiple of 4. depth: number of layers. seed: of the projection.
    """

    def __init__(self, patch_size: int = 16, embed_dim: int = 64, depth: int = 4, seed: int = 0) -> None:
        for name, value, step in (("patch_size", patch_size, 2), ("embed_dim", embed_dim, HEADS), ("depth", depth, 1)):
            if value < 1 or value % step:
                raise ValueError(f"{name} is {value}; it must be a positive multiple of {step}.")
        self.patch_size, self.embed_dim, self.depth = patch_size, embed_dim, depth
        generator = torch.Generator().manual_seed(seed)
        self._projection = torch.randn(STATISTICS, embed_dim, generator=generator) / STATISTICS**0.5

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """See `Backbone.features`; the class token is the normalised mean of the patches."""
        index = block_index(layer, self.depth)
        check_images(images, None, self.patch_size)
        maps = patch_statistics(images.float(), self.patch_size) @ self._projection.to(images.device)
        maps = maps.permute(0, 3, 1, 2)
        for _ in range(index):
            maps = 0.5 * maps + 0.5 * F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
        patches = maps.permute(0, 2, 3, 1)
        cls = patches.mean(dim=(1, 2))
        patches, cls = (F.layer_norm(part, (self.embed_dim,)) for part in (patches, cls))
        weights = self._attention(patches, cls) if attention else None
        return Features(patches, cls, cls.new_zeros(len(cls), 0, self.embed_dim), weights)

    def _attention(self, patches: Tensor, cls: Tensor) -> Tensor:
        """[B, 4, 1 + H W, 1 + H W]: softmax of scaled similarities, each head on a quarter of the channels."""
        tokens = torch.cat((cls[:, None], patches.flatten(1, 2)), dim=1)
        heads = tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return (heads @ heads.transpose(-2, -1) / heads.shape[-1] ** 0.5).softmax(dim=-1)
