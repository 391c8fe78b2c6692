"""Self-distillation pretraining: DINO on class tokens, iBOT on masked patches, KoLeo on the batch.

Sources: DINO (Caron et al. 2021, Alg. 1), iBOT (Zhou et al. 2022, Eq. 2-3), DINOv2 (Oquab et al. 2023, Sec. 4),
DINOv3 (Simeoni et al. 2025, Sec. 3). Defaults follow the code that trained the released weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from training.data.batch import Batch
from training.ema import copy_weights, update_teacher
from training.heads import HeadConfig, ProjectionHead
from training.losses import (
    PrototypeLogits,
    dino_loss,
    dse_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
    softmax_center,
    update_center,
)
from training.phases.phase import StepLosses
from training.phases.stress import StressConfig, leak_loss
from training.schedules import Schedule, constant, to_steps
from workbench.backbones import VisionTransformer, ViTConfig
from workbench.features import Features


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Networks, loss weights and teacher schedules of the `pretrain` phase."""

    phase: ClassVar[str] = "pretrain"
    backbone: ViTConfig = field(default_factory=ViTConfig)
    dino_head: HeadConfig = field(default_factory=HeadConfig)
    ibot_head: HeadConfig = field(default_factory=HeadConfig)
    initialisation: Literal["official", "fan-in"] = "official"
    """"official": normal with std 0.02; "fan-in": std from the layer width, which narrow networks need to learn."""
    dino_weight: float = 1.0
    local_weight: Schedule = field(default_factory=lambda: constant(1.0))
    """Factor of the local crops' share of the DINO loss; the global crops' share stays as it is."""
    ibot_weight: float = 1.0
    ibot_warmup_steps: int | float = 0
    """The iBOT weight rises linearly from 0 over so many steps (a float below 1: fraction of the run); an untrained
    patch head smooths patches."""
    koleo_weight: float = 0.1
    koleo_group: int | None = None
    """Samples among which the nearest neighbour is sought; None: the whole batch."""
    dse_weight: float = 0.0
    """Weight of the DSE regulariser on the student's patches, an alternative to Gram anchoring; 0: off."""
    centering: Literal["sinkhorn", "softmax"] = "sinkhorn"
    student_temperature: float = 0.1
    teacher_temperature: Schedule = field(default_factory=lambda: constant(0.07))
    momentum: Schedule = field(default_factory=lambda: constant(0.994))
    stress: StressConfig = field(default_factory=StressConfig)
    """Induced degradation, for the lab; off by default."""

    def __post_init__(self) -> None:
        temperatures = (self.student_temperature, *self.teacher_temperature.extremes())
        if not all(math.isfinite(value) and value > 0 for value in temperatures):
            raise ValueError(
                f"PretrainConfig: student temperature and the levels of the teacher's schedule are {temperatures}; all "
                "must be above 0. A warm-up begins at teacher_temperature.start."
            )
        for name in ("dino_weight", "ibot_weight", "koleo_weight", "dse_weight", "ibot_warmup_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"PretrainConfig.{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.koleo_group is not None and self.koleo_group < 2:
            raise ValueError(
                f"PretrainConfig.koleo_group is {self.koleo_group}; give 2 or more, or None for the whole batch."
            )
        if not all(0 <= value <= 1 for value in self.momentum.extremes()):
            raise ValueError(f"PretrainConfig.momentum has levels {self.momentum.extremes()}; all must lie in [0, 1].")
        if not all(0 <= value < math.inf for value in self.local_weight.extremes()):
            raise ValueError(f"PretrainConfig.local_weight has levels {self.local_weight.extremes()}; 0 is the least.")

    @property
    def masked(self) -> bool:
        """Masks are drawn only if iBOT uses them."""
        return bool(self.ibot_weight)

    @property
    def references(self) -> Mapping[str, str]:
        """See `Objective.references`."""
        return {}

    def build(self, *, seed: int, device: str = "cpu") -> Pretrain:
        """See `Objective.build`."""
        return Pretrain(self, seed=seed, device=device)

    def resolve(self, total_steps: int, batch_size: int) -> Self:
        """See `Objective.resolve`."""
        if self.koleo_group is not None and batch_size % self.koleo_group:
            raise ValueError(
                f"objective.koleo_group is {self.koleo_group}, which does not divide batch.batch_size {batch_size}; "
                "choose a divisor, or None for the whole batch."
            )
        return replace(
            self,
            ibot_warmup_steps=to_steps(self.ibot_warmup_steps, total_steps),
            local_weight=self.local_weight.resolve(total_steps),
            teacher_temperature=self.teacher_temperature.resolve(total_steps),
            momentum=self.momentum.resolve(total_steps),
        )


class Networks(nn.Module):
    """A backbone with its two projection heads: the student, and the same again as the teacher.

    Under `with torch.device("meta")` nothing is allocated or drawn.
    """

    def __init__(self, config: PretrainConfig, generator: torch.Generator):
        super().__init__()
        std = 0.02 if config.initialisation == "official" else None
        self.backbone = VisionTransformer(config.backbone)
        self.dino_head = ProjectionHead(config.backbone.embed_dim, config.dino_head)
        self.ibot_head = ProjectionHead(config.backbone.embed_dim, config.ibot_head)
        if self.backbone.cls_token.is_meta:
            return  # shapes only, nothing to fill
        for module in (self.backbone, self.dino_head, self.ibot_head):
            module.init_weights(generator, std=std)


class Views(NamedTuple):
    """What the networks made of a batch."""

    globals_: Features
    """The student's, of the global crops with their masks applied."""
    locals_: Features
    """The student's, of the local crops."""
    teacher: Features
    """The EMA teacher's, of the global crops, unmasked, without a graph."""
    masks: Tensor | None
    """[G*B, H, W] bool: which patches of the global crops the student did not see; None: it saw all."""


class Term(NamedTuple):
    """One part of the total loss."""

    weight: float
    value: Tensor


class Pretrain:
    """The `pretrain` phase: a student learns its EMA teacher's prototype assignments."""

    def __init__(self, config: PretrainConfig, *, seed: int, device: str = "cpu"):
        self.config = config
        self.name = config.phase
        self.student = Networks(config, torch.Generator().manual_seed(seed)).to(device)
        self.teacher = Networks(config, torch.Generator().manual_seed(seed)).to(device)
        copy_weights(self.teacher, self.student)
        self.teacher.eval()
        self.student.train()
        self.network_generator = torch.Generator().manual_seed(seed + 1)
        self.student.backbone.generator = self.network_generator
        self.centers = nn.ParameterDict(
            {
                "dino": nn.Parameter(torch.zeros(1, config.dino_head.prototypes, device=device), requires_grad=False),
                "ibot": nn.Parameter(torch.zeros(1, config.ibot_head.prototypes, device=device), requires_grad=False),
            }
        )
        self._next_centers: dict[str, Tensor] = {}

    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "teacher": self.teacher, "centers": self.centers}

    def trainable(self) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {"backbone": self.student.backbone, "dino_head": self.student.dino_head}
        return parts | ({"ibot_head": self.student.ibot_head} if self.config.ibot_weight else {})

    def generators(self) -> dict[str, torch.Generator]:
        return {"networks": self.network_generator}

    def backbones(self) -> dict[str, VisionTransformer]:
        return {"teacher": self.teacher.backbone}

    def after_step(self, step: int) -> dict[str, float]:
        momentum = self.config.momentum(step)
        update_teacher(self.teacher, self.student, momentum)
        for name, center in self._next_centers.items():
            self.centers[name].copy_(center)
        record = {"teacher/momentum": momentum}
        if "dino" in self._next_centers:
            record["teacher/center_norm"] = float(self.centers["dino"].norm())
        return record

    def losses(self, batch: Batch, step: int) -> StepLosses:
        """Total loss of one batch: crops are crop-major, `batch.globals_` [G*B, 3, g, g], masks [G*B, H, W]."""
        self._next_centers = {}
        views = self._views(batch)
        terms, record = self._terms(batch, views, step)
        total = sum((term.weight * term.value for term in terms.values()), views.globals_.cls.new_zeros(()))
        record = {f"loss/{name}": term.value for name, term in terms.items()} | record | {"loss/total": total}
        return StepLosses(total, {name: value.detach() for name, value in record.items()})

    def _views(self, batch: Batch) -> Views:
        masks = batch.masks if self.config.ibot_weight else None
        with torch.no_grad():
            teacher = self.teacher.backbone(batch.globals_)
        return Views(*self._student(batch, masks), teacher, masks)

    def _terms(self, batch: Batch, views: Views, step: int) -> tuple[dict[str, Term], dict[str, Tensor]]:
        """The parts of the total loss by name, and what else is worth a record."""
        config, images = self.config, len(batch.indices)
        targets, patch_targets = self._targets(views, config.teacher_temperature(step))
        crops = views.globals_.cls.shape[0] // images
        cls = torch.cat([views.globals_.cls, views.locals_.cls])
        local_weight = config.local_weight(step)
        dino = self._dino(cls.unflatten(0, (-1, images)), targets.unflatten(0, (crops, images)), local_weight)
        koleo = sum((self._koleo(cls) for cls in views.globals_.cls.chunk(crops)), dino.new_zeros(()))
        terms = {"dino": Term(config.dino_weight, dino), "koleo": Term(config.koleo_weight, koleo)}
        if views.masks is not None and patch_targets is not None:
            ibot = self._ibot(views.globals_.patches, views.masks, patch_targets)
            terms["ibot"] = Term(config.ibot_weight * self._ibot_ramp(step), ibot)
        if config.dse_weight:
            terms["dse"] = Term(config.dse_weight, self._dse(views.globals_.patches, crops))
        record = _assignment_statistics(targets)
        if config.stress.leak_weight:
            terms["leak"] = Term(config.stress.leak_weight, self._leak(views.globals_.patches, targets))
            record["induced/leak_weight"] = torch.tensor(config.stress.leak_weight)
        return terms, record

    def _student(self, batch: Batch, masked: Tensor | None) -> tuple[Features, Features]:
        if not len(batch.locals_):
            features = self.student.backbone.forward_groups([batch.globals_], [masked])[0]
            return features, features._replace(cls=features.cls[:0])
        groups = self.student.backbone.forward_groups([batch.globals_, batch.locals_], [masked, None])
        return groups[0], groups[1]

    @torch.no_grad()
    def _targets(self, views: Views, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Teacher probabilities: class tokens [G*B, K] and, when iBOT is on, masked patches [M, K]."""
        cls = self._assign(self.teacher.dino_head, views.teacher.cls, temperature, "dino")
        if views.masks is None:
            return cls, None
        return cls, self._assign(self.teacher.ibot_head, views.teacher.patches[views.masks], temperature, "ibot")

    def _assign(self, head: ProjectionHead, tokens: Tensor, temperature: float, center: str) -> Tensor:
        if self.config.centering == "sinkhorn":
            return sinkhorn_knopp(PrototypeLogits(head.embed(tokens), head.prototypes()), temperature)
        logits = head(tokens)
        probabilities = softmax_center(logits, self.centers[center], temperature)
        updated = update_center(self.centers[center].clone(), logits)
        if torch.isfinite(updated).all():  # taken over in after_step: a skipped step must not move the centre
            self._next_centers[center] = updated
        return probabilities

    def _dino(self, cls: Tensor, targets: Tensor, local_weight: float) -> Tensor:
        """Mean cross-entropy over (student crop, teacher crop) pairs, same-crop pairs left out (DINO Alg. 1).

        cls [S, B, D] with the T global crops first, targets [T, B, K]. One global crop meets local crops only.
        Pairs with a local crop count `local_weight` times; what is divided by stays the number of pairs (DINOv3).
        """
        crops, temperature = targets.shape[0], self.config.student_temperature
        x, prototypes = self.student.dino_head.embed(cls), self.student.dino_head.prototypes()
        if crops == 1:
            among_locals = dino_loss(PrototypeLogits(x[1:], prototypes), targets, student_temperature=temperature)
            return local_weight * among_locals
        logits = PrototypeLogits(x[:crops], prototypes)
        among = dino_loss(logits, targets, student_temperature=temperature, ignore_diagonal=True)
        if cls.shape[0] == crops:
            return among
        across = dino_loss(PrototypeLogits(x[crops:], prototypes), targets, student_temperature=temperature)
        pairs_among, pairs_across = crops * (crops - 1), (cls.shape[0] - crops) * crops
        return (pairs_among * among + local_weight * pairs_across * across) / (pairs_among + pairs_across)

    def _koleo(self, cls: Tensor) -> Tensor:
        """KoLeo of one crop, cls [B, D]: the mean over groups of `koleo_group` samples that follow one another."""
        if self.config.koleo_group is None:
            return koleo_loss(cls)
        return torch.stack([koleo_loss(group) for group in cls.split(self.config.koleo_group)]).mean()

    def _ibot(self, patches: Tensor, masks: Tensor, targets: Tensor) -> Tensor:
        """iBOT Eq. 2 on masked patches; patches [G*B, H, W, D], masks [G*B, H, W], targets [M, K]."""
        head = self.student.ibot_head
        logits = PrototypeLogits(head.embed(patches[masks]), head.prototypes())
        return ibot_loss(logits, targets, masks.flatten(1), student_temperature=self.config.student_temperature)

    def _dse(self, patches: Tensor, crops: int) -> Tensor:
        """Mean DSE loss of the global crops, each with those of the same number; patches [G*B, H, W, D]."""
        losses = [dse_loss(crop, generator=self.network_generator) for crop in patches.chunk(crops)]
        return torch.stack(losses).mean()

    def _leak(self, patches: Tensor, targets: Tensor) -> Tensor:
        """The induced stress on the global crops; patches [G*B, H, W, D], targets [G*B, K]."""
        return leak_loss(
            self.student.dino_head,
            patches,
            targets,
            tokens=self.config.stress.leak_tokens,
            temperature=self.config.student_temperature,
            generator=self.network_generator,
        )

    def _ibot_ramp(self, step: int) -> float:
        return min(1.0, (step + 1) / self.config.ibot_warmup_steps) if self.config.ibot_warmup_steps else 1.0


def _assignment_statistics(targets: Tensor) -> dict[str, Tensor]:
    """How the teacher spreads samples over prototypes; targets [N, K] probabilities.

    `teacher/entropy`: mean entropy of one sample's assignment, over ln K (0 one-hot, 1 uniform).
    `teacher/prototypes_used`: share of prototypes that are some sample's first choice, of the most possible.
    """
    count, prototypes = targets.shape
    entropy = torch.special.entr(targets).sum(-1).mean() / torch.log(torch.tensor(float(prototypes)))
    used = targets.argmax(-1).unique().numel() / min(count, prototypes)
    return {"teacher/entropy": entropy, "teacher/prototypes_used": torch.tensor(used)}
