"""Mixed resolutions: the crop sizes of a step, drawn anew at each step and the same on every rank."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from training.data.augment import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class ResolutionMix:
    """Crop sizes to choose from at every step (DINOv3 section 5.1); all crops of a step have those of one choice."""

    choices: tuple[tuple[int, int, int, float], ...] = ()
    """(global, local, gram, probability): pixels, gram 0 for no Gram crops. Empty: the sizes of `augment` always."""

    def __post_init__(self) -> None:
        for choice in self.choices:
            if not 0 < choice[3] <= 1:
                raise ValueError(
                    f"ResolutionMix has a choice {choice}; the last number, its probability, is in (0, 1]."
                )
        total = math.fsum(choice[3] for choice in self.choices)
        if self.choices and not math.isclose(total, 1.0, abs_tol=1e-6):
            raise ValueError(f"ResolutionMix has probabilities that sum to {total:g}; they must sum to 1.")

    def variants(self, config: AugmentConfig) -> list[AugmentConfig]:
        """The augmentation of each choice; `config` itself when there is nothing to choose."""
        if not self.choices:
            return [config]
        return [
            replace(config, global_size=global_size, local_size=local_size, gram_size=gram_size or None)
            for global_size, local_size, gram_size, _ in self.choices
        ]

    def draw(self, generator: torch.Generator) -> int:
        """Index of a choice, from one number of `generator` (none is drawn without choices)."""
        if not self.choices:
            return 0
        number = torch.rand((), dtype=torch.float64, generator=generator).item()
        bounds = accumulate(choice[3] for choice in self.choices[:-1])
        return sum(number >= bound for bound in bounds)
