"""Block-wise masks over patch grids, for iBOT."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How many crops are masked, how much of them, and in what blocks. The defaults are DINOv3's."""

    probability: float = 0.5
    """Share of the crops of a batch that are masked."""
    ratio: tuple[float, float] = (0.1, 0.5)
    """Smallest and largest share of a masked crop's patches; the crops of a batch spread evenly over it."""
    exact: bool = True
    """DINOv3: crop i of n has exactly int(patches * edge i+1) masked patches, single random patches filling up what
    blocks left open. False is DINOv2: at most int(patches * U(edge i, edge i+1)), blocks only."""
    min_aspect: float = 0.3
    """Blocks have height / width between this and its inverse."""
    min_patches: int = 4
    """Smallest area drawn for a block, in patches."""
    roll: bool = False
    """Shift each mask circularly by a random offset."""

    def __post_init__(self) -> None:
        low, high = self.ratio
        if not 0 <= self.probability <= 1:
            raise ValueError(f"MaskConfig.probability is {self.probability}; it must lie in [0, 1].")
        if not 0 <= low <= high <= 1:
            raise ValueError(f"MaskConfig.ratio is {self.ratio}; expected 0 <= smallest <= largest <= 1.")
        if not 0 < self.min_aspect <= 1:
            raise ValueError(f"MaskConfig.min_aspect is {self.min_aspect}; it must lie in (0, 1].")
        if self.min_patches < 1:
            raise ValueError(f"MaskConfig.min_patches is {self.min_patches}; it must be at least 1.")


def block_masks(count: int, grid: tuple[int, int], config: MaskConfig, generator: torch.Generator) -> Tensor:
    """Bool masks [count, H, W] on the CPU for `count` crops with patch grid (H, W); True is masked, row 0 is the top.

    int(count * probability) of them are masked, in random places of the batch; the rest are empty. One number is
    drawn from `generator`, whatever the masks turn out to be. Source: BEiT algorithm 1; DINOv2 and DINOv3 spread the
    ratios of a batch over equal bins.

    Raises ValueError when `count` is negative or the grid is empty.
    """
    H, W = grid
    if count < 0 or H < 1 or W < 1:
        raise ValueError(f"block_masks got {count} crops with grid {H} x {W}; expected count >= 0 and sides >= 1.")
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    rng = random.Random(int(seed))
    masked = int(count * config.probability)
    edges = np.linspace(*config.ratio, masked + 1)
    masks = np.zeros((count, H, W), dtype=bool)
    for i, crop in enumerate(rng.sample(range(count), masked)):
        share = edges[i + 1] if config.exact else rng.uniform(edges[i], edges[i + 1])
        _mask_blocks(masks[crop], int(H * W * share), config, rng)
        if config.roll:
            masks[crop] = np.roll(masks[crop], (rng.randrange(H), rng.randrange(W)), axis=(0, 1))
    return torch.from_numpy(masks)


def _mask_blocks(mask: np.ndarray, target: int, config: MaskConfig, rng: random.Random) -> None:
    """Fill an empty bool [H, W] with blocks up to `target` patches; with `config.exact`, then with single ones."""
    largest = int(0.5 * mask.size)
    missing = target
    while missing > 0:
        added = _add_block(mask, min(missing, largest), config, rng)
        if added == 0:
            break
        missing -= added
    if config.exact and missing > 0:
        free = np.flatnonzero(~mask).tolist()
        mask.reshape(-1)[rng.sample(free, missing)] = True


def _add_block(mask: np.ndarray, room: int, config: MaskConfig, rng: random.Random) -> int:
    """Mask one rectangle that adds 1 to `room` patches; returns how many it added, 0 after ten misses."""
    H, W = mask.shape
    log_aspect = math.log(config.min_aspect)
    for _ in range(_TRIES):
        area = rng.uniform(config.min_patches, room)
        aspect = math.exp(rng.uniform(log_aspect, -log_aspect))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h >= H or w >= W:
            continue
        top, left = rng.randint(0, H - h), rng.randint(0, W - w)
        block = mask[top : top + h, left : left + w]
        added = h * w - int(np.count_nonzero(block))
        if 0 < added <= room:
            block[:] = True
            return added
    return 0
