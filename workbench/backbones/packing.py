"""From crop groups to one packed matrix of tokens and back: checks, prefix tokens, random subsets, rotations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.backbones.blocks import Group, Kept
from workbench.backbones.rope import Grid, Rotation


def check_images(images: Tensor, masks: Tensor | None, patch_size: int, *, unit: str = "patch size") -> Grid:
    """Patch grid (H, W) of images [B, 3, h, w]; ValueError when images or masks do not fit.

    `unit` is what the message calls `patch_size`.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected [batch, 3, height, width].")
    sides = images.shape[2:]
    for name, side in zip(("height", "width"), sides, strict=True):
        if side % patch_size or side == 0:
            below = side // patch_size * patch_size
            allowed = [size for size in (below, below + patch_size) if size > 0]
            raise ValueError(
                f"image {name} is {side} pixels, not a multiple of the {unit} {patch_size}; nearest allowed: "
                f"{' or '.join(map(str, allowed))}. Resize or crop the images first."
            )
    grid = (sides[0] // patch_size, sides[1] // patch_size)
    if masks is not None and (masks.dtype != torch.bool or masks.shape != (len(images), *grid)):
        raise ValueError(
            f"masks have shape {tuple(masks.shape)} and dtype {masks.dtype}; expected bool "
            f"[batch, H, W] = {(len(images), *grid)}, true where a patch is replaced by the mask token."
        )
    return grid


def block_index(layer: int, depth: int, *, unit: str = "blocks") -> int:
    """Index of a block from 0, for a `layer` that may count from the end; ValueError when there is no such block."""
    if not -depth <= layer < depth:
        raise ValueError(f"layer is {layer}; this network has {depth} {unit}, allowed: {-depth} to {depth - 1}.")
    return layer % depth


def replace_masked(patches: Tensor, mask_token: Tensor, masks: Sequence[Tensor | None], grids: list[Group]) -> Tensor:
    """Packed patches [P, D] with the mask token [1, D] where the flattened masks are true."""
    if all(mask is None for mask in masks):
        return patches
    flat = [
        patches.new_zeros(group.rows, dtype=torch.bool) if mask is None else mask.flatten().to(patches.device)
        for mask, group in zip(masks, grids, strict=True)
    ]
    return torch.where(torch.cat(flat)[:, None], mask_token, patches)


def prepend(prefix: Tensor, patches: Tensor, grids: list[Group]) -> Tensor:
    """Put the prefix tokens [1, P, D] ahead of every image's patches: packed patches -> packed tokens [N, D]."""
    width = patches.shape[-1]
    tokens = []
    for part, group in zip(patches.split([group.rows for group in grids]), grids, strict=True):
        by_image = part.view(group.batch, group.tokens, width)
        tokens.append(torch.cat((prefix.expand(group.batch, -1, -1), by_image), dim=1).flatten(0, 1))
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens)


def pack_rotations(tables: Sequence[Rotation], groups: Sequence[Group]) -> list[Rotation]:
    """One table a group, [L, T, d] -> L packed tables with one row a token, [N, 1, 1, d]."""

    def pack(layer: int, field: int) -> Tensor:
        rows = [
            table[field][layer].expand(group.batch, -1, -1).flatten(0, 1)
            for table, group in zip(tables, groups, strict=True)
        ]
        return torch.cat(rows)[:, None, None]

    return [Rotation(pack(layer, 0), pack(layer, 1)) for layer in range(len(tables[0].cos))]


def draw_subsets(
    groups: Sequence[Group], rate: float, count: int, generator: torch.Generator, device: torch.device
) -> tuple[list[Group], list[Kept]]:
    """Random subsets for batch-subset stochastic depth (DINOv2, arXiv 2304.07193 §5).

    Of the b images of every group, m = max(floor(b (1 - rate)), 1) are kept, drawn without replacement, afresh for
    each of `count` residual branches. Returns the groups of the kept rows (the same for all branches) and the subsets.
    """
    smaller = [Group(max(int(group.batch * (1.0 - rate)), 1), group.tokens) for group in groups]
    rows, scales, offset = [], [], 0
    for group, kept in zip(groups, smaller, strict=True):
        keys = torch.rand(count, group.batch, generator=generator, device=generator.device)
        images = keys.argsort(dim=-1)[:, : kept.batch].to(device)
        within = torch.arange(group.tokens, device=device)
        rows.append((offset + images[..., None] * group.tokens + within).flatten(1))
        scales.append(torch.full((kept.rows, 1), group.batch / kept.batch, device=device))
        offset += group.rows
    packed, scale = torch.cat(rows, dim=1), torch.cat(scales)
    return smaller, [Kept(branch, scale) for branch in packed]
