"""What the training loop asks of a phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from training.data.batch import Batch
from workbench.backbones import VisionTransformer, ViTConfig

FORK = "fork"
"""Among `Objective.references`: the EMA teacher that the run starts with."""


class StepLosses(NamedTuple):
    """The outcome of one forward pass."""

    total: Tensor
    """Scalar with a graph: what is minimised."""
    record: dict[str, Tensor]
    """Detached scalars by metric name ("loss/dino", "teacher/entropy", …)."""


class Objective(Protocol):
    """The config of one objective: `TrainConfig.objective` holds one, a recipe says which."""

    phase: ClassVar[str]
    """Name of the phase on the command line and in run.json."""

    @property
    def backbone(self) -> ViTConfig: ...

    @property
    def masked(self) -> bool:
        """Whether batches need patch masks."""
        ...

    @property
    def references(self) -> Mapping[str, str]:
        """Frozen networks that come from elsewhere: a name of `Phase.modules` -> a `load_backbone` spec, or
        FORK. Loaded once, at step 0."""
        ...

    def resolve(self, total_steps: int, batch_size: int) -> Self:
        """For a run of `total_steps` steps of `batch_size` images: schedules get whole steps.

        Raises ValueError when the objective and the batch do not fit together.
        """
        ...

    def build(self, *, seed: int, device: str = "cpu") -> Phase:
        """The phase with freshly initialised networks."""
        ...


class Phase(Protocol):
    """One objective with its networks. Construct it, hand it to the loop; no registry in between."""

    name: str

    def modules(self) -> dict[str, nn.Module]:
        """Every network whose state must survive a resume, by name."""
        ...

    def trainable(self) -> dict[str, nn.Module]:
        """The sub-modules that the optimizer steps; gradients are clipped per entry."""
        ...

    def generators(self) -> dict[str, torch.Generator]:
        """Every source of randomness the phase draws from while training."""
        ...

    def losses(self, batch: Batch, step: int) -> StepLosses:
        """Forward pass on one batch. `step` counts optimizer steps done before this one."""
        ...

    def after_step(self, step: int) -> dict[str, float]:
        """Runs after a successful optimizer step (teacher update); returns numbers worth a record."""
        ...

    def backbones(self) -> dict[str, VisionTransformer]:
        """What is published to the run directory, by role; the first one is evaluated."""
        ...
