"""`VisionTransformer`: the DINOv3 family of vision transformers, trained and looked at through the same module.

Parameter names are the official DINOv3 ones, so an official backbone checkpoint loads with `strict=True`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from workbench.backbones import initialise, packing
from workbench.backbones.blocks import Block, Group, Kept
from workbench.backbones.config import ViTConfig
from workbench.backbones.rope import Grid, RopePositionEmbedding, Rotation
from workbench.features import Features

__all__ = ["ViTConfig", "VisionTransformer"]


class PatchEmbed(nn.Module):
    """Linear embedding of square patches; the weight has the shape of the equivalent strided convolution."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, groups: Sequence[Tensor]) -> Tensor:
        """Images, a list of [B, 3, h, w], -> patch embeddings [sum of B H W, D], image by image, row-major."""
        patches = [self._pixels(images) for images in groups]
        packed = patches[0] if len(patches) == 1 else torch.cat(patches)
        return nn.functional.linear(packed, self.proj.weight.flatten(1), self.proj.bias)

    def _pixels(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B H W, 3 p p]: the pixels of each patch as one row."""
        side = self.patch_size
        batch, channels, height, width = images.shape
        patches = images.reshape(batch, channels, height // side, side, width // side, side)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * side * side)


class VisionTransformer(nn.Module):
    """Vision transformer with RoPE, registers, LayerScale and batch-subset stochastic depth (DINOv3, arXiv 2508.10104).

    Args:
        config: the architecture.
        generator: source of the initial weights, kept as `self.generator`; None means a fresh one seeded with 0.
            Under `with torch.device("meta")` nothing is allocated or drawn: call `to_empty`, then `init_weights` or
            `load_state_dict`.

    Attributes:
        patch_size: pixels. embed_dim, depth: channels, blocks.
        generator: the (CPU) torch.Generator that stochastic depth and RoPE augmentation draw from in training; a
            trainer sets it to resume a random stream. It is no part of the state dict.
    """

    def __init__(self, config: ViTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.patch_size, self.embed_dim, self.depth = config.patch_size, config.embed_dim, config.depth
        self.generator: torch.Generator | None = generator or torch.Generator().manual_seed(0)
        device = torch.get_default_device()
        with torch.device("meta"):  # nothing is allocated twice or drawn from the global generator
            self._build(config)
        if device.type != "meta":
            self.to_empty(device=device)
            self.init_weights(self.generator)

    def _build(self, config: ViTConfig) -> None:
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        if config.num_registers:
            self.storage_tokens = nn.Parameter(torch.empty(1, config.num_registers, dim))
        self.mask_token = nn.Parameter(torch.empty(1, dim))
        self.rope_embed = RopePositionEmbedding(
            config.head_dim,
            base=config.rope_base,
            coords=config.rope_coords,
            shift=config.rope_shift,
            jitter=config.rope_jitter,
            rescale=config.rope_rescale,
        )
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.local_cls_norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.local_cls_norm else None

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, *, std: float | None = 0.02) -> None:
        """Fill every parameter and buffer: the official DINOv3 initialisation.

        Args:
            generator: source of all draws.
            std: standard deviation of the linear weights (normal, cut at +-2). None means 0.8 / sqrt(fan-in), with
                which networks of 100-odd channels learn at once where 0.02 leaves their branches near zero.
        """
        initialise.fill(self, generator, std=std)
        initialise.fill_normal(self.cls_token, generator, 0.02)
        if self.config.num_registers:
            initialise.fill_normal(self.storage_tokens, generator, 0.02)
        self.mask_token.zero_()

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Features:
        """Features of normalised images [B, 3, h, w] (pixels) after the last block and the final norm.

        `masks`, bool [B, H, W], is true where a patch is replaced by the mask token before the first block.
        Raises ValueError when a shape does not fit, naming those that would.
        """
        return self.forward_groups([images], [masks])[0]

    def forward_groups(self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Features]:
        """Features of several groups of crops, each [B_i, 3, h_i, w_i], in one pass of all linear layers.

        In evaluation the same as one `forward` a group. In training the group of index 1 is taken for the local crops
        (see `ViTConfig.local_cls_norm`), and each group draws its own stochastic depth and RoPE augmentation.
        """
        tokens, groups, grids = self._embed(images, [None] * len(images) if masks is None else masks)
        tokens, _ = self._run(tokens, groups, grids, blocks=self.depth)
        return self._features(tokens, groups, grids)

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """Features of normalised images [B, 3, h, w] after block `layer`, the final norm applied whatever the layer.

        Args:
            layer: block index from 0; negative counts from the end.
            attention: also return that block's softmax attention weights [B, heads, T, T].

        Neither switches to evaluation mode nor turns gradients off: both are the caller's.
        """
        index = packing.block_index(layer, self.depth)
        tokens, groups, grids = self._embed([images], [None])
        tokens, weights = self._run(tokens, groups, grids, blocks=index + 1, attention=attention)
        return self._features(tokens, groups, grids)[0]._replace(attention=weights)

    def _embed(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Group], list[Grid]]:
        """Packed tokens [N, D] before the first block, their groups and patch grids."""
        if not images or len(images) != len(masks):
            raise ValueError(f"{len(images)} groups of images, {len(masks)} of masks; give one mask (or None) a group.")
        grids = [packing.check_images(*pair, self.patch_size) for pair in zip(images, masks, strict=True)]
        patch_groups = [Group(len(group), height * width) for group, (height, width) in zip(images, grids, strict=True)]
        patches = packing.replace_masked(self.patch_embed(images), self.mask_token, masks, patch_groups)
        prefix = self.cls_token
        if self.training and all(mask is None for mask in masks):
            prefix = prefix + 0.0 * self.mask_token  # so that the parameter gets a gradient (zero) at every step
        if self.config.num_registers:
            prefix = torch.cat((prefix, self.storage_tokens), dim=1)
        groups = [Group(group.batch, prefix.shape[1] + group.tokens) for group in patch_groups]
        return packing.prepend(prefix, patches, patch_groups), groups, grids

    def _run(
        self, tokens: Tensor, groups: list[Group], grids: list[Grid], *, blocks: int, attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Packed tokens after `blocks` blocks, and the attention weights of the last of them when asked for."""
        groups, subsets = self._subsets(groups, blocks, tokens.device)
        if attention and subsets:
            raise ValueError("attention weights cannot be shown under stochastic depth; call model.eval() first.")
        rotations = self._rotations(groups, grids)
        weights = None
        for index in range(blocks):
            block, rotation = cast(Block, self.blocks[index]), rotations[index % len(rotations)]
            if attention and index == blocks - 1:
                weights = block.attn.weights(block.norm1(tokens), groups[0], rotation)
            tokens = block(tokens, groups, rotation, subsets[index] if subsets else None)
        return tokens, weights

    def _subsets(
        self, groups: list[Group], blocks: int, device: torch.device
    ) -> tuple[list[Group], list[tuple[Kept, Kept]]]:
        """The groups that branches run on and, under stochastic depth, a pair of random subsets a block."""
        if not (self.training and self.config.drop_path > 0):
            return groups, []
        if self.generator is None:
            raise ValueError(
                "stochastic depth (drop_path > 0) needs randomness in training: set "
                "`model.generator = torch.Generator().manual_seed(seed)`, or call `model.eval()`."
            )
        groups, kept = packing.draw_subsets(groups, self.config.drop_path, 2 * blocks, self.generator, device)
        return groups, list(zip(kept[::2], kept[1::2], strict=True))

    def _rotations(self, groups: list[Group], grids: list[Grid]) -> list[Rotation]:
        """Packed RoPE tables: one for all blocks, or one a block while augmentation is on."""
        prefix = self.config.num_prefix_tokens
        tables = [self.rope_embed(grid, prefix=prefix, draws=self.depth, generator=self.generator) for grid in grids]
        return packing.pack_rotations(tables, groups)

    def _features(self, tokens: Tensor, groups: list[Group], grids: list[Grid]) -> list[Features]:
        """Final norm, then each group's tokens taken apart again."""
        sizes = [group.rows for group in groups]
        normed, raw = self.norm(tokens).split(sizes), tokens.split(sizes)
        return [self._unpack(normed[i], raw[i], groups[i], grids[i], local=i == 1) for i in range(len(groups))]

    def _unpack(self, normed: Tensor, raw: Tensor, group: Group, grid: Grid, *, local: bool) -> Features:
        prefix = self.config.num_prefix_tokens
        shape, parts = (group.batch, group.tokens, self.embed_dim), (1, prefix - 1, group.tokens - prefix)
        cls, registers, patches = normed.view(shape).split(parts, dim=1)
        if local and self.training and self.local_cls_norm is not None:
            cls, registers = self.local_cls_norm(raw.view(shape)[:, :prefix]).split(parts[:2], dim=1)
        return Features(patches.unflatten(1, grid), cls.squeeze(1), registers)
