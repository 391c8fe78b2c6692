"""Gram anchoring: pretraining goes on, while patch similarities are held to those of a Gram teacher.

High-resolution adaptation is the same with other crops (`training.data.mixing`) and another name. Sources: DINOv3
(Simeoni et al. 2025), sections 4.2, 4.3 and 5.1; where paper and released code differ, the code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.batch import Batch
from training.ema import copy_weights
from training.losses import gram_loss
from training.losses.gram import Negatives
from training.phases.phase import FORK
from training.phases.pretrain import Pretrain, PretrainConfig, Term, Views
from training.schedules import Schedule, constant, to_steps
from workbench.backbones import VisionTransformer

Level = Literal["image", "batch"]
Tokens = Literal["all", "masked", "unmasked"]
LIVE = "ema"


@dataclass(frozen=True, kw_only=True)
class GramConfig:
    """The Gram teacher and its loss. Steps may be fractions of the run (floats below 1)."""

    teacher: str = FORK
    """"fork": the EMA teacher that the run starts with; "ema": the live EMA teacher, on the crops it sees anyway;
    else whatever `load_backbone` opens with this architecture, such as run:PATH@step=N."""
    weight: Schedule = field(default_factory=lambda: constant(2.0))
    level: Level = "image"
    """Similarities among the patches of one image, or of the whole batch."""
    tokens: Tokens = "all"
    """Which patches: all, or those masked or not masked for the student (level "batch" only)."""
    normalize: bool = True
    """Compare cosines, not dot products."""
    negatives: Negatives = "keep"
    """"clamp" and "clamp_teacher" remove negative similarities, see `gram_loss`."""
    first_refresh: int | float = 0
    """Earliest step after which the EMA teacher becomes the Gram teacher."""
    refresh_every: int | float = 0
    """It does at steps done that are multiples of this; 0: never. A skipped bad step skips its refresh too."""
    max_refreshes: int | None = None
    """At most so many times; None: no limit."""

    def __post_init__(self) -> None:
        for name, allowed in (("level", Level), ("tokens", Tokens), ("negatives", Negatives)):
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise ValueError(f"GramConfig.{name} is {getattr(self, name)!r}; choose one of {choices}.")
        for name in ("first_refresh", "refresh_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"GramConfig.{name} is {getattr(self, name)} steps; it must be 0 or more.")
        if not all(0 <= value < math.inf for value in self.weight.extremes()):
            raise ValueError(f"GramConfig.weight has levels {self.weight.extremes()}; none may be below 0.")
        if self.tokens != "all" and self.level == "image":
            raise ValueError(f"GramConfig.tokens is {self.tokens!r}, which needs level 'batch', not 'image'.")
        if self.teacher == LIVE and self.refresh_every:
            raise ValueError("GramConfig.teacher is 'ema', which is always fresh; leave refresh_every at 0.")

    def resolve(self, total_steps: int) -> GramConfig:
        """Fractions become whole steps of a run of `total_steps`; of a short one `refresh_every` is at least 1 step."""
        every = to_steps(self.refresh_every, total_steps)
        return replace(
            self,
            weight=self.weight.resolve(total_steps),
            first_refresh=to_steps(self.first_refresh, total_steps),
            refresh_every=max(every, 1) if self.refresh_every else 0,
        )

    def refreshes(self, done: int) -> int:
        """How many times a resolved config has refreshed the Gram teacher when `done` steps are done."""
        if not self.refresh_every:
            return 0
        every, first = int(self.refresh_every), int(self.first_refresh)
        count = max(done // every - max(-(-first // every), 1) + 1, 0)
        return count if self.max_refreshes is None else min(count, self.max_refreshes)


@dataclass(frozen=True, kw_only=True)
class AnchorConfig(PretrainConfig):
    """Everything of pretraining, and Gram anchoring."""

    phase: ClassVar[str] = "anchor"
    gram: GramConfig = field(default_factory=GramConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gram.tokens != "all" and not self.masked:
            raise ValueError(
                f"GramConfig.tokens is {self.gram.tokens!r}, but nothing is masked: ibot_weight is 0. Raise it, or "
                "take 'all'."
            )

    @property
    def references(self) -> Mapping[str, str]:
        """See `Objective.references`."""
        return {} if self.gram.teacher == LIVE else {"gram": self.gram.teacher}

    def build(self, *, seed: int, device: str = "cpu") -> Anchor:
        """See `Objective.build`."""
        return Anchor(self, seed=seed, device=device)

    def resolve(self, total_steps: int, batch_size: int) -> Self:
        """See `Objective.resolve`."""
        return replace(super().resolve(total_steps, batch_size), gram=self.gram.resolve(total_steps))


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(AnchorConfig):
    """Adaptation to high and mixed resolutions: the same objective, under its own name."""

    phase: ClassVar[str] = "adapt"


class Anchor(Pretrain):
    """The `anchor` and `adapt` phases: `Pretrain` with a Gram term, whose teacher is one more frozen backbone."""

    config: AnchorConfig

    def __init__(self, config: AnchorConfig, *, seed: int, device: str = "cpu"):
        super().__init__(config, seed=seed, device=device)
        self.gram: VisionTransformer | None = None
        if config.references:
            self.gram = VisionTransformer(config.backbone).to(device)
            copy_weights(self.gram, self.teacher.backbone)
            self.gram.eval()

    def modules(self) -> dict[str, nn.Module]:
        return super().modules() | ({} if self.gram is None else {"gram": self.gram})

    def after_step(self, step: int) -> dict[str, float]:
        values, gram = super().after_step(step), self.config.gram
        refreshes = gram.refreshes(step + 1)
        if self.gram is not None and refreshes > gram.refreshes(step):
            copy_weights(self.gram, self.teacher.backbone)
        return values | {"gram/weight": gram.weight(step), "gram/refreshes": refreshes}

    def _terms(self, batch: Batch, views: Views, step: int) -> tuple[dict[str, Term], dict[str, Tensor]]:
        terms, record = super()._terms(batch, views, step)
        return terms | {"gram": Term(self.config.gram.weight(step), self._gram(batch, views))}, record

    def _gram(self, batch: Batch, views: Views) -> Tensor:
        """The Gram loss of the student's patches, masked ones as they came out, against the Gram teacher's."""
        gram, student = self.config.gram, views.globals_.patches
        teacher = resize_map(self._gram_patches(batch, views), (student.shape[1], student.shape[2]))
        if gram.tokens == "all":
            student, teacher = student.flatten(1, 2), teacher.flatten(1, 2)
        else:
            assert views.masks is not None
            chosen = views.masks if gram.tokens == "masked" else ~views.masks
            student, teacher = student[chosen][None], teacher[chosen][None]
        if not student.numel():
            return student.sum()
        return gram_loss(
            student, teacher, normalize=gram.normalize, per_image=gram.level == "image", negatives=gram.negatives
        )

    @torch.no_grad()
    def _gram_patches(self, batch: Batch, views: Views) -> Tensor:
        """[G*B, H', W', D]: of the Gram crops, or of the global crops where there are none."""
        if self.gram is None:
            return views.teacher.patches
        return self.gram(batch.gram if len(batch.gram) else batch.globals_).patches


def resize_map(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map of patch tokens [B, H', W', D] on another grid (H, W): bicubic, not antialiased, in at least float32.

    Source: DINOv3 section 4.3. The same tensor when the grid is right already.
    """
    if tuple(patches.shape[1:3]) == grid:
        return patches
    channels = patches.to(torch.promote_types(patches.dtype, torch.float32)).permute(0, 3, 1, 2)
    with torch.autocast(patches.device.type, enabled=False):
        resized = F.interpolate(channels, grid, mode="bicubic", align_corners=False, antialias=False)
    return resized.permute(0, 2, 3, 1)
