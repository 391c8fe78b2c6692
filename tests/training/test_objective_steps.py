"""One training step of each objective equals its formulas, written out in float64 on a copy of the networks.

Augmentation and stochastic depth are fixed. Heads, assignments and sums are plain operations on the weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from training.config import Objectives
from training.data.batch import Batch
from training.optim import OptimConfig, build_optimizer
from training.phases import Phase
from training.phases.contrast import Contrast, ContrastConfig
from training.phases.pretrain import Pretrain
from training.recipes import RECIPES
from training.schedules import constant
from training.trainer import LoopConfig, Trainer
from workbench.backbones import ViTConfig

IMAGES = 5
BACKBONE = ViTConfig.vit_nano(embed_dim=32, depth=2, num_heads=2, ffn_hidden=64)


def objective(recipe: str) -> Objectives:
    """The objective of a recipe on a smaller network, without ramps, with a teacher that follows quickly."""
    config = replace(RECIPES[recipe].build().objective, backbone=BACKBONE, momentum=constant(0.7))
    if isinstance(config, ContrastConfig):
        return replace(config, queue_length=7).resolve(10, IMAGES)
    return replace(config, ibot_warmup_steps=0).resolve(10, IMAGES)


def batch_of(step: int, locals_: int) -> Batch:
    """Crops that differ from step to step; of the global crops' masks some are empty."""
    generator = torch.Generator().manual_seed(step)
    masks = torch.rand(2 * IMAGES, 4, 6, generator=generator) < 0.4
    masks[::3] = False
    return Batch(
        torch.randn(2 * IMAGES, 3, 32, 48, generator=generator),
        torch.randn(locals_ * IMAGES, 3, 24, 24, generator=generator),
        masks,
        torch.arange(IMAGES),
        step,
        0.0,
    )


def trainer_of(phase: Phase) -> SimpleNamespace:
    """What `Trainer._optimize` needs of a trainer, without a run directory."""
    optim = OptimConfig(lr=constant(1e-3), layer_decay=1.0, lr_scaling="none").resolve(10, IMAGES)
    optimizer = build_optimizer(phase.trainable(), optim, BACKBONE.depth)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    skipped: list[str] = []
    return SimpleNamespace(
        phase=phase,
        optim=optim,
        optimizer=optimizer,
        device=torch.device("cpu"),
        loop=LoopConfig(),
        step=0,
        bad_steps=0,
        skipped=skipped,
        _skip=lambda what: skipped.append(what) or {},
    )


def step_of(trainer: SimpleNamespace, batch: Batch) -> dict[str, float]:
    """One real step; the record as numbers."""
    record = Trainer._optimize(trainer, batch)  # pyright: ignore[reportArgumentType]
    trainer.step += 1
    return {name: float(value) for name, value in record.items()}


def state(phase: Phase) -> dict[str, Tensor]:
    return {f"{m}.{k}": v.clone() for m, module in phase.modules().items() for k, v in module.state_dict().items()}


# ---- the formulas ---------------------------------------------------------------------------------------------------


def unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum(-1, keepdim=True).sqrt()


def embedding(head: nn.Module, x: Tensor) -> Tensor:
    """An MLP with ReLU and, where it has no biases, BatchNorm by the statistics of the rows at hand."""
    weights = {name: value.double() for name, value in head.state_dict().items()}
    layers = sum(name.endswith("weight") and "linear" in name for name in weights)
    for i in range(layers):
        x = x @ weights[f"mlp.linear{i}.weight"].T
        if f"mlp.linear{i}.bias" in weights:
            x = x + weights[f"mlp.linear{i}.bias"]
        else:
            mean = x.sum(0) / len(x)
            variance = (x - mean).pow(2).sum(0) / len(x)
            x = (x - mean) / (variance + 1e-5).sqrt()
        if f"mlp.norm{i}.weight" in weights:
            x = x * weights[f"mlp.norm{i}.weight"] + weights[f"mlp.norm{i}.bias"]
        if i < layers - 1:
            x = x * (x > 0)
    return x


def prototypes(head: nn.Module, x: Tensor) -> Tensor:
    """Three layers with GELU, unit length, prototypes: plain, or length times direction."""
    weights = {name: value.double() for name, value in head.state_dict().items()}
    for i in (0, 2, 4):
        x = x @ weights[f"mlp.{i}.weight"].T + weights[f"mlp.{i}.bias"]
        if i < 4:
            x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    if "last_layer.weight" in weights:
        return unit(x) @ weights["last_layer.weight"].T
    return unit(x) @ (weights["last_layer.weight_g"] * unit(weights["last_layer.weight_v"])).T


def softmax(row: Tensor) -> Tensor:
    e = torch.exp(row - row.max())
    return e / e.sum()


def info_nce(query: Tensor, candidates: Tensor, positive: int, temperature: float) -> Tensor:
    return -torch.log(softmax((unit(candidates) @ unit(query)) / temperature)[positive])


def sinkhorn(logits: Tensor, temperature: float) -> Tensor:
    q = torch.exp(logits / temperature).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double().eval()


def simclr(phase: Contrast, batch: Batch) -> Tensor:
    z = embedding(phase.student.projector, double(phase.student.backbone)(batch.globals_.double()).cls)
    terms = []
    for i in range(2 * IMAGES):
        others = [k for k in range(2 * IMAGES) if k != i]
        terms.append(info_nce(z[i], z[others], others.index((i + IMAGES) % (2 * IMAGES)), phase.config.temperature))
    return torch.stack(terms).mean()


def moco_v2(phase: Contrast, batch: Batch) -> Tensor:
    assert phase.teacher is not None
    assert phase.queue is not None
    first, second = batch.globals_.double().chunk(2)
    queries = embedding(phase.student.projector, double(phase.student.backbone)(first).cls)
    keys = embedding(phase.teacher.projector, double(phase.teacher.backbone)(second).cls)
    terms = []
    for q, k in zip(queries, keys, strict=True):
        terms.append(info_nce(q, torch.cat([k[None], phase.queue.keys.double()]), 0, phase.config.temperature))
    return torch.stack(terms).mean()


def moco_v3(phase: Contrast, batch: Batch) -> Tensor:
    assert phase.teacher is not None
    assert phase.predictor is not None
    total = torch.zeros((), dtype=torch.float64)
    views = batch.globals_.double().chunk(2)
    student, teacher = double(phase.student.backbone), double(phase.teacher.backbone)
    for a, b in ((views[0], views[1]), (views[1], views[0])):
        queries = embedding(phase.predictor, embedding(phase.student.projector, student(a).cls))
        keys = embedding(phase.teacher.projector, teacher(b).cls)
        terms = [info_nce(q, keys, i, phase.config.temperature) for i, q in enumerate(queries)]
        total = total + 2 * phase.config.temperature * torch.stack(terms).mean()
    return total


def crop_pairs(student_logits: Tensor, targets: Tensor, crops: int) -> Tensor:
    """Mean over images and pairs of different crops of -sum p_t log p_s (DINO, equation 3)."""
    terms = []
    for i in range(crops):
        for j in range(2):
            if i != j:
                for b in range(IMAGES):
                    logp = torch.log(softmax(student_logits[i * IMAGES + b] / 0.1))
                    terms.append(-(targets[j * IMAGES + b] * logp).sum())
    return torch.stack(terms).mean()


def dinov1(phase: Pretrain, batch: Batch) -> Tensor:
    student, teacher = double(phase.student.backbone), double(phase.teacher.backbone)
    teacher_logits = prototypes(phase.teacher.dino_head, teacher(batch.globals_.double()).cls)
    centre = phase.centers["dino"].double()[0]
    targets = torch.stack([softmax((row - centre) / 0.04) for row in teacher_logits])
    cls = torch.cat([student(crops.double()).cls for crops in (batch.globals_, batch.locals_)])
    return crop_pairs(prototypes(phase.student.dino_head, cls), targets, len(cls) // IMAGES)


def dinov2(phase: Pretrain, batch: Batch) -> Tensor:
    student, teacher = double(phase.student.backbone), double(phase.teacher.backbone)
    t, s = teacher(batch.globals_.double()), student(batch.globals_.double(), batch.masks)
    cls = torch.cat([s.cls, student(batch.locals_.double()).cls])
    targets = sinkhorn(prototypes(phase.teacher.dino_head, t.cls), 0.03)
    dino = crop_pairs(prototypes(phase.student.dino_head, cls), targets, len(cls) // IMAGES)
    patch_targets = sinkhorn(prototypes(phase.teacher.ibot_head, t.patches[batch.masks]), 0.03)
    ibot, row = torch.zeros((), dtype=torch.float64), 0
    for crop in range(2 * IMAGES):
        masked = s.patches[crop][batch.masks[crop]]
        for patch in masked:
            logp = torch.log(softmax(prototypes(phase.student.ibot_head, patch) / 0.1))
            ibot = ibot - (patch_targets[row] * logp).sum() / len(masked) / (2 * IMAGES)
            row += 1
    koleo = torch.zeros((), dtype=torch.float64)
    for crop in s.cls.chunk(2):
        x = unit(crop)
        for i in range(IMAGES):
            nearest = min((x[i] - x[j]).norm() for j in range(IMAGES) if j != i)
            koleo = koleo - torch.log(nearest) / IMAGES
    return dino + 0.3 * ibot + 0.1 * koleo


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "cpu_dinov1": dinov1,
    "cpu_dinov2": dinov2,
    "cpu_simclr": simclr,
    "cpu_mocov2": moco_v2,
    "cpu_mocov3": moco_v3,
}


def ready(recipe: str) -> SimpleNamespace:
    """A trainer two steps into its run: the teacher lags behind, centre and queue hold something."""
    phase = objective(recipe).build(seed=3)
    if isinstance(phase, Pretrain) and phase.config.ibot_weight:  # DINOv2 trains the lengths: none is 1 any more
        for networks in (phase.student, phase.teacher):
            nn.init.uniform_(
                networks.dino_head.last_layer.weight_g, 0.5, 2.0, generator=torch.Generator().manual_seed(1)
            )
    trainer = trainer_of(phase)
    for step in range(2):
        step_of(trainer, batch_of(step, 3 if isinstance(phase, Pretrain) else 0))
    return trainer


@pytest.mark.parametrize("recipe", FORMULAS)
def test_a_step_costs_what_the_formulas_say(recipe: str) -> None:
    trainer = ready(recipe)
    phase = trainer.phase
    batch = batch_of(2, 3 if isinstance(phase, Pretrain) else 0)
    with torch.no_grad():
        expected = FORMULAS[recipe](phase, batch)
    before = state(phase)
    record = step_of(trainer, batch)
    assert trainer.skipped == []
    assert record["loss/total"] == pytest.approx(expected.item(), rel=1e-5)
    after = state(phase)
    moved = {name.partition(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert moved == set(phase.modules()) - ({"centers"} if recipe == "cpu_dinov2" else set())


@pytest.mark.parametrize("recipe", FORMULAS)
def test_a_step_follows_the_gradient_of_the_formulas(recipe: str) -> None:
    """Along a random direction the loss of the formulas changes as fast as the gradient of the real step says."""
    trainer = ready(recipe)
    phase, generator = trainer.phase, torch.Generator().manual_seed(5)
    batch = batch_of(2, 3 if isinstance(phase, Pretrain) else 0)
    parameters = [p for part in phase.trainable().values() for p in part.parameters() if p.requires_grad]
    trainer.optimizer.zero_grad()
    phase.losses(batch, 2).total.backward()
    slope = 0.0
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    for parameter, direction in zip(parameters, directions, strict=True):
        assert parameter.grad is not None
        slope += float((parameter.grad.double() * direction).sum())
        parameter.data = parameter.data.double()
    values, step = [], 1e-7
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=sign * step * (1 if sign > 0 else 2))
            values.append(FORMULAS[recipe](phase, batch).item())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("recipe", FORMULAS)
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_leaves_everything_alone(recipe: str, where: str) -> None:
    trainer = ready(recipe)
    phase = trainer.phase
    batch = batch_of(2, 3 if isinstance(phase, Pretrain) else 0)
    before, ages = state(phase), copy.deepcopy(trainer.optimizer.state_dict()["state"])
    if where == "loss":
        step_of(trainer, batch._replace(globals_=batch.globals_ * float("nan")))
    else:
        original = phase.losses
        phase.losses = lambda b, step: _exploding(original(b, step))
        step_of(trainer, batch)
        phase.losses = original
    assert len(trainer.skipped) == 1
    assert all(torch.equal(value, before[name]) for name, value in state(phase).items())
    now = trainer.optimizer.state_dict()["state"]
    assert all(torch.equal(now[i][name], value) for i, values in ages.items() for name, value in values.items())
    with torch.no_grad():
        expected = FORMULAS[recipe](phase, batch)
    assert step_of(trainer, batch)["loss/total"] == pytest.approx(expected.item(), rel=1e-5), "the next step is whole"


def _exploding(outcome):
    outcome.total.register_hook(lambda gradient: gradient * float("inf"))
    return outcome
