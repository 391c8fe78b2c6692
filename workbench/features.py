"""The two contracts everything else speaks: what a backbone returns, and what a backbone is."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Features(NamedTuple):
    """Dense features of a batch of images, with the grid shape kept in the tensor.

    H and W are *grid* sides (image side // patch_size), so non-square images need no bookkeeping.
    Row 0 of `patches` is the top of the image, column 0 its left side.
    """

    patches: Tensor
    """[B, H, W, D] patch tokens after the final norm."""
    cls: Tensor
    """[B, D] class token after the final norm."""
    registers: Tensor
    """[B, R, D] register tokens after the final norm; R may be 0."""
    attention: Tensor | None = None
    """[B, heads, 1+R+H*W, 1+R+H*W] softmax weights of the chosen layer, only when asked for."""

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the patch grid."""
        return self.patches.shape[1], self.patches.shape[2]


@runtime_checkable
class Backbone(Protocol):
    """Anything that turns images into `Features`: own runs, timm, transformers, open_clip, a weightless fake."""

    patch_size: int
    embed_dim: int
    depth: int

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """Features of normalised images [B, 3, h, w] (h, w in pixels) after block `layer`, final norm applied.

        `layer` counts blocks from 0; negative counts from the end, -1 being the last block.
        """
        ...
