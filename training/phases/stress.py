"""An induced dense degradation: a labelled stressor, by which cures are tested within minutes.

It is this project's own and reproduces no published effect: what DINOv3 (section 4.1) and others saw in long trainings
came by itself. A run under it writes `loss/leak` and `induced/leak_weight`, and its config says `objective.stress`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.heads import ProjectionHead
from training.losses import PrototypeLogits, dino_loss


@dataclass(frozen=True, kw_only=True)
class StressConfig:
    """The induced degradation "leak": a few patch tokens of each global crop must also predict the crop's CLS target.

    Off by default. A patch that is asked for the prototypes of the whole image gives up what tells it from its
    neighbours: patches drift to the class token, near and far alike. The cause is known and can be switched off. What
    it leaves unlike the published degradation: image-level scores fall too, and the DINO loss rises
    (docs/degradation-lab.md).
    """

    leak_weight: float = 0.0
    """Weight of the induced loss; 0: no stress."""
    leak_tokens: int = 8
    """Patch tokens of each global crop that take part, drawn anew at every step; all of them when there are fewer."""

    def __post_init__(self) -> None:
        if not 0 <= self.leak_weight < math.inf:
            raise ValueError(f"StressConfig.leak_weight is {self.leak_weight}; it must be 0 (no stress) or more.")
        if self.leak_tokens < 1:
            raise ValueError(f"StressConfig.leak_tokens is {self.leak_tokens} patch tokens; give at least 1.")


def leak_loss(
    head: ProjectionHead,
    patches: Tensor,
    targets: Tensor,
    *,
    tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean cross-entropy of `tokens` random patches of each crop with the teacher's assignment of its class token.

    `patches` [N, H, W, D] of the student, `targets` [N, K] probabilities, `head` the student's DINO head. `generator`
    (on the CPU) draws which patches, without replacement. Induced stress, see `StressConfig`.
    """
    flat = patches.flatten(1, 2)
    keys = torch.rand(flat.shape[:2], generator=generator)
    chosen = keys.argsort(dim=1)[:, :tokens, None].to(flat.device)
    x = head.embed(flat.gather(1, chosen.expand(-1, -1, flat.shape[2]))).transpose(0, 1)
    return dino_loss(PrototypeLogits(x, head.prototypes()), targets[None], student_temperature=temperature)
