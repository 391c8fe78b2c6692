"""Axial rotary position embedding (RoPE) of patch tokens, as in DINOv3 (paper §3.2: RoPE and its "box jittering").

A head of D channels rotates D/2 channel pairs (c, c + D/2). The first half of the pairs turns with the row of the
patch, the second half with its column, at D/4 frequencies each. Class token and registers are not rotated.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Grid = tuple[int, int]
"""(H, W): rows and columns of patches."""


class Rotation(NamedTuple):
    """Cosine and signed sine of every token's angles, ready for `rotate`; broadcastable to [..., D]."""

    cos: Tensor
    sin: Tensor
    """Negated in the first half of its channels, so that rotation is `x cos + roll(x) sin`."""


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate channel pairs (c, c + D/2) of `x` [..., D]; computed in float32 at least, returned in the dtype of `x`."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * rotation.cos, swapped, rotation.sin).to(x.dtype)


def patch_coordinates(grid: Grid, mode: Literal["separate", "min", "max"], device: torch.device | str) -> Tensor:
    """Patch centres in [-1, 1] as [H, W, 2] float32 (row, column); row 0 is the top of the image.

    Centres i + 0.5 are divided by the side they run along ("separate") or by the shorter ("min") or longer ("max")
    side of the grid, then mapped from [0, 1] to [-1, 1]; "min" thus leaves [-1, 1] along the longer side.
    """
    height, width = grid
    shared = {"min": min(grid), "max": max(grid)}
    rows = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / shared.get(mode, height)
    columns = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / shared.get(mode, width)
    return 2.0 * torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1) - 1.0


class RopePositionEmbedding(nn.Module):
    """Tables of rotations for any grid; holds the `periods` [D/4], period_j = base^(4j / D), as a persistent buffer.

    Args:
        head_dim: channels D of one attention head, a multiple of 4.
        base: largest period (exclusive), in units of the coordinates' half range.
        coords: see `patch_coordinates`.
        shift, jitter, rescale: training-time augmentation of the coordinates, None for off (see `ViTConfig`).
    """

    periods: Tensor

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 100.0,
        coords: Literal["separate", "min", "max"] = "separate",
        shift: float | None = None,
        jitter: float | None = None,
        rescale: float | None = None,
    ) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base
        self.coords: Literal["separate", "min", "max"] = coords
        self.shift, self.jitter, self.rescale = shift, jitter, rescale
        self.register_buffer("periods", torch.empty(head_dim // 4))
        self.reset_periods()

    def reset_periods(self) -> None:
        """Fill `periods` from base and head_dim."""
        # Plain floats: tensor arithmetic in a `torch.device` context would import torch._dynamo, seconds for nothing.
        values = [self.base ** (4 * j / self.head_dim) for j in range(self.head_dim // 4)]
        self.periods.copy_(torch.tensor(values, dtype=torch.float32, device=self.periods.device))

    @property
    def augments(self) -> bool:
        """Whether coordinates are augmented now: in training, with shift, jitter or rescale on."""
        return self.training and any(value is not None for value in (self.shift, self.jitter, self.rescale))

    def forward(
        self, grid: Grid, *, prefix: int = 0, draws: int = 1, generator: torch.Generator | None = None
    ) -> Rotation:
        """Rotations of `prefix` unrotated tokens followed by the H W patches of `grid`, row-major.

        Args:
            grid: (H, W) in patches.
            prefix: number of leading tokens that keep their direction (angle 0).
            draws: number of independent augmentations; without augmentation one table serves all.
            generator: source of the augmentation's randomness; needed only while `augments`.

        Returns cos and signed sin, each [draws or 1, prefix + H W, D], float32.
        """
        coordinates = patch_coordinates(grid, self.coords, self.periods.device)[None]
        if self.augments:
            coordinates = self._augment(coordinates, draws, generator)
        angles = 2.0 * math.pi * coordinates[..., None] / self.periods.float()
        angles = nn.functional.pad(angles.flatten(1, 2).flatten(2), (0, 0, prefix, 0))
        cos, sin = angles.cos(), angles.sin()
        return Rotation(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))

    def _augment(self, coordinates: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        """Shift, then jitter, then rescale coordinates [1, H, W, 2], once per draw: [draws, H, W, 2]."""
        if generator is None:
            raise ValueError(
                "RoPE augmentation is on in training mode but there is no generator to draw from. "
                "Set `model.generator = torch.Generator().manual_seed(seed)`, or call `model.eval()`."
            )
        unit = 2.0 * torch.rand(draws, 5, generator=generator, device=generator.device) - 1.0
        unit = unit.to(coordinates.device).view(draws, 1, 1, 5)
        if self.shift is not None:
            coordinates = coordinates + unit[..., 0:2] * self.shift
        if self.jitter is not None:
            coordinates = coordinates * torch.exp(unit[..., 2:4] * math.log(self.jitter))
        if self.rescale is not None:
            coordinates = coordinates * torch.exp(unit[..., 4:5] * math.log(self.rescale))
        return coordinates
