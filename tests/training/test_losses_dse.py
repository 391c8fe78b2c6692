"""The DSE loss: minus the DSE that is looked at, its slope by finite differences, its place in pretraining."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training.launch import launch
from training.losses import dse_loss
from training.phases.anchor import Anchor, GramConfig
from training.phases.pretrain import PretrainConfig
from workbench.analysis.dse import dse, dse_parts, find_structure
from workbench.runs import Run

sys.path.insert(0, str(Path(__file__).parent))
from test_pretrain import phase_and_batch
from tiny import anchored, tiny_config


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


@pytest.mark.parametrize("dim_weight", [0.0, 1.0, 2.5])
def test_it_is_minus_the_dse_that_is_looked_at(dim_weight: float) -> None:
    patches = tokens(10, 3, 5, 8)
    loss = dse_loss(patches, generator=seeded(), dim_weight=dim_weight)
    assert loss.item() == pytest.approx(-dse(patches).total(dim_weight).item(), rel=1e-6)


def centres_held(patches: Tensor, structure, at: Tensor) -> Tensor:
    """DSE with what is a constant in the gradient, the centres that tokens move from, taken at `at`: [in float64]."""
    x = torch.nn.functional.normalize(patches.flatten(1, 2), dim=-1)
    fixed = torch.nn.functional.normalize(at.flatten(1, 2), dim=-1)
    spread = (x - x.mean((0, 1))).norm(dim=-1).mean()
    away, rooms, inside, ranks = [], [], [], []
    for number, labels in enumerate(structure.groups):
        tokens, held = (one[8 * number : 8 * number + 8].flatten(0, 1) for one in (x, fixed))
        labels = labels.flatten()
        centres = {int(k): held[labels == k].mean(0) for k in labels.unique()}
        for token, own in zip(tokens, labels, strict=True):
            away.append(torch.stack([(token - c).norm() for k, c in centres.items() if k != int(own)]).min())
        rooms += nuclear(tokens, labels)
    for image, labels in zip(x, structure.images, strict=True):
        inside += nuclear(image, labels)
    for place in structure.order.T:
        singular = torch.linalg.svdvals(torch.stack([x[b, i] for b, i in enumerate(place)]))
        share = singular / singular.sum()
        ranks.append((-(share * share.log()).sum()).exp() / min(len(x), x.shape[-1]))
    means = [torch.stack(values).mean() for values in (away, rooms, inside, ranks)]
    return (means[0] - (means[1] + means[2]) / 2) / spread + means[3]


def nuclear(points: Tensor, labels: Tensor) -> list[Tensor]:
    clusters = [points[labels == k] for k in labels.unique() if (labels == k).sum() > 1]
    return [torch.linalg.svdvals(c - c.mean(0)).sum() / max(len(c) - 1, c.shape[1]) ** 0.5 for c in clusters]


@pytest.mark.parametrize(("images", "grid", "channels"), [(9, (2, 5), 4), (3, (3, 4), 6)])
def test_the_gradient_is_that_of_finite_differences_in_float64(images: int, grid, channels: int) -> None:
    patches = tokens(images, *grid, channels, seed=2).double().requires_grad_()
    loss = dse_loss(patches, generator=seeded(4))
    (slope,) = torch.autograd.grad(loss, patches)
    start, structure = patches.detach(), find_structure(patches, seeded(4))
    assert loss.item() == pytest.approx(-centres_held(start, structure, start).item(), rel=1e-12)
    for trial in range(6):
        way = tokens(*patches.shape, seed=10 + trial).double()
        ahead, behind = (centres_held(start + sign * 1e-6 * way, structure, start) for sign in (1, -1))
        expected = -(ahead - behind).item() / 2e-6
        assert (slope * way).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_intra_and_dim_pass_gradcheck_for_fixed_clusters() -> None:
    patches = tokens(3, 2, 4, 4, seed=3).double().requires_grad_()
    structure = find_structure(patches, seeded())

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        parts = dse_parts(x, structure)
        return parts.intra, parts.dim

    assert torch.autograd.gradcheck(both, (patches,))


def test_steps_against_the_gradient_raise_dse() -> None:
    patches = tokens(16, 4, 4, 12).requires_grad_()
    before = dse(patches.detach())
    for step in range(20):
        (slope,) = torch.autograd.grad(dse_loss(patches, generator=seeded(step)), patches)
        patches = (patches - 20 * slope).detach().requires_grad_()
    after = dse(patches.detach())
    assert after.total() > before.total() + 0.03
    assert after.intra < before.intra


@pytest.mark.parametrize(
    "patches",
    [torch.ones(4, 2, 3, 5), torch.zeros(2, 3, 3, 4), tokens(1, 1, 1, 6), tokens(2, 1, 5, 6), tokens(9, 3, 2, 40)],
    ids=["constant", "zero", "one patch", "one row", "more channels than tokens"],
)
def test_value_and_gradient_are_finite_where_dse_is_degenerate(patches: Tensor) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = patches.to(dtype).requires_grad_()
        loss = dse_loss(x, generator=seeded())
        (slope,) = torch.autograd.grad(loss, x)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(slope).all()


def test_it_is_off_by_default_and_then_draws_nothing() -> None:
    assert PretrainConfig().dse_weight == 0
    phase, batch = phase_and_batch()
    before = phase.network_generator.get_state()
    assert "loss/dse" not in phase.losses(batch, 0).record
    assert torch.equal(phase.network_generator.get_state(), before)


def test_the_total_grows_by_its_weight() -> None:
    plain, batch = phase_and_batch()
    regularised, _ = phase_and_batch(dse_weight=0.7)
    base, outcome = plain.losses(batch, 0), regularised.losses(batch, 0)
    extra = outcome.total - base.total
    assert extra.item() == pytest.approx(0.7 * outcome.record["loss/dse"].item(), rel=1e-3)


def test_each_global_crop_is_measured_with_those_of_its_number() -> None:
    phase, batch = phase_and_batch(dse_weight=1.0, ibot_weight=0.0)
    state = phase.network_generator.get_state()
    record = phase.losses(batch, 0).record
    generator = torch.Generator()
    generator.set_state(state)
    with torch.no_grad():
        patches = phase.student.backbone(batch.globals_).patches
    expected = [dse_loss(crop, generator=generator).item() for crop in patches.split(len(batch.indices))]
    assert record["loss/dse"].item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_it_joins_gram_anchoring_and_a_run_records_it(tmp_path: Path) -> None:
    base = tiny_config(steps=4)
    config = anchored(base, GramConfig(), dse_weight=0.5).resolve()
    phase, (_, batch) = config.objective.build(seed=0), phase_and_batch()
    assert isinstance(phase, Anchor)
    assert {"loss/gram", "loss/dse"} <= set(phase.losses(batch, 0).record)
    config = replace(base, objective=replace(base.objective, dse_weight=0.5))
    assert launch(config, tmp_path / "run") == 0
    run = Run(tmp_path / "run")
    assert all(row["loss/dse"] < 1 for row in run.metrics()[0])
    assert run.config["objective"]["dse_weight"] == 0.5


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_an_impossible_weight_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="dse_weight"):
        PretrainConfig(dse_weight=value)
