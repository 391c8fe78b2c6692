"""The pretrain phase: its total loss equals the formulas written out in float64, term by term."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from training.data.batch import Batch
from training.phases.pretrain import Pretrain, PretrainConfig
from training.schedules import Schedule, constant
from workbench.backbones import ViTConfig

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_config


def phase_and_batch(**changes) -> tuple[Pretrain, Batch]:
    config = tiny_config().objective
    config = replace(config, backbone=replace(config.backbone, drop_path=0.0, rope_rescale=None), **changes).resolve(
        100, 20
    )
    phase = Pretrain(config, seed=3)
    with torch.no_grad():  # a teacher that differs from its student
        for parameter in phase.teacher.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
    images, generator = 5, torch.Generator().manual_seed(1)
    masks = torch.zeros(2 * images, 6, 6, dtype=torch.bool)
    masks[:5, 1:4, 2:5] = True
    batch = Batch(
        torch.randn(2 * images, 3, 48, 48, generator=generator),
        torch.randn(3 * images, 3, 24, 24, generator=generator),
        masks,
        torch.arange(images),
        0,
        0.0,
    )
    return phase, batch


def sinkhorn64(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    q = torch.exp(logits / temperature).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def straight_line(phase: Pretrain, batch: Batch, temperature: float) -> torch.Tensor:
    """The same total, written down from the formulas: one loop for each sum."""
    student, teacher = copy.deepcopy(phase.student).double().eval(), copy.deepcopy(phase.teacher).double().eval()
    globals_, locals_, images = batch.globals_.double(), batch.locals_.double(), len(batch.indices)
    s, t = student.backbone(globals_, batch.masks), teacher.backbone(globals_)
    targets = sinkhorn64(teacher.dino_head(t.cls), temperature)
    crops = torch.cat([s.cls, student.backbone(locals_).cls])
    logp = F.log_softmax(student.dino_head(crops) / 0.1, dim=-1)
    pairs = []
    for i in range(5):
        for j in range(2):
            if i != j:
                for b in range(images):
                    pairs.append(-(targets[j * images + b] * logp[i * images + b]).sum())
    dino = torch.stack(pairs).mean()
    patch_targets = sinkhorn64(teacher.ibot_head(t.patches[batch.masks]), temperature)
    patch_logp = F.log_softmax(student.ibot_head(s.patches[batch.masks]) / 0.1, dim=-1)
    row, ibot = 0, 0.0
    for crop in range(2 * images):
        count = int(batch.masks[crop].sum())
        for _ in range(count):
            ibot = ibot - (patch_targets[row] * patch_logp[row]).sum() / count / (2 * images)
            row += 1
    koleo = 0.0
    for cls in s.cls.chunk(2):
        x = F.normalize(cls, eps=1e-8)
        for i in range(images):
            nearest = max(((x[i] @ x[j]).item(), j) for j in range(images) if j != i)[1]
            koleo = koleo - torch.log(torch.linalg.norm(x[i] - x[nearest] + 1e-8) + 1e-8) / images
    weights = phase.config
    return weights.dino_weight * dino + weights.ibot_weight * ibot + weights.koleo_weight * koleo


@pytest.mark.parametrize("ibot_weight", [1.0, 0.3])
def test_total_loss_equals_the_formulas_in_float64(ibot_weight: float):
    phase, batch = phase_and_batch(ibot_weight=ibot_weight, teacher_temperature=constant(0.05))
    total = phase.losses(batch, 0).total
    expected = straight_line(phase, batch, 0.05)
    assert math.isclose(total.item(), expected.item(), rel_tol=1e-5)


def test_every_trainable_parameter_learns_and_the_teacher_does_not():
    phase, batch = phase_and_batch(ibot_weight=1.0)
    phase.losses(batch, 0).total.backward()
    assert all(p.grad is not None for p in phase.student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in phase.teacher.parameters())
    before = [p.clone() for p in phase.teacher.parameters()]
    with torch.no_grad():
        for parameter in phase.student.parameters():
            parameter.sub_(0.1)
    momentum = phase.after_step(10_000)["teacher/momentum"]
    for old, new, student in zip(before, phase.teacher.parameters(), phase.student.parameters(), strict=True):
        torch.testing.assert_close(new, momentum * old + (1 - momentum) * student, rtol=1e-5, atol=1e-7)


def test_softmax_centering_moves_its_center_and_survives_a_bad_batch():
    phase, batch = phase_and_batch(centering="softmax", ibot_weight=1.0)
    phase.losses(batch, 0)
    assert all(value.abs().sum() == 0 for value in phase.centers.values()), "a step that is skipped moves nothing"
    phase.after_step(0)
    centers = {name: value.clone() for name, value in phase.centers.items()}
    assert all(value.abs().sum() > 0 for value in centers.values())
    phase.losses(batch._replace(globals_=batch.globals_ * float("nan")), 1)
    phase.after_step(1)
    assert all(torch.equal(value, centers[name]) for name, value in phase.centers.items())


def test_without_ibot_no_patch_is_masked_and_no_patch_head_is_trained():
    phase, batch = phase_and_batch(ibot_weight=0.0)
    losses = phase.losses(batch, 0)
    assert "loss/ibot" not in losses.record
    assert "ibot_head" not in phase.trainable()
    unmasked = phase.losses(batch._replace(masks=torch.zeros_like(batch.masks)), 0)
    assert torch.equal(losses.total, unmasked.total)


def test_the_ibot_ramp_reaches_its_weight():
    phase, _ = phase_and_batch(ibot_weight=1.0, ibot_warmup_steps=4)
    assert [phase._ibot_ramp(step) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]


def test_resolve_turns_fractions_into_steps():
    config = PretrainConfig(
        backbone=ViTConfig.vit_nano(), ibot_warmup_steps=0.5, momentum=Schedule(start=0.9, peak=0.99, warmup_steps=0.1)
    ).resolve(200, 32)
    assert config.ibot_warmup_steps == 100
    assert config.momentum.warmup_steps == 20


def test_koleo_of_groups_is_the_mean_of_what_each_group_gives():
    """Pairs (0, 1) and (2, 3) as groups: the only neighbour is the partner, however near a sample elsewhere is."""
    phase, _ = phase_and_batch(koleo_group=2)
    angles = torch.tensor([0.0, 1.0, 0.1, 2.0])
    cls = torch.stack([angles.cos(), angles.sin()], dim=1)
    chords = [2 * math.sin(0.5), 2 * math.sin(0.95)]
    assert phase._koleo(cls).item() == pytest.approx(-(math.log(chords[0]) + math.log(chords[1])) / 2, rel=1e-5)
    whole, batch = phase_and_batch(koleo_group=None)
    one_group, _ = phase_and_batch(koleo_group=5)
    assert one_group.losses(batch, 0).total.item() == pytest.approx(whole.losses(batch, 0).total.item(), rel=1e-6)


def test_one_global_crop_is_learnt_from_the_local_ones():
    phase, batch = phase_and_batch(ibot_weight=0.0, koleo_weight=0.0, teacher_temperature=constant(0.05))
    images = len(batch.indices)
    single = batch._replace(globals_=batch.globals_[:images], masks=batch.masks[:images])
    with torch.no_grad():
        targets = sinkhorn64(phase.teacher.dino_head(phase.teacher.backbone(single.globals_).cls).double(), 0.05)
        logits = phase.student.dino_head(phase.student.backbone(single.locals_).cls).double()
    logp = F.log_softmax(logits / phase.config.student_temperature, dim=-1).unflatten(0, (3, images))
    expected = -(targets * logp).sum(-1).mean()
    assert phase.losses(single, 0).total.item() == pytest.approx(expected.item(), rel=1e-4)
