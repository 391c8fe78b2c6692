"""The baseline that any learned backbone must beat: the pixels of a patch as its features."""

from __future__ import annotations

from torch import Tensor

from workbench.features import Features


class RawPixels:
    """A `Backbone` without weights: a patch's features are its normalised pixels, flattened; CLS is their mean."""

    depth = 1

    def __init__(self, patch_size: int) -> None:
        """`patch_size` in pixels."""
        self.patch_size = patch_size
        self.embed_dim = 3 * patch_size**2

    def features(self, images: Tensor, *, layer: int = -1, attention: bool = False) -> Features:
        """Pixels of each patch of `images` [B, 3, h, w]: patches [B, H, W, 3 * p * p], cls [B, 3 * p * p], R = 0."""
        if layer not in (-1, 0):
            raise ValueError(f"raw pixels have one layer, 0 (or -1); layer {layer} was asked for.")
        if attention:
            raise ValueError("raw pixels have no attention; ask for attention=False.")
        batch, _, height, width = images.shape
        size = self.patch_size
        if height % size or width % size:
            raise ValueError(f"images are {height} x {width} pixels; sides must be multiples of patch size {size}.")
        grid = images.reshape(batch, 3, height // size, size, width // size, size)
        patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return Features(
            patches=patches,
            cls=patches.mean(dim=(1, 2)),
            registers=patches.new_zeros(batch, 0, self.embed_dim),
        )
