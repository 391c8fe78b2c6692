"""The EMA teacher against torch's own averaged model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.ema import copy_weights, update_teacher


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


def perturb(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_equals_torch_averaged_model_bit_for_bit() -> None:
    student = network(0)
    teacher = copy.deepcopy(student)
    averaged = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.97))
    averaged.update_parameters(student)  # the first call copies
    for _ in range(5):
        perturb(student)
        update_teacher(teacher, student, 0.97)
        averaged.update_parameters(student)
    for mine, theirs in zip(teacher.parameters(), averaged.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.994, 1.0])
def test_formula_over_parameters_only(momentum: float) -> None:
    teacher, student = network(0), network(1)
    student[1].running_mean.fill_(9.0)  # pyright: ignore
    before = [p.detach().double() for p in teacher.parameters()]
    update_teacher(teacher, student, momentum)
    for old, new, other in zip(before, teacher.parameters(), student.parameters(), strict=True):
        expected = momentum * old + (1 - momentum) * other.detach().double()
        torch.testing.assert_close(new.detach().double(), expected, rtol=1e-6, atol=1e-7)
    assert not teacher[1].running_mean.any()  # pyright: ignore


def test_copy_takes_buffers_freezes_and_does_not_share_memory() -> None:
    teacher, student = network(0), network(1)
    student[1].running_mean.fill_(9.0)  # pyright: ignore
    copy_weights(teacher, student)
    theirs = student.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    perturb(student)
    assert not torch.equal(teacher[0].weight, student[0].weight)  # pyright: ignore


def test_frozen_teacher_keeps_averaging_a_student_in_training() -> None:
    teacher, student = network(0), network(1)
    copy_weights(teacher, student)
    start = teacher[0].weight.detach().clone()  # pyright: ignore
    perturb(student)
    update_teacher(teacher, student, 0.5)
    torch.testing.assert_close(teacher[0].weight, (start + student[0].weight.detach()) / 2)  # pyright: ignore
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"momentum is 1.2; it must lie in \[0, 1\]"):
        update_teacher(network(0), network(1), 1.2)
    with pytest.raises(ValueError, match=r"teacher \(6 parameters\) and student \(4\)"):
        update_teacher(network(0), network(1)[:2], 0.9)
    with pytest.raises(ValueError, match="do not match"):
        update_teacher(nn.Linear(2, 3), nn.Linear(3, 2), 0.9)
    with pytest.raises(RuntimeError, match="Missing key"):
        copy_weights(network(0), network(1)[:2])
