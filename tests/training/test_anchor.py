"""Gram anchoring: losses equal the formulas written out in float64; the Gram teacher is what it should be, when."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.batch import Batch
from training.phases.anchor import Anchor, AnchorConfig, GramConfig, resize_map
from training.phases.pretrain import Pretrain, PretrainConfig
from training.recipes import RECIPES
from training.schedules import Schedule, constant

sys.path.insert(0, str(Path(__file__).parent))
from tiny import anchored, tiny_config

IMAGES = 5


def batch_of(*, gram: tuple[int, int] | None = (80, 56), size: tuple[int, int] = (48, 40)) -> Batch:
    """Fixed random crops that are not square, half of the global ones masked."""
    generator = torch.Generator().manual_seed(1)
    grid = (size[0] // 8, size[1] // 8)
    masks = torch.zeros(2 * IMAGES, *grid, dtype=torch.bool)
    masks[:5, 1:4, 2:5] = True
    masks[7, 0, 0] = True
    grams = torch.randn(2 * IMAGES, 3, *gram, generator=generator) if gram else torch.empty(0, 3, 0, 0)
    return Batch(
        torch.randn(2 * IMAGES, 3, *size, generator=generator),
        torch.randn(3 * IMAGES, 3, 24, 16, generator=generator),
        masks,
        torch.arange(IMAGES),
        0,
        0.0,
        grams,
    )


def disturbed(module: torch.nn.Module, seed: int) -> None:
    """Move weights a little, so that no two networks are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))


def phase_of(gram: GramConfig | None, **changes) -> Pretrain:
    """A phase whose student, teacher and Gram teacher all differ, with nothing drawn at random in a forward pass."""
    base = tiny_config()
    quiet = {"backbone": replace(base.objective.backbone, drop_path=0.0, rope_rescale=None), "ibot_weight": 0.7}
    config = replace(base, objective=replace(base.objective, **(quiet | changes)))
    config = config if gram is None else anchored(config, gram)
    phase = config.objective.resolve(100, IMAGES).build(seed=3)
    disturbed(phase.teacher, 9)
    if "gram" in phase.modules():
        disturbed(phase.modules()["gram"], 11)
    return phase


# The formulas, in float64 and as written in the papers: a loop for each sum


def sinkhorn64(logits: Tensor, temperature: float) -> Tensor:
    q = torch.exp(logits / temperature).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, which is what "bicubic" means in torch."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def weights64(source: int, target: int) -> Tensor:
    """[target, source] of one axis: pixel centres aligned, borders repeated, no antialiasing."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        centre = (i + 0.5) * source / target - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(j, 0), source - 1)] += cubic(centre - j)
    return matrix


def resize64(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    down, across = weights64(patches.shape[1], grid[0]), weights64(patches.shape[2], grid[1])
    return torch.einsum("ih,jw,bhwd->bijd", down, across, patches.double())


def gram64(student: Tensor, teacher: Tensor, config: GramConfig, masks: Tensor) -> Tensor:
    """student [B, H, W, D]; teacher [B, H', W', D], resized here."""
    teacher = resize64(teacher, student.shape[1:3])
    if config.tokens != "all":
        chosen = masks if config.tokens == "masked" else ~masks
        sets = [(student[chosen], teacher[chosen])]
    elif config.level == "batch":
        sets = [(student.flatten(0, 2), teacher.flatten(0, 2))]
    else:
        sets = [(s.flatten(0, 1), t.flatten(0, 1)) for s, t in zip(student, teacher, strict=True)]
    squares = []
    for s, t in sets:
        if config.normalize:
            s, t = s / s.norm(dim=-1, keepdim=True), t / t.norm(dim=-1, keepdim=True)
        a, b = s @ s.T, t @ t.T
        if config.negatives == "clamp":
            a, b = a.clamp(min=0), b.clamp(min=0)
        if config.negatives == "clamp_teacher":
            a, b = torch.where((a < 0) & (b < 0), 0.0, a), b.clamp(min=0)
        squares.append(((a - b) ** 2).flatten())
    return torch.cat(squares).mean()


def total64(phase: Pretrain, batch: Batch, step: int) -> Tensor:
    """DINOv3's loss: DINO (local and global share), iBOT, KoLeo and, where there is one, Gram."""
    config = phase.config
    student, teacher = copy.deepcopy(phase.student).double().eval(), copy.deepcopy(phase.teacher).double().eval()
    globals_, locals_ = batch.globals_.double(), batch.locals_.double()
    s, t = student.backbone(globals_, batch.masks), teacher.backbone(globals_)
    temperature = config.teacher_temperature(step)
    targets = sinkhorn64(teacher.dino_head(t.cls), temperature)
    logp = F.log_softmax(student.dino_head(torch.cat([s.cls, student.backbone(locals_).cls])) / 0.1, dim=-1)

    def mean_over(pairs: list[tuple[int, int]]) -> Tensor:
        rows = [(targets[j * IMAGES + b], logp[i * IMAGES + b]) for i, j in pairs for b in range(IMAGES)]
        return torch.stack([-(p * q).sum() for p, q in rows]).mean()

    over_globals = mean_over([(0, 1), (1, 0)])
    over_locals = mean_over([(i, j) for i in range(2, 5) for j in range(2)])
    dino = 2 / 8 * over_globals + 6 / 8 * config.local_weight(step) * over_locals
    patch_targets = sinkhorn64(teacher.ibot_head(t.patches[batch.masks]), temperature)
    patch_logp = F.log_softmax(student.ibot_head(s.patches[batch.masks]) / 0.1, dim=-1)
    row, ibot = 0, torch.zeros((), dtype=torch.float64)
    for crop in range(2 * IMAGES):
        count = int(batch.masks[crop].sum())
        for _ in range(count):
            ibot = ibot - (patch_targets[row] * patch_logp[row]).sum() / count / (2 * IMAGES)
            row += 1
    koleo = torch.zeros((), dtype=torch.float64)
    for cls in s.cls.chunk(2):
        x = F.normalize(cls, eps=1e-8)
        for i in range(IMAGES):
            nearest = max(((x[i] @ x[j]).item(), j) for j in range(IMAGES) if j != i)[1]
            koleo = koleo - torch.log(torch.linalg.norm(x[i] - x[nearest] + 1e-8) + 1e-8) / IMAGES
    total = config.dino_weight * dino + config.ibot_weight * ibot + config.koleo_weight * koleo
    if not isinstance(config, AnchorConfig):
        return total
    network = phase.modules().get("gram")
    crops = batch.gram if len(batch.gram) else batch.globals_
    anchor = t.patches if network is None else copy.deepcopy(network).double().eval()(crops.double()).patches
    return total + config.gram.weight(step) * gram64(s.patches, anchor, config.gram, batch.masks)


# A whole step


@pytest.mark.parametrize("step", [0, 7, 60])
def test_the_total_of_a_pretraining_step_equals_the_formulas_in_float64(step: int):
    local = Schedule(peak=1.0, end=0.5, shape="cosine", shape_steps=20)
    temperature = Schedule(start=0.04, peak=0.07, warmup_steps=30)
    phase, batch = phase_of(None, local_weight=local, teacher_temperature=temperature), batch_of(gram=None)
    assert math.isclose(phase.losses(batch, step).total.item(), total64(phase, batch, step).item(), rel_tol=1e-5)


@pytest.mark.parametrize("step", [0, 7, 60])
@pytest.mark.parametrize(
    "gram",
    [
        GramConfig(weight=Schedule(peak=0.0, end=2.0, shape="cosine", shape_steps=20)),
        GramConfig(level="batch", negatives="clamp"),
        GramConfig(level="batch", tokens="masked", normalize=False, weight=constant(0.01)),
        GramConfig(level="batch", tokens="unmasked", negatives="clamp_teacher"),
        GramConfig(teacher="ema", negatives="clamp_teacher"),
    ],
    ids=["image", "batch", "masked", "unmasked", "ema"],
)
def test_the_total_of_an_anchoring_step_equals_the_formulas_in_float64(gram: GramConfig, step: int):
    phase = phase_of(gram, local_weight=constant(0.5), teacher_temperature=constant(0.05))
    batch = batch_of(gram=None if gram.teacher == "ema" else (80, 56))
    losses = phase.losses(batch, step)
    assert math.isclose(losses.total.item(), total64(phase, batch, step).item(), rel_tol=1e-5)
    assert losses.record["loss/gram"].item() > 1e-6, "the term must have something to say"


def test_gram_without_crops_of_its_own_looks_at_the_global_crops():
    phase, batch = phase_of(GramConfig()), batch_of(gram=None)
    assert math.isclose(phase.losses(batch, 3).total.item(), total64(phase, batch, 3).item(), rel_tol=1e-5)


@pytest.mark.parametrize("grids", [((10, 7), (6, 5)), ((3, 8), (5, 4)), ((6, 5), (6, 5)), ((1, 1), (2, 3))])
def test_maps_are_resized_as_the_kernel_says(grids):
    patches = torch.randn(2, *grids[0], 5, generator=torch.Generator().manual_seed(0))
    expected = resize64(patches, grids[1])
    torch.testing.assert_close(resize_map(patches, grids[1]).double(), expected, rtol=1e-5, atol=1e-5)
    half = resize_map(patches.bfloat16(), grids[1])
    assert grids[0] == grids[1] or half.dtype == torch.float32


def test_resizing_comes_before_normalising():
    """A map with tokens of very different lengths tells the two orders apart."""
    phase, batch = phase_of(GramConfig()), batch_of()
    original = phase.gram.forward

    def stretched(images: Tensor):
        features = original(images)
        lengths = torch.linspace(0.1, 30, features.patches.shape[1])[None, :, None, None]
        return features._replace(patches=features.patches * lengths)

    phase.gram.forward = stretched
    views = phase._views(batch)
    with torch.no_grad():
        ours = phase._gram(batch, views).item()
        seen, teacher = views.globals_.patches.double(), stretched(batch.gram).patches.double()
        unit = teacher / teacher.norm(dim=-1, keepdim=True)
        right, wrong = (gram64(seen, each, phase.config.gram, batch.masks).item() for each in (teacher, unit))
    assert math.isclose(ours, right, rel_tol=1e-5)
    assert abs(right - wrong) > 1e-3 * right


def test_the_gram_loss_is_nothing_when_student_and_gram_teacher_agree():
    phase, batch = phase_of(GramConfig()), batch_of(gram=None)
    phase.gram.load_state_dict(phase.student.backbone.state_dict())
    unmasked = batch._replace(masks=torch.zeros_like(batch.masks))
    assert phase.losses(unmasked, 3).record["loss/gram"].item() < 1e-9
    assert phase.losses(batch, 3).record["loss/gram"].item() > 1e-6, "masks are applied on the student's side only"


def test_no_masked_patch_in_a_batch_is_no_gram_loss_and_no_error():
    phase, batch = phase_of(GramConfig(level="batch", tokens="masked")), batch_of()
    empty = batch._replace(masks=torch.zeros_like(batch.masks))
    losses = phase.losses(empty, 0)
    losses.total.backward()
    assert losses.record["loss/gram"].item() == 0
    assert torch.isfinite(losses.total)


def test_bf16_stays_near_the_formulas_and_trains_every_parameter():
    phase, batch = phase_of(GramConfig()), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        losses = phase.losses(batch, 5)
    losses.total.backward()
    assert math.isclose(losses.total.item(), total64(phase, batch, 5).item(), rel_tol=0.03)
    assert losses.record["loss/gram"].dtype == torch.float32
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in phase.student.parameters())
    assert all(p.grad is None for name in ("teacher", "gram") for p in phase.modules()[name].parameters())


# The Gram teacher


@pytest.mark.parametrize("first", [0, 1, 5, 6, 7, 30])
@pytest.mark.parametrize("every", [0, 1, 3, 6])
@pytest.mark.parametrize("most", [None, 0, 2])
def test_refreshes_follow_the_published_rule(first: int, every: int, most: int | None):
    config = GramConfig(first_refresh=first, refresh_every=every, max_refreshes=most)
    count = 0
    for step in range(40):
        assert config.refreshes(step) == count, step
        due = bool(every) and step + 1 >= first and (step + 1) % every == 0
        count += due and (most is None or count < most)


def test_the_gram_teacher_becomes_the_ema_teacher_at_its_steps_and_nothing_else_moves_it():
    phase = phase_of(GramConfig(first_refresh=4, refresh_every=2, max_refreshes=2))
    for step in range(9):
        before = copy.deepcopy(phase.gram.state_dict())
        disturbed(phase.student, 100 + step)
        values = phase.after_step(step)
        now, teacher = phase.gram.state_dict(), phase.teacher.backbone.state_dict()
        expected = teacher if step + 1 in (4, 6) else before
        assert all(torch.equal(now[name], expected[name]) for name in now), step
        assert values["gram/refreshes"] == sum(step + 1 >= done for done in (4, 6))
    assert not phase.gram.training
    assert not any(parameter.requires_grad for parameter in phase.gram.parameters())


def test_fractions_become_steps():
    config = GramConfig(first_refresh=0.25, refresh_every=0.5, weight=Schedule(peak=0, end=2, shape="cosine"))
    resolved = config.resolve(200)
    assert (resolved.first_refresh, resolved.refresh_every) == (50, 100)
    assert resolved.weight(199) == pytest.approx(2.0, rel=1e-3)
    assert config.resolve(1).refresh_every == 1, "a fraction is never 0, which would mean never"
    assert GramConfig().resolve(1).refresh_every == 0


def test_the_live_ema_needs_no_network_of_its_own():
    phase = phase_of(GramConfig(teacher="ema"))
    assert "gram" not in phase.modules()
    assert phase.config.references == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": "masked"}, "needs level 'batch'"),
        ({"tokens": "some"}, "choose one of all, masked, unmasked"),
        ({"level": "crop"}, "choose one of image, batch"),
        ({"negatives": "drop"}, "choose one of keep"),
        ({"teacher": "ema", "refresh_every": 5}, "always fresh"),
        ({"refresh_every": -1}, "refresh_every is -1"),
        ({"weight": constant(-2.0)}, "weight has levels"),
    ],
)
def test_impossible_gram_configs_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GramConfig(**fields)


def test_masked_tokens_need_masks():
    with pytest.raises(ValueError, match="nothing is masked"):
        AnchorConfig(ibot_weight=0.0, gram=GramConfig(level="batch", tokens="masked"))
    with pytest.raises(ValueError, match="local_weight has levels"):
        PretrainConfig(local_weight=constant(-1.0))


# The published figures


@pytest.mark.parametrize("name", ["vit7b16_pretrain", "vit7b16_anchor", "vit7b16_adapt"])
def test_the_7b_networks_build_on_the_meta_device(name: str):
    objective = RECIPES[name].build().resolve().objective
    with torch.device("meta"):
        phase = objective.build(seed=0, device="meta")
    everything = [p for module in phase.modules().values() for p in module.parameters()]
    assert all(parameter.is_meta for parameter in everything)
    backbone, heads = phase.student.backbone, (phase.student.dino_head, phase.student.ibot_head)
    assert sum(p.numel() for p in backbone.parameters()) == 6_716_043_264
    assert [round(sum(p.numel() for p in head.parameters()) / 1e6) for head in heads] == [239, 73]
    assert isinstance(phase, Anchor) == ("gram" in phase.modules()) == (name != "vit7b16_pretrain")


def test_the_7b_recipes_have_the_official_figures():
    first, anchor, adapt = (RECIPES[f"vit7b16_{n}"].build().resolve() for n in ("pretrain", "anchor", "adapt"))
    assert [c.batch.batch_size for c in (first, anchor, adapt)] == [4096, 4096, 2048]
    assert [c.loop.steps for c in (first, anchor, adapt)] == [1_000_000, 200_000, 30_000]
    assert first.optim.lr(0) == 0
    assert first.optim.lr(100_000) == first.optim.lr(999_999) == pytest.approx(4e-4)
    assert anchor.optim.lr(0) == anchor.optim.lr(199_999) == pytest.approx(2.4e-4)
    assert adapt.optim.lr(0) == 0
    assert adapt.optim.lr(9_999) == adapt.optim.lr(29_999) == pytest.approx(7.07e-5, rel=1e-3)
    assert [c.objective.momentum(0) for c in (first, anchor, adapt)] == [0.994, 0.999, 0.999]
    assert [first.objective.teacher_temperature(step) for step in (0, 100_000)] == [0.04, 0.07]
    assert (first.optim.rates(4_999)["last_layer_lr"], anchor.optim.freeze_last_layer_steps) == (0.0, 0)
    for config in (first, anchor, adapt):
        optim, objective = config.optim, config.objective
        assert (optim.weight_decay(0), optim.layer_decay, optim.betas, optim.clip_norm) == (0.04, 0.98, (0.9, 0.99), 30)
        assert (objective.backbone.drop_path, objective.koleo_group, config.augment.flip) == (0.4, 16, 0.0)
        assert (config.augment.local_crops, config.augment.global_crops) == (8, 2)
    gram, local = anchor.objective.gram, anchor.objective.local_weight
    assert [gram.weight(step) for step in (0, 999, 199_999)] == [0.0, 2.0, 2.0]
    assert [local(step) for step in (0, 999, 199_999)] == [1.0, 0.5, 0.5]
    assert [step for step in range(60_000) if gram.refreshes(step + 1) > gram.refreshes(step)] == [9999, 19999, 29999]
    assert (anchor.augment.global_size, anchor.augment.local_size, anchor.augment.gram_size) == (256, 112, 512)
    assert (adapt.objective.gram.weight(0), adapt.objective.local_weight(0)) == (1.5, 0.5)
    assert adapt.objective.gram.refreshes(30_000) == 0
    assert all(gram_size * 2 == 3 * global_size for global_size, _, gram_size, _ in adapt.resolutions.choices)
    assert (adapt.start.student, adapt.objective.gram.teacher) == ("teacher", "fork")
    assert [config.objective.phase for config in (first, anchor, adapt)] == ["pretrain", "anchor", "adapt"]
