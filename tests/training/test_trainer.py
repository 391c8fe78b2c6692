"""The loop: resume is bitwise, a bad loss changes nothing, a stop is complete; all on the real parts, small."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.launch import launch
from training.phases.phase import StepLosses
from training.phases.pretrain import Pretrain
from training.trainer import EXIT_STOPPED, Trainer
from workbench.runs import Run

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_config, weights_hash


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 12 steps."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    torch.set_num_threads(1)
    assert launch(tiny_config(), run) == 0
    return run


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ask for a stop, as SIGTERM does, once `step` steps are done."""
    original = Trainer._train_one

    def train_one(self, *arguments):
        original(self, *arguments)
        if self.step == step:
            self.stop_requested = lambda: True

    monkeypatch.setattr(Trainer, "_train_one", train_one)


@pytest.mark.parametrize("step", [1, 3, 4, 6, 11])
def test_a_resumed_run_ends_with_the_same_bits(finished: Path, tmp_path: Path, monkeypatch, step: int):
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        assert launch(tiny_config(), tmp_path / "run") == EXIT_STOPPED
    assert Run(tmp_path / "run").metrics()[0][-1]["step"] <= step if step > 1 else True
    assert launch(tiny_config(), tmp_path / "run") == 0
    assert weights_hash(tmp_path / "run", 12) == weights_hash(finished, 12)
    resumed, whole = Run(tmp_path / "run"), Run(finished)
    assert [row["step"] for row in resumed.evaluations()[0]] == [row["step"] for row in whole.evaluations()[0]]
    last, expected = resumed.evaluations()[0][-1], whole.evaluations()[0][-1]
    assert {k: v for k, v in last.items() if k != "seconds"} == {k: v for k, v in expected.items() if k != "seconds"}
    assert resumed.probe_steps() == whole.probe_steps() == [0, 6, 12]


def test_workers_do_not_change_the_weights(finished: Path, tmp_path: Path):
    config = tiny_config()
    assert launch(replace(config, batch=replace(config.batch, workers=1)), tmp_path / "run") == 0
    assert weights_hash(tmp_path / "run", 12) == weights_hash(finished, 12)


def test_another_seed_gives_other_weights(finished: Path, tmp_path: Path):
    assert launch(tiny_config(seed=1), tmp_path / "run") == 0
    assert weights_hash(tmp_path / "run", 12) != weights_hash(finished, 12)


def test_softmax_centering_resumes_with_its_centers(tmp_path: Path, monkeypatch):
    config = tiny_config(6)
    config = replace(config, objective=replace(config.objective, centering="softmax"))
    assert launch(config, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert launch(config, tmp_path / "run") == EXIT_STOPPED
    assert launch(config, tmp_path / "run") == 0
    assert weights_hash(tmp_path / "run", 6) == weights_hash(tmp_path / "whole", 6)


def test_a_loss_that_is_not_finite_is_skipped_and_leaves_no_trace_in_the_weights(tmp_path: Path, monkeypatch):
    before = {}
    original = Pretrain.losses

    def losses(self, batch, step):
        outcome = original(self, batch, step)
        before[step] = [p.detach().clone() for p in self.student.parameters()]
        return StepLosses(outcome.total * float("nan"), outcome.record) if step in (4, 5) else outcome

    monkeypatch.setattr(Pretrain, "losses", losses)
    assert launch(tiny_config(8), tmp_path / "run") == 0
    assert all(torch.equal(a, b) for a, b in zip(before[4], before[6], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before[6], before[7], strict=True))
    skipped = [event for event in Run(tmp_path / "run").events()[0] if event["kind"] == "nan-skipped"]
    assert [event["step"] for event in skipped] == [4, 5]
    weights = Run(tmp_path / "run").backbone(step=8).state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_gradient_that_is_not_finite_is_skipped_too(tmp_path: Path, monkeypatch):
    original = Pretrain.losses

    def losses(self, batch, step):
        outcome = original(self, batch, step)
        if step == 2:
            outcome.total.register_hook(lambda gradient: gradient * float("inf"))
        return outcome

    monkeypatch.setattr(Pretrain, "losses", losses)
    assert launch(tiny_config(4), tmp_path / "run") == 0
    assert [e["step"] for e in Run(tmp_path / "run").events()[0] if e["kind"] == "nan-skipped"] == [2]


def test_too_many_bad_steps_end_the_run_with_advice_and_the_last_good_weights(tmp_path: Path, monkeypatch, capsys):
    original = Pretrain.losses

    def losses(self, batch, step):
        outcome = original(self, batch, step)
        return StepLosses(outcome.total * float("inf"), outcome.record) if step >= 3 else outcome

    monkeypatch.setattr(Pretrain, "losses", losses)
    assert launch(tiny_config(), tmp_path / "run") == 1
    assert "Try half the learning rate" in capsys.readouterr().err
    assert Run(tmp_path / "run").events()[0][-1]["kind"] == "diverged"
    assert (tmp_path / "run" / "resume" / "step-000003").is_dir()


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(finished: Path, tmp_path: Path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        assert launch(tiny_config(), tmp_path / "run") == EXIT_STOPPED
    newest = tmp_path / "run" / "resume" / "step-000007"
    victim = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert launch(tiny_config(), tmp_path / "run") == 0
    kinds = {event["kind"]: event["text"] for event in Run(tmp_path / "run").events()[0]}
    assert "step-000007" in kinds["checkpoint-rejected"]
    assert kinds["resumed"].endswith("step 6")
    assert weights_hash(tmp_path / "run", 12) == weights_hash(finished, 12)


def test_the_record_is_complete(finished: Path):
    run = Run(finished)
    metrics = run.metrics()[0]
    assert [row["step"] for row in metrics] == [2, 4, 6, 8, 10, 12]
    names = {"loss/total", "loss/dino", "loss/ibot", "loss/koleo", "teacher/entropy", "teacher/momentum", "rate/lr"}
    assert names <= metrics[-1].keys()
    assert all(value is not None for row in metrics for value in row.values())
    evaluation = run.evaluations()[0][-1]
    assert {"dense/linear_miou", "dense/patch_knn", "global/knn", "health/cls_patch_cosine"} <= evaluation.keys()
    config = json.loads((finished / "config.json").read_text())
    assert config["objective"]["backbone"]["embed_dim"] == 32
    assert run.probe_features(12).patches.shape == (2, 14, 14, 32)
    assert run.backbone(step=12).embed_dim == 32
