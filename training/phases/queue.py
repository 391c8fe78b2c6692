"""The keys of earlier batches that MoCo v2 contrasts with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The last `length` keys, oldest first, as buffers: they are saved and resumed like weights.

    It starts full of random unit vectors, which real keys push out. Source: MoCo section 3.2, algorithm 1.
    """

    keys: Tensor
    """[Q, D] float32, L2-normalised"""
    born: Tensor
    """[Q] int64: the step each key was made at; -1 for the random ones"""

    def __init__(self, length: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, dim, generator=generator), dim=-1))
        self.register_buffer("born", torch.full((length,), -1))

    @torch.no_grad()
    def push(self, keys: Tensor, step: int) -> None:
        """Add unit vectors [B, D] made at `step` (B <= Q) and forget the B oldest."""
        assert len(keys) <= len(self.keys), (keys.shape, self.keys.shape)
        self.keys.copy_(torch.cat([self.keys[len(keys) :], keys.to(self.keys.dtype)]))
        self.born.copy_(torch.cat([self.born[len(keys) :], self.born.new_full((len(keys),), step)]))

    def filled(self) -> float:
        """Share of the queue that are real keys."""
        return float((self.born >= 0).float().mean())

    def age(self, step: int) -> float:
        """Mean number of steps, at `step`, since the real keys were made; 0 when there is none.

        Keys that a fork brought along count their steps in the parent: those of later steps than this one are left out.
        """
        real = self.born[(self.born >= 0) & (self.born <= step)]
        return float((step - real).float().mean()) if len(real) else 0.0
