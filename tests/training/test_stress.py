"""The induced stress: its loss equals the formula in float64, it is off by default, and a run under it says so."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from training.heads import HeadConfig, ProjectionHead
from training.launch import launch
from training.phases.anchor import Anchor, GramConfig
from training.phases.stress import StressConfig, leak_loss
from workbench.runs import Run

sys.path.insert(0, str(Path(__file__).parent))
from test_pretrain import phase_and_batch
from tiny import anchored, tiny_config

HEAD = HeadConfig(hidden=16, bottleneck=8, prototypes=12)


def parts(crops: int = 3, grid: tuple[int, int] = (2, 5)) -> tuple[ProjectionHead, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = ProjectionHead(6, HEAD)
    head.init_weights(generator, std=None)
    patches = torch.randn(crops, *grid, 6, generator=generator)
    targets = torch.rand(crops, 12, generator=generator).softmax(-1)
    return head, patches, targets


def leak(head, patches, targets, tokens: int, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return leak_loss(head, patches, targets, tokens=tokens, temperature=0.1, generator=generator)


def straight_line(head: ProjectionHead, patches, targets, chosen: list[list[int]]) -> float:
    """The loss as loops in float64 over the `chosen` patch tokens (row-major) of each crop."""
    head, total, count = head.double(), 0.0, 0
    for crop, places in enumerate(chosen):
        for place in places:
            logits = head(patches[crop].double().flatten(0, 1)[place]) / 0.1
            total -= (targets[crop].double() * F.log_softmax(logits, dim=-1)).sum().item()
            count += 1
    head.float()
    return total / count


@pytest.mark.parametrize("crops", [1, 3])
@torch.no_grad()
def test_all_tokens_of_all_crops_equal_the_formula(crops: int):
    head, patches, targets = parts(crops)
    expected = straight_line(head, patches, targets, [list(range(10))] * crops)
    assert leak(head, patches, targets, tokens=10).item() == pytest.approx(expected, rel=1e-5)
    assert leak(head, patches, targets, tokens=99).item() == pytest.approx(expected, rel=1e-5), "all there are"


def test_so_many_different_tokens_of_each_crop_get_a_gradient_and_the_generator_says_which():
    head, patches, targets = parts()
    drawn = []
    for seed in (5, 5, 6):
        patches = patches.detach().requires_grad_()
        loss = leak(head, patches, targets, tokens=4, seed=seed)
        (gradient,) = torch.autograd.grad(loss, patches)
        touched = (gradient.flatten(1, 2).abs().sum(-1) > 0).nonzero().tolist()
        chosen = [[place for crop, place in touched if crop == number] for number in range(3)]
        assert [len(places) for places in chosen] == [4, 4, 4]
        assert loss.item() == pytest.approx(straight_line(head, patches.detach(), targets, chosen), rel=1e-5)
        drawn.append(chosen)
    assert drawn[0] == drawn[1] != drawn[2]


def test_it_is_finite_in_bf16():
    head, patches, targets = parts()
    loss = leak(head.bfloat16(), patches.bfloat16(), targets, tokens=4)
    assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(leak(head.float(), patches, targets, tokens=4).item(), rel=0.05)


def test_it_is_off_by_default_and_then_draws_nothing():
    phase, batch = phase_and_batch()
    before = phase.network_generator.get_state()
    record = phase.losses(batch, 0).record
    assert not [name for name in record if "leak" in name]
    assert torch.equal(phase.network_generator.get_state(), before)


def test_the_total_grows_by_its_weight_and_the_record_calls_it_induced():
    plain, batch = phase_and_batch()
    stressed, _ = phase_and_batch(stress=StressConfig(leak_weight=0.7, leak_tokens=3))
    base, outcome = plain.losses(batch, 0), stressed.losses(batch, 0)
    assert outcome.record["induced/leak_weight"].item() == pytest.approx(0.7)
    extra = outcome.total - base.total
    assert extra.item() == pytest.approx(0.7 * outcome.record["loss/leak"].item(), rel=1e-4)
    assert outcome.record["loss/dino"].item() == pytest.approx(base.record["loss/dino"].item(), rel=1e-6)


def test_gram_anchoring_can_be_stressed_too():
    base = tiny_config()
    config = anchored(base, GramConfig(), stress=StressConfig(leak_weight=1.0)).resolve()
    phase, (_, batch) = config.objective.build(seed=0), phase_and_batch()
    assert isinstance(phase, Anchor)
    assert {"loss/leak", "loss/gram"} <= phase.losses(batch, 0).record.keys()


@pytest.mark.parametrize(("field", "value"), [("leak_weight", -1.0), ("leak_weight", float("inf")), ("leak_tokens", 0)])
def test_impossible_stress_is_refused(field: str, value: float):
    with pytest.raises(ValueError, match=f"StressConfig.{field} is {value}"):
        StressConfig(**{field: value})


def test_a_run_under_stress_says_so(tmp_path: Path):
    base = tiny_config(steps=4)
    config = replace(base, objective=replace(base.objective, stress=StressConfig(leak_weight=1.0)))
    assert launch(config, tmp_path / "run") == 0
    run = Run(tmp_path / "run")
    assert all(row["induced/leak_weight"] == 1.0 and row["loss/leak"] > 0 for row in run.metrics()[0])
    assert run.config["objective"]["stress"] == {"leak_weight": 1.0, "leak_tokens": 8}
