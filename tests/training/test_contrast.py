"""SimCLR and MoCo from end to end: resume is bitwise, the record is complete, what is published opens everywhere."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open

from apps.feed import RunFeed
from training import checkpoint
from training.config import TrainConfig
from training.data.batch import Batch
from training.heads import EmbeddingHeadConfig
from training.launch import launch
from training.phases.contrast import Contrast, ContrastConfig, Method
from training.phases.queue import KeyQueue
from training.schedules import Schedule
from training.trainer import EXIT_STOPPED, Trainer
from workbench.loading import load_backbone
from workbench.runs import Run

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_config, weights_hash

METHODS: tuple[Method, ...] = ("simclr", "moco_v2", "moco_v3")


def contrast_config(method: Method, **changes) -> TrainConfig:
    """A training of 6 steps with stochastic depth; the queue of MoCo v2 holds two and a half batches."""
    base = tiny_config(6)
    head = EmbeddingHeadConfig(hidden=24, out=12, batch_norm=method != "moco_v2")
    parts = {"projector": head, "predictor": replace(head, batch_norm=True), "queue_length": 10} | changes
    objective = ContrastConfig(
        method=method,
        backbone=base.objective.backbone,
        initialisation="fan-in",
        momentum=Schedule(start=0.5, peak=0.9, warmup_steps=0.5),
        **parts,
    )
    loop = replace(base.loop, evaluate_every=6, probe_every=6)
    return replace(base, objective=objective, augment=replace(base.augment, local_crops=0), loop=loop)


def small_batch(images: int = 3, **changes) -> Batch:
    generator = torch.Generator().manual_seed(0)
    crops = torch.randn(2 * images, 3, 32, 40, generator=generator)
    batch = Batch(crops, crops[:0], torch.zeros(2 * images, 4, 5, dtype=torch.bool), torch.arange(images), 0, 0.0)
    return batch._replace(**changes)


def built(method: Method, batch_size: int = 3, **changes) -> Contrast:
    objective = contrast_config(method, **changes).objective
    still = replace(objective.backbone, drop_path=0.0, rope_rescale=None)
    return replace(objective, backbone=still).resolve(6, batch_size).build(seed=0)


@pytest.fixture(scope="module", params=METHODS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Method, Path]:
    """An uninterrupted run of each method."""
    run = tmp_path_factory.mktemp("runs") / request.param
    torch.set_num_threads(1)
    assert launch(contrast_config(request.param), run) == 0
    return request.param, run


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_run_ends_with_the_same_bits(finished, step: int, tmp_path: Path, monkeypatch) -> None:
    method, whole = finished
    original = Trainer._train_one

    def train_one(self, *arguments):
        original(self, *arguments)
        if self.step == step:
            self.stop_requested = lambda: True

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_one", train_one)
        assert launch(contrast_config(method), tmp_path / "run") == EXIT_STOPPED
    assert launch(contrast_config(method), tmp_path / "run") == 0
    for role in Run(whole).roles():
        assert weights_hash(tmp_path / "run", 6, role) == weights_hash(whole, 6, role)
    if method == "moco_v2":
        queues = [saved_queue(run) for run in (tmp_path / "run", whole)]
        assert all(torch.equal(queues[0][name], value) for name, value in queues[1].items())
        assert queues[0]["queue/born"].tolist() == [3, 3, 4, 4, 4, 4, 5, 5, 5, 5]


def saved_queue(run: Path) -> dict[str, torch.Tensor]:
    """The queue in the newest resume checkpoint, whose other tensors are not looked at."""
    path, _ = checkpoint.newest_checkpoint(run / "resume")
    assert path is not None
    tensors = {"queue/keys": torch.zeros(10, 12), "queue/born": torch.zeros(10, dtype=torch.long)}
    dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), no_dist=True)
    return tensors


def test_what_is_published_opens_and_names_its_role(finished) -> None:
    method, path = finished
    run = Run(path)
    assert run.roles() == (["student"] if method == "simclr" else ["student", "teacher"])
    assert (run.info["phase"], run.info["backbone"], run.main_role) == ("pretrain", "student", "student")
    assert run.steps() == run.steps("student") == [0, 6]
    assert json.loads((path / "config.json").read_text())["objective"]["method"] == method
    default, student = load_backbone(f"run:{path}"), load_backbone(f"run:{path}@step=6:student")
    images = torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(default.features(images).patches, student.features(images).patches)
    if method != "simclr":
        teacher = load_backbone(f"run:{path}:teacher").features(images)
        assert not torch.equal(teacher.patches, student.features(images).patches)
    with safe_open(path / "probes" / "step-000006.safetensors", "pt") as file:
        assert json.loads(file.metadata()["snapshot"])["backbone"] == "student"
    assert {row["backbone"] for row in run.evaluations()[0]} == {"student"}


def test_the_feed_shows_each_methods_own_statistics_under_plain_names(finished) -> None:
    method, path = finished
    feed = RunFeed(path, "id", "version")
    feed.refresh()
    shown = set(feed.series)
    common = {"loss/total", "contrast/accuracy", "contrast/positive_cosine", "contrast/negative_cosine"}
    own = {
        "simclr": set(),
        "moco_v2": {"teacher/momentum", "teacher/student_distance", "queue/filled", "queue/age"},
        "moco_v3": {"teacher/momentum", "teacher/student_distance", "teacher/student_cosine"},
    }
    assert common | own[method] | {"contrast/spread", "dense/patch_knn", "global/knn"} <= shown
    foreign = set().union(*own.values()) - own[method]
    assert not foreign & shown
    assert not [name for name in shown if name.startswith("student/")]
    assert feed.steps == [0, 6]
    assert feed.about()["backbone"] == "student"
    last = Run(path).metrics()[0][-1]
    assert 0 <= last["contrast/accuracy"] <= 1
    assert all(-1 <= last[f"contrast/{kind}_cosine"] <= 1 for kind in ("positive", "negative"))


def test_statistics_say_what_they_promise() -> None:
    """The record of a batch against the same numbers from loops over the embeddings."""
    phase, batch = built("simclr"), small_batch()
    record = phase.losses(batch, 0).record
    with torch.no_grad():
        z = phase.student.projector(phase.student.backbone(batch.globals_).cls)
    cosine = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1)
    others = [[j for j in range(6) if j != i] for i in range(6)]
    right = [max(others[i], key=lambda j: cosine[i, j].item()) == (i + 3) % 6 for i in range(6)]
    assert record["contrast/accuracy"].item() == pytest.approx(sum(right) / 6)
    positive = [cosine[i, (i + 3) % 6].item() for i in range(6)]
    negative = [cosine[i, j].item() for i in range(6) for j in others[i] if j != (i + 3) % 6]
    assert record["contrast/positive_cosine"].item() == pytest.approx(sum(positive) / 6, abs=1e-5)
    assert record["contrast/negative_cosine"].item() == pytest.approx(sum(negative) / len(negative), abs=1e-5)


def test_equal_images_have_no_spread_and_a_fresh_teacher_no_distance() -> None:
    same = small_batch(globals_=small_batch().globals_[:1].repeat(6, 1, 1, 1))
    phase = built("moco_v2")
    record = phase.losses(same, 0).record
    assert record["contrast/spread"].item() == pytest.approx(0, abs=1e-4)
    assert record["contrast/positive_cosine"].item() == pytest.approx(1, abs=1e-5)
    assert phase.after_step(0)["teacher/student_distance"] == 0
    with torch.no_grad():
        for parameter in phase.student.backbone.parameters():
            parameter.mul_(2)
    phase.losses(same, 1)
    momentum = phase.config.momentum(1)
    assert phase.after_step(1)["teacher/student_distance"] == pytest.approx(momentum / 2, rel=1e-4)


def test_the_queue_forgets_the_oldest_and_knows_its_age() -> None:
    queue = KeyQueue(5, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(5))
    assert (queue.filled(), queue.age(9)) == (0, 0)
    first = torch.eye(3)
    queue.push(first, 4)
    assert torch.equal(queue.keys[2:], first)
    assert queue.filled() == pytest.approx(0.6)
    assert queue.age(6) == 2
    queue.push(-first, 6)
    assert torch.equal(queue.keys, torch.cat([first[1:], -first]))
    assert queue.born.tolist() == [4, 4, 6, 6, 6]
    assert queue.age(7) == pytest.approx((2 * 3 + 3 * 1) / 5)
    assert queue.age(5) == 1, "keys of a later step are a parent's: of unknown age"
    assert queue.filled() == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_learns_but_a_frozen_patch_embedding_and_the_teacher(method: Method) -> None:
    phase = built(method, freeze_patch_embed=True)
    phase.losses(small_batch(), 0).total.backward()
    trained = [p for part in phase.trainable().values() for p in part.parameters()]
    still = list(phase.student.backbone.patch_embed.parameters())
    assert all((p.grad is None) == any(p is s for s in still) for p in trained)
    assert phase.teacher is None or all(p.grad is None and not p.requires_grad for p in phase.teacher.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_autocast_gives_a_finite_float32_loss_near_the_exact_one(method: Method) -> None:
    phase, batch = built(method), small_batch()
    exact = phase.losses(batch, 0).total
    with torch.autocast("cpu", torch.bfloat16):
        outcome = phase.losses(batch, 0)
    outcome.total.backward()
    assert outcome.total.dtype == torch.float32
    assert outcome.total.item() == pytest.approx(exact.item(), rel=0.1)
    assert outcome.record["contrast/positive_cosine"].dtype == torch.float32
    phase.after_step(0)
    assert phase.queue is None or phase.queue.keys.dtype == torch.float32


def test_one_image_is_enough_for_a_queue_and_not_for_a_batch_of_negatives() -> None:
    outcome = built("moco_v2", 1).losses(small_batch(1), 0)
    assert math.isfinite(outcome.total.item())
    assert outcome.total.item() > 0
    with pytest.raises(ValueError, match="batch_size is 1; simclr compares the images of a batch"):
        contrast_config("simclr").objective.resolve(6, 1)


MISTAKES = {
    "method": (lambda: ContrastConfig(method="byol"), "'byol'; choose simclr"),  # pyright: ignore[reportArgumentType]
    "temperature": (lambda: ContrastConfig(temperature=0.0), "temperature is 0.0"),
    "momentum": (lambda: ContrastConfig(momentum=Schedule(peak=1.5)), "1.5"),
    "queue": (lambda: ContrastConfig(queue_length=0), "at least 1 key"),
    "short queue": (lambda: contrast_config("moco_v2").objective.resolve(6, 11), "shorter than a batch of 11"),
    "widths": (lambda: ContrastConfig(predictor=EmbeddingHeadConfig(out=7)), "out is 7, projector.out 256"),
    "crops": (
        lambda: replace(contrast_config("simclr"), augment=tiny_config().augment).resolve(),
        "2 global and 2 local crops; simclr compares 2 global",
    ),
    "batch": (
        lambda: built("simclr").losses(small_batch(indices=torch.arange(2)), 0),
        "6 global and 0 local crops of 2",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_explained(name: str) -> None:
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()
