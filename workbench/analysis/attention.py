"""What attention weights say: the map of each head, and rollout through all blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def attention_maps(attention: Tensor, grid: tuple[int, int], *, token: int = 0) -> Tensor:
    """What one token attends to among the patches: [B, heads, H, W], the weights as they are.

    `attention` is [B, heads, T, T] of one block, as `Features.attention`: token 0 is the class token, then the
    registers, then the patches in raster order. Weights on class token and registers are left out, so a map sums to
    what goes to patches. Raises ValueError when the tokens do not fit the grid. Source: DINO, figure 1
    (arXiv 2104.14294).
    """
    first = _first_patch(attention, grid)
    if not -attention.shape[2] <= token < attention.shape[2]:
        raise ValueError(f"there is no token {token}; the block has {attention.shape[2]}, from 0.")
    return attention[:, :, token, first:].unflatten(2, grid)


def rollout(blocks: Sequence[Tensor], *, keep: float = 0.5) -> Tensor:
    """How much every token of the input goes into every token of the output: [B, T, T], rows sum to 1.

    `blocks` are the weights [B, heads, T, T] of all blocks, the first block first. Heads are averaged; `keep` is the
    share of each token that goes by on the residual path. A heuristic: it knows nothing of values or of the FFN.
    Source: Abnar and Zuidema 2020 (arXiv 2005.00928), where `keep` is one half. Raises ValueError for no blocks, other
    shapes, or a share outside 0 to 1.
    """
    if not blocks or any(block.dim() != 4 or block.shape != blocks[0].shape for block in blocks):
        raise ValueError(f"rollout wants [B, heads, T, T] of every block, got {[tuple(b.shape) for b in blocks]}.")
    if not 0 <= keep <= 1:
        raise ValueError(f"the residual share is {keep}; it is 0 to 1.")
    identity = torch.eye(blocks[0].shape[-1], device=blocks[0].device, dtype=torch.float32)
    total = identity.expand(len(blocks[0]), -1, -1)
    for block in blocks:
        mean = block.float().mean(dim=1)
        mixed = keep * identity + (1 - keep) * mean / mean.sum(dim=-1, keepdim=True)
        total = mixed @ total
    return total


def attention_entropy(attention: Tensor) -> Tensor:
    """Entropy of each head's weights, the mean over tokens, as a share of ln T: [B, heads]; 1 is even, 0 one token."""
    weights = attention.float()
    entropy = -torch.special.xlogy(weights, weights).sum(dim=-1).mean(dim=-1)
    return entropy / torch.tensor(float(weights.shape[-1])).log()


def _first_patch(attention: Tensor, grid: tuple[int, int]) -> int:
    """The index of the first patch: after the class token and the registers."""
    height, width = grid
    if attention.dim() != 4 or attention.shape[2] != attention.shape[3] or attention.shape[2] <= height * width:
        raise ValueError(
            f"attention {tuple(attention.shape)} is not [B, heads, T, T] of CLS and {height} x {width} patches."
        )
    return attention.shape[2] - height * width
