"""Pretraining by contrast: SimCLR, MoCo v2 and MoCo v3 on the same backbone, data and loop as self-distillation.

Sources: SimCLR (Chen et al. 2020, Alg. 1), MoCo (He et al. 2020, Alg. 1), MoCo v2 (Chen et al. 2020, Sec. 2), MoCo v3
(Chen, Xie, He 2021, Alg. 1 and Sec. 4). The image is its class token. Two global crops a sample, no local ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.batch import Batch
from training.ema import copy_weights, update_teacher
from training.heads import EmbeddingHead, EmbeddingHeadConfig
from training.losses import info_nce_loss, nt_xent_loss
from training.phases.phase import StepLosses
from training.phases.queue import KeyQueue
from training.schedules import Schedule, constant
from workbench.backbones import VisionTransformer, ViTConfig

Method = Literal["simclr", "moco_v2", "moco_v3"]


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Networks, temperature and teacher schedule of the contrastive objectives. `method` says how they play together:

    - "simclr": both views through the student; every other view of the batch is a negative.
    - "moco_v2": view 1 through the student, view 2 through the EMA teacher; keys of earlier batches are the negatives.
    - "moco_v3": both views through both, a predictor on the student; the other keys of the batch are the negatives.
    """

    phase: ClassVar[str] = "pretrain"
    method: Method = "moco_v3"
    backbone: ViTConfig = field(default_factory=ViTConfig)
    projector: EmbeddingHeadConfig = field(
        default_factory=lambda: EmbeddingHeadConfig(hidden=4096, out=256, layers=3, batch_norm=True)
    )
    predictor: EmbeddingHeadConfig = field(
        default_factory=lambda: EmbeddingHeadConfig(hidden=4096, out=256, layers=2, batch_norm=True)
    )
    """On top of the student's projector; MoCo v3 only."""
    initialisation: Literal["official", "fan-in"] = "official"
    """"official": normal with std 0.02; "fan-in": std from the layer width, which narrow networks need to learn."""
    temperature: float = 0.2
    momentum: Schedule = field(default_factory=lambda: constant(0.99))
    """EMA of the teacher (MoCo's momentum encoder)."""
    queue_length: int = 65536
    """Keys of earlier batches kept as negatives; MoCo v2 only."""
    freeze_patch_embed: bool = False
    """Keep the random patch projection as it is: without it, MoCo v3 saw gradient spikes start in that layer."""

    def __post_init__(self) -> None:
        if self.method not in ("simclr", "moco_v2", "moco_v3"):
            raise ValueError(f"ContrastConfig.method is {self.method!r}; choose simclr, moco_v2 or moco_v3.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"ContrastConfig.temperature is {self.temperature}; it must be above 0 (papers: 0.07-1).")
        if not all(0 <= value <= 1 for value in self.momentum.extremes()):
            raise ValueError(f"ContrastConfig.momentum has levels {self.momentum.extremes()}; all must lie in [0, 1].")
        if self.method == "moco_v3" and self.predictor.out != self.projector.out:
            raise ValueError(
                f"ContrastConfig.predictor.out is {self.predictor.out}, projector.out {self.projector.out}; a query is "
                "compared with keys of the projector, so they must be equal."
            )
        if self.queue_length < 1:
            raise ValueError(f"ContrastConfig.queue_length is {self.queue_length}; it must be at least 1 key.")

    @property
    def masked(self) -> bool:
        """No patch is hidden."""
        return False

    @property
    def references(self) -> Mapping[str, str]:
        """No frozen network is referred to."""
        return {}

    def build(self, *, seed: int, device: str = "cpu") -> Contrast:
        """See `Objective.build`."""
        return Contrast(self, seed=seed, device=device)

    def resolve(self, total_steps: int, batch_size: int) -> ContrastConfig:
        """See `Objective.resolve`."""
        if self.method == "moco_v2" and self.queue_length < batch_size:
            raise ValueError(
                f"objective.queue_length is {self.queue_length}, shorter than a batch of {batch_size} keys; "
                f"give at least {batch_size}."
            )
        if batch_size < 2 and (self.method != "moco_v2" or self.projector.batch_norm):
            raise ValueError(
                f"batch.batch_size is {batch_size}; {self.method} compares the images of a batch: take at least 2."
            )
        return replace(self, momentum=self.momentum.resolve(total_steps))


class Networks(nn.Module):
    """A backbone with its projector: the student, and the same again as the teacher."""

    def __init__(self, config: ContrastConfig, generator: torch.Generator):
        super().__init__()
        std = 0.02 if config.initialisation == "official" else None
        self.backbone = VisionTransformer(config.backbone)
        self.projector = EmbeddingHead(config.backbone.embed_dim, config.projector)
        for module in (self.backbone, self.projector):
            module.init_weights(generator, std=std)


class Contrast:
    """The `pretrain` phase with a contrastive objective; SimCLR has no teacher, MoCo v2 a queue, v3 a predictor."""

    name = ContrastConfig.phase

    def __init__(self, config: ContrastConfig, *, seed: int, device: str = "cpu"):
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        self.student = Networks(config, generator).to(device)
        self.student.backbone.patch_embed.requires_grad_(not config.freeze_patch_embed)
        self.network_generator = torch.Generator().manual_seed(seed + 1)
        self.student.backbone.generator = self.network_generator
        self.predictor: EmbeddingHead | None = None
        self.teacher: Networks | None = None
        self.queue: KeyQueue | None = None
        if config.method == "moco_v3":
            self.predictor = EmbeddingHead(config.projector.out, config.predictor)
            self.predictor.init_weights(generator, std=0.02 if config.initialisation == "official" else None)
            self.predictor.to(device)
        if config.method != "simclr":
            self.teacher = Networks(config, torch.Generator().manual_seed(seed)).to(device)
            copy_weights(self.teacher, self.student)
            self.teacher.eval()
        if config.method == "moco_v2":
            self.queue = KeyQueue(config.queue_length, config.projector.out, generator).to(device)
        self.student.train()
        self._next_keys: Tensor | None = None

    def modules(self) -> dict[str, nn.Module]:
        parts = {"student": self.student, "teacher": self.teacher, "predictor": self.predictor, "queue": self.queue}
        return {name: module for name, module in parts.items() if module is not None}

    def trainable(self) -> dict[str, nn.Module]:
        parts: dict[str, nn.Module] = {"backbone": self.student.backbone, "projector": self.student.projector}
        return parts | ({} if self.predictor is None else {"predictor": self.predictor})

    def generators(self) -> dict[str, torch.Generator]:
        return {"networks": self.network_generator}

    def backbones(self) -> dict[str, VisionTransformer]:
        """The trained encoder is what the papers evaluate; MoCo's momentum encoder is published beside it."""
        student = {"student": self.student.backbone}
        return student if self.teacher is None else student | {"teacher": self.teacher.backbone}

    def after_step(self, step: int) -> dict[str, float]:
        if self.teacher is None:
            return {}
        momentum = self.config.momentum(step)
        update_teacher(self.teacher, self.student, momentum)
        record = {
            "teacher/momentum": momentum,
            "teacher/student_distance": _relative_distance(self.teacher.backbone, self.student.backbone),
        }
        if self.queue is not None and self._next_keys is not None:  # not before: a skipped step must leave no keys
            self.queue.push(self._next_keys, step)
            record |= {"queue/filled": self.queue.filled(), "queue/age": self.queue.age(step)}
        return record

    def losses(self, batch: Batch, step: int) -> StepLosses:
        """Total loss of one batch; `batch.globals_` [2*B, 3, g, g], view 1 of all samples before view 2."""
        images = len(batch.indices)
        if len(batch.globals_) != 2 * images or len(batch.locals_):
            raise ValueError(
                f"contrast takes 2 global crops of each image and no local ones, but got {len(batch.globals_)} global "
                f"and {len(batch.locals_)} local crops of {images} images; set augment.global_crops 2, local_crops 0."
            )
        self._next_keys = None
        one_step = {"simclr": self._simclr, "moco_v2": self._moco_v2, "moco_v3": self._moco_v3}[self.config.method]
        total, record = one_step(batch.globals_)
        record |= {"loss/contrast": total, "loss/total": total}
        return StepLosses(total, {name: value.detach() for name, value in record.items()})

    def _simclr(self, views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Both views in one pass, so that BatchNorm in the projector sees all 2B of them."""
        z = self.student.projector(self.student.backbone(views).cls)
        first, second = z.chunk(2)
        with torch.no_grad():
            unit = F.normalize(z.float(), dim=-1)
            candidates = _cosines(unit, unit)
            itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
            partner = torch.arange(len(unit), device=unit.device).roll(len(first))
            record = _contrast_statistics(candidates.masked_fill(itself, -torch.inf), partner) | _spread(unit)
        return nt_xent_loss(first, second, temperature=self.config.temperature), record

    def _moco_v2(self, views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """View 1 asks, view 2 answers, the queue holds the wrong answers. The new keys join it after the step."""
        teacher, queue = cast(Networks, self.teacher), cast(KeyQueue, self.queue)
        first, second = views.chunk(2)
        query = self.student.projector(self.student.backbone(first).cls)
        with torch.no_grad():
            key = teacher.projector(teacher.backbone(second).cls)
            q, k = F.normalize(query.float(), dim=-1), F.normalize(key.float(), dim=-1)
            self._next_keys = k
            candidates = torch.cat([(q * k).sum(-1, keepdim=True), _cosines(q, queue.keys)], dim=1)
            record = _contrast_statistics(candidates, torch.zeros(len(q), dtype=torch.long, device=q.device))
        total = info_nce_loss(query, key, temperature=self.config.temperature, queue=queue.keys)
        return total, record | _spread(q)

    def _moco_v3(self, views: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Each view asks the other; BatchNorm sees one view at a time, as in two passes."""
        teacher, predictor = cast(Networks, self.teacher), cast(EmbeddingHead, self.predictor)
        tokens = self.student.backbone(views).cls
        queries = [predictor(self.student.projector(view)) for view in tokens.chunk(2)]
        with torch.no_grad():
            teacher_tokens = teacher.backbone(views).cls
            keys = [teacher.projector(view) for view in teacher_tokens.chunk(2)]
            q, k = F.normalize(queries[0].float(), dim=-1), F.normalize(keys[1].float(), dim=-1)
            record = _contrast_statistics(_cosines(q, k), torch.arange(len(q), device=q.device)) | _spread(q)
            record["teacher/student_cosine"] = F.cosine_similarity(tokens.float(), teacher_tokens.float()).mean()
        temperature = self.config.temperature
        total = info_nce_loss(queries[0], keys[1], temperature=temperature)
        return total + info_nce_loss(queries[1], keys[0], temperature=temperature), record


def _cosines(queries: Tensor, candidates: Tensor) -> Tensor:
    """[N, C] of unit vectors in float32. Under autocast they would be bfloat16, and the nearest ones tie."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ candidates.t()


def _contrast_statistics(candidates: Tensor, positives: Tensor) -> dict[str, Tensor]:
    """How well queries tell their positive from the rest; cosines [N, C] (-inf: no candidate), column of it [N].

    `contrast/accuracy`: share of queries nearest to their positive. `contrast/positive_cosine`,
    `contrast/negative_cosine`: mean over positives and over all others.
    """
    positive = candidates.gather(1, positives[:, None])
    others = candidates.isfinite().scatter(1, positives[:, None], False)
    return {
        "contrast/accuracy": (candidates.argmax(1) == positives).float().mean(),
        "contrast/positive_cosine": positive.mean(),
        "contrast/negative_cosine": candidates[others].mean() if others.any() else positive.new_zeros(()),
    }


def _spread(unit: Tensor) -> dict[str, Tensor]:
    """`contrast/spread`: standard deviation of unit vectors [N, D] over the batch, averaged over channels, times
    sqrt(D): 1 when they point everywhere, 0 when all are one (SimSiam section 4.1)."""
    return {"contrast/spread": unit.std(0, correction=0).mean() * math.sqrt(unit.shape[1])}


@torch.no_grad()
def _relative_distance(one: nn.Module, other: nn.Module) -> float:
    """L2 distance of two networks' parameters over the norm of the second one's."""
    ours, theirs = [list[Tensor](network.parameters()) for network in (one, other)]
    apart = torch._foreach_sub(ours, theirs)  # pyright: ignore[reportPrivateImportUsage]
    return float(nn.utils.get_total_norm(apart) / nn.utils.get_total_norm(theirs))
