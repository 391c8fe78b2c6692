"""Forks and given weights: what is carried over, what is refused, and that a resume is bitwise at every step."""

from __future__ import annotations

import functools
import hashlib
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training import checkpoint
from training.config import TrainConfig
from training.data.batch import generator_for
from training.data.mixing import ResolutionMix
from training.data.sources import ScenesConfig
from training.evaluation.plan import EvaluationPlan
from training.heads import EmbeddingHeadConfig
from training.launch import launch
from training.optim import build_optimizer
from training.phases.anchor import GramConfig
from training.phases.contrast import ContrastConfig
from training.schedules import Schedule
from training.start import StartConfig, begin
from training.trainer import EXIT_STOPPED, Trainer
from workbench.backbones import VisionTransformer, architecture_of
from workbench.runs import Run, RunWriter

sys.path.insert(0, str(Path(__file__).parent))
from tiny import anchored, tiny_config

STEPS = 26
SCENES = functools.cache(ScenesConfig.build)
SIZES = ((48, 24, 64, 0.5), (32, 16, 48, 0.5))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No evaluations, training scenes drawn once for all runs, one thread."""
    monkeypatch.setattr(EvaluationPlan, "suite", lambda self, mean, std: lambda backbone: iter([("dense/knn", 0.5)]))
    monkeypatch.setattr(ScenesConfig, "build", SCENES)
    torch.set_num_threads(1)


def parent_config(steps: int = 6) -> TrainConfig:
    config = tiny_config(steps)
    objective = replace(config.objective, centering="softmax", koleo_weight=0.0)
    return replace(config, objective=objective, loop=replace(config.loop, keep_every=2, probe_every=100))


def child_config(parent: Path, steps: int = STEPS, **start: str) -> TrainConfig:
    """Warm-up to step 5, Gram refreshes at 8 and 16, two resolutions by lot, and everything random at work."""
    gram = GramConfig(
        weight=Schedule(peak=0.0, end=2.0, shape="cosine", shape_steps=10),
        first_refresh=8,
        refresh_every=8,
        max_refreshes=2,
    )
    config = anchored(parent_config(steps), gram, local_weight=Schedule(peak=1, end=0.5, shape="linear", shape_steps=9))
    return replace(
        config,
        seed=5,
        augment=replace(config.augment, gram_size=64),
        resolutions=ResolutionMix(choices=SIZES),
        start=StartConfig(**({"fork": f"run:{parent}@step=4"} | start)),
        optim=replace(config.optim, lr=Schedule(peak=1e-3, end=1e-4, warmup_steps=5, shape="cosine")),
        loop=replace(config.loop, keep_every=0, log_every=13, evaluate_every=100, save_every=100),
    )


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps that keeps the checkpoints of steps 2, 4 and 6."""
    run = tmp_path_factory.mktemp("runs") / "parent"
    config = parent_config()
    assert launch(replace(config, loop=replace(config.loop, evaluate_every=100)), run) == 0
    return run


def saved(run: Path, step: int) -> dict[str, Tensor]:
    """Every tensor of a resume checkpoint."""
    path = run / "resume" / f"step-{step:06d}"
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in checkpoint.saved_kinds(path).items()}
    checkpoint.read_tensors(path, tensors)
    return tensors


def sha256(tensors: dict[str, Tensor]) -> dict[str, str]:
    """One hash for each kind of state: student, teacher, gram, centers, optimizer, generator."""
    kinds = {name.partition("/")[0] for name in tensors} - {"loop"}
    digests = {kind: hashlib.sha256() for kind in kinds}
    for name in sorted(tensors):
        if (kind := name.partition("/")[0]) in digests:
            digests[kind].update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return {kind: digest.hexdigest() for kind, digest in digests.items()}


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ask for a stop once `step` steps are done, be it none."""
    monkeypatch.setattr(Trainer, "_observe", lambda self, evaluated: self.step != step)


# A resume


def test_the_steps_of_the_resumes_hold_what_they_should(parent: Path):
    """The end of the warm-up, both refreshes, and a dozen changes of resolution lie among steps 0 to 24."""
    config = child_config(parent).resolve()
    rates = [config.optim.lr(step) for step in range(STEPS)]
    assert rates.index(max(rates)) == 4
    gram = config.objective.gram
    assert [step for step in range(1, STEPS) if gram.refreshes(step) > gram.refreshes(step - 1)] == [8, 16]
    drawn = [config.resolutions.draw(generator_for(config.seed, "resolution", step)) for step in range(STEPS)]
    assert sum(one != other for one, other in pairwise(drawn)) >= 12


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_resume_is_bitwise_at_every_step_of_a_fork(parent: Path, tmp_path: Path, monkeypatch):
    """Warm-up end, Gram refreshes, changes of resolution, the fork itself; the parent is gone when it is resumed."""
    source = tmp_path / "source"
    shutil.copytree(parent, source)
    config = child_config(source)
    assert launch(config, tmp_path / "whole") == 0
    expected = sha256(saved(tmp_path / "whole", STEPS))
    assert set(expected) == {"student", "teacher", "gram", "centers", "optimizer", "generator"}
    equal = []
    for step in range(25):
        run = tmp_path / f"stopped-{step}"
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            assert launch(config, run) == EXIT_STOPPED
        source.rename(tmp_path / "away")
        assert launch(config, run) == 0
        (tmp_path / "away").rename(source)
        assert [event["text"] for event in Run(run).events()[0] if event["kind"] == "resumed"] == [
            f"continued from step {step}"
        ]
        equal.append(sha256(saved(run, STEPS)) == expected)
        shutil.rmtree(run)
    assert equal == [True] * 25


# A fork


def test_a_fork_begins_with_everything_of_its_parent_but_the_count_of_steps(parent: Path, tmp_path: Path, monkeypatch):
    stop_at(monkeypatch, 0)
    assert launch(child_config(parent), tmp_path / "run") == EXIT_STOPPED
    before, after = saved(parent, 4), saved(tmp_path / "run", 0)
    carried = [name for name in before if name.split("/")[0] in ("student", "teacher", "centers", "optimizer")]
    assert all(torch.equal(before[name], after[name]) for name in carried)
    assert all(before[f"centers/{name}"].abs().sum() > 0 for name in ("dino", "ibot"))
    assert {name.rpartition(".")[2] for name in carried if name.startswith("optimizer/")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }
    assert after["optimizer/backbone.cls_token.step"] == 4
    gram = {name: value for name, value in after.items() if name.startswith("gram/")}
    assert all(torch.equal(value, before[name.replace("gram/", "teacher/backbone.")]) for name, value in gram.items())
    assert len(gram) > 10
    assert not torch.equal(after["student/backbone.cls_token"], after["teacher/backbone.cls_token"])
    assert (int(before["loop/step"]), int(after["loop/step"])) == (4, 0)
    run = Run(tmp_path / "run")
    assert run.parent == {"run": "parent", "step": 4}
    assert run.events()[0][0]["text"].endswith(f"from run:{parent}@step=4")


def test_a_student_may_start_as_the_teacher_without_moments(parent: Path, tmp_path: Path, monkeypatch):
    stop_at(monkeypatch, 0)
    assert launch(child_config(parent, student="teacher"), tmp_path / "run") == EXIT_STOPPED
    before, after = saved(parent, 4), saved(tmp_path / "run", 0)
    for name in (name for name in after if name.startswith("student/")):
        assert torch.equal(after[name], before[name.replace("student/", "teacher/")])
    assert all(value.abs().sum() == 0 for name, value in after.items() if name.startswith("optimizer/"))


def test_a_gram_teacher_of_another_step_is_that_step_s_published_teacher(parent: Path, tmp_path: Path, monkeypatch):
    stop_at(monkeypatch, 0)
    config = child_config(parent)
    gram = replace(config.objective.gram, teacher=f"run:{parent}@step=0")
    assert launch(replace(config, objective=replace(config.objective, gram=gram)), tmp_path / "run") == EXIT_STOPPED
    after, early = saved(tmp_path / "run", 0), Run(parent).backbone(step=0).state_dict()
    assert all(torch.equal(value, after[f"gram/{name}"]) for name, value in early.items())
    assert not torch.equal(early["cls_token"], after["teacher/backbone.cls_token"])


def test_a_fork_may_order_and_train_other_parameters_than_its_parent(parent: Path, tmp_path: Path):
    """Layer decay regroups the parameters, and a head that the parent did not train has no moments to carry."""
    config = child_config(parent).resolve()
    config = replace(config, optim=replace(config.optim, layer_decay=0.5))
    phase = config.objective.build(seed=0)
    optimizer = build_optimizer(phase.trainable(), config.optim, config.objective.backbone.depth)
    begin(config.start, config.objective.references, phase, optimizer)
    moments, before = checkpoint.optimizer_tensors(optimizer), saved(parent, 4)
    assert all(torch.equal(value, before[f"optimizer/{name}"]) for name, value in moments.items())
    config = parent_config(2)
    assert launch(replace(config, objective=replace(config.objective, ibot_weight=0.0)), tmp_path / "other") == 0
    phase = config.objective.build(seed=0)
    optimizer = build_optimizer(phase.trainable(), config.optim, config.objective.backbone.depth)
    begin(StartConfig(fork=f"run:{tmp_path / 'other'}@step=2"), {}, phase, optimizer)
    steps = {name: value for name, value in checkpoint.optimizer_tensors(optimizer).items() if name.endswith(".step")}
    assert all(value == (0 if name.startswith("ibot_head") else 2) for name, value in steps.items())
    assert {value.item() for value in steps.values()} == {0, 2}


def test_checkpoints_at_multiples_of_keep_every_are_never_deleted(parent: Path):
    assert checkpoint.kept_steps(parent / "resume") == [2, 4, 6]


def test_a_fork_that_cannot_be_is_explained_and_touches_nothing(parent: Path, tmp_path: Path):
    config, run = child_config(parent), tmp_path / "run"
    wide = replace(config.objective, dino_head=replace(config.objective.dino_head, prototypes=64))
    deep = replace(config.objective, backbone=replace(config.objective.backbone, depth=3))
    heads = replace(config.objective, backbone=replace(config.objective.backbone, num_heads=4))
    mistakes = {
        r"keeps no resume checkpoint of step 5; steps that have one: 2, 4, 6.*--loop.keep-every": {
            "start": StartConfig(fork=f"run:{parent}@step=5")
        },
        "write run:PATH@step=N": {"start": StartConfig(fork=f"run:{parent}")},
        "nowhere": {"start": StartConfig(fork="run:nowhere@step=1")},
        r"the first is 'centers/dino' \(saved .*128.* wanted .*64": {"objective": wide},
        r"the first is depth \(2 there, 3 here\)": {"objective": deep},
        r"the first is num_heads \(2 there, 4 here\)": {"objective": heads},
        "nothing is forked": {"start": StartConfig()},
    }
    for message, changes in mistakes.items():
        with pytest.raises(ValueError, match=message):
            launch(replace(config, **changes), run)
        assert not run.exists(), message
    with pytest.raises(ValueError, match="both given"):
        StartConfig(fork="run:a@step=1", weights="synthetic")


def test_moments_under_other_names_are_not_dropped_in_silence(parent: Path, tmp_path: Path, monkeypatch):
    """As checkpoints of an older version have them: without, a fork would begin with a cold optimizer."""
    copy, numbered = tmp_path / "copy", {}
    shutil.copytree(parent, copy)
    for i, (name, value) in enumerate(saved(parent, 4).items()):
        kind, _, rest = name.partition("/")
        numbered[f"optimizer/{i}.{rest.rpartition('.')[2]}" if kind == "optimizer" else name] = value
    checkpoint.save_checkpoint(copy / "resume", 4, numbered, keep_every=2)
    with pytest.raises(ValueError, match=r"keeps no optimizer moments .* --start.student teacher"):
        launch(child_config(copy), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    stop_at(monkeypatch, 0)
    assert launch(child_config(copy, student="teacher"), tmp_path / "run") == EXIT_STOPPED


def test_a_student_cannot_start_as_a_teacher_that_is_not_there(tmp_path: Path, monkeypatch):
    config = tiny_config(2, augment=replace(tiny_config().augment, local_crops=0))
    head = EmbeddingHeadConfig(hidden=24, out=12, batch_norm=True)
    config = replace(
        config, objective=ContrastConfig(method="simclr", backbone=config.objective.backbone, projector=head)
    )
    assert launch(config, tmp_path / "parent") == 0
    start = StartConfig(fork=f"run:{tmp_path / 'parent'}@step=2", student="teacher")
    with pytest.raises(ValueError, match=r"start\.student is 'teacher', but this objective has none"):
        launch(replace(config, start=start), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    stop_at(monkeypatch, 0)
    assert launch(replace(config, start=replace(start, student="student")), tmp_path / "run") == EXIT_STOPPED
    before, after = saved(tmp_path / "parent", 2), saved(tmp_path / "run", 0)
    assert all(torch.equal(value, before[name]) for name, value in after.items() if name.startswith("student/"))


def test_a_damaged_or_foreign_parent_is_refused(parent: Path, tmp_path: Path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(parent, copy)
    victim = max((copy / "resume" / "step-000004").glob("*.distcp"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(ValueError, match="cannot be trusted"):
        launch(child_config(copy), tmp_path / "run")
    monkeypatch.setattr("os.getuid", lambda: 4242)
    with pytest.raises(ValueError, match="belongs to user"):
        launch(child_config(parent), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fresh_with_a_wrong_fork_keeps_the_old_run(parent: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(parent, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ValueError, match="no resume checkpoint of step 3"):
        launch(child_config(parent, fork=f"run:{parent}@step=3"), run, fresh=True)
    assert {path: path.read_bytes() for path in before} == before


# Given weights


def continued(weights: str, **optim) -> TrainConfig:
    config = parent_config(4)
    return replace(config, start=StartConfig(weights=weights), optim=replace(config.optim, **optim))


def test_given_weights_fill_both_backbones_and_no_head(parent: Path, tmp_path: Path, monkeypatch):
    stop_at(monkeypatch, 0)
    assert launch(continued(f"run:{parent}@step=6"), tmp_path / "run") == EXIT_STOPPED
    assert launch(replace(parent_config(4), start=StartConfig()), tmp_path / "plain") == EXIT_STOPPED
    after, plain = saved(tmp_path / "run", 0), saved(tmp_path / "plain", 0)
    for name, value in Run(parent).backbone(step=6).state_dict().items():
        assert torch.equal(value, after[f"student/backbone.{name}"])
        assert torch.equal(value, after[f"teacher/backbone.{name}"])
    assert all(torch.equal(after[name], plain[name]) for name in plain if "_head." in name)
    assert Run(tmp_path / "run").parent is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [("synthetic", "is a SyntheticBackbone"), ("run:nowhere", "nowhere"), ("resnet", "valid forms")],
)
def test_weights_that_do_not_fit_are_explained(weights: str, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        launch(continued(weights), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_without_layerscale_do_not_fit_a_network_that_has_it(tmp_path: Path):
    """LayerScale's first value is no difference between two networks, its absence is."""
    config = parent_config(4)
    plain = VisionTransformer(replace(config.objective.backbone, layerscale=0.0))
    with RunWriter.create(tmp_path / "plain", info={}, config={}) as writer:
        writer.backbone("teacher", 1, architecture_of(plain), plain.state_dict())
    with pytest.raises(ValueError, match=r"start\.weights .*does not fit this config(.|\n)*ls1\.gamma"):
        launch(continued(f"run:{tmp_path / 'plain'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_frozen_backbone_stays_bit_for_bit_while_heads_learn_and_then_moves(parent: Path, tmp_path: Path):
    weights = f"run:{parent}@step=6"
    config = continued(weights, freeze_backbone_steps=0.5, backbone_lr_multiplier=0.1, lr=Schedule(peak=1e-3))
    config = replace(config, loop=replace(config.loop, save_every=2, keep_every=2))
    assert launch(config, tmp_path / "run") == 0
    half, end, given = saved(tmp_path / "run", 2), saved(tmp_path / "run", 4), Run(parent).backbone(step=6).state_dict()
    for name, value in given.items():
        assert torch.equal(value, half[f"student/backbone.{name}"])
        assert torch.equal(value, half[f"teacher/backbone.{name}"]), "an average of equal weights is those weights"
    moved = [name for name in given if not torch.equal(given[name], end[f"student/backbone.{name}"])]
    assert set(given) - set(moved) == {"rope_embed.periods"}
    heads = [name for name in half if name.startswith("student/dino_head")]
    start = config.resolve().objective.build(seed=config.seed).student.state_dict()
    assert all(not torch.equal(half[name], start[name.removeprefix("student/")]) for name in heads)
    rates = [row["rate/backbone_lr"] for row in Run(tmp_path / "run").metrics()[0]]
    assert rates == pytest.approx([0.0, 1e-4])
