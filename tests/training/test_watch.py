"""What the loop does when dense features decline, with evaluations that say so."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.tiny import anchored, tiny_config, weights_hash
from training.config import as_tree, config_from_tree, differences
from training.fork import main as fork
from training.launch import EXIT_DEGRADED, launch
from training.phases.anchor import AnchorConfig, GramConfig
from training.phases.contrast import ContrastConfig
from training.recipes import RECIPES
from training.watch import PEAK
from workbench.analysis.advice import fork_command
from workbench.analysis.onset import Begun, OnsetConfig
from workbench.runs import Run

RISE_AND_FALL = [0.30, 0.36, 0.42, 0.47, 0.50, 0.45, 0.40, 0.36, 0.32, 0.28, 0.25, 0.22]
RISE = [0.30 + 0.02 * i for i in range(12)]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the suite says at evaluations 0, 1, 2, ...: the test fills the list. Steps stand for a hundred each."""
    values: list[float] = []
    asked = iter(range(1000))

    def suite(self, backbone) -> Iterator[tuple[str, float]]:
        yield "dense/patch_knn", values[min(next(asked), len(values) - 1)]

    monkeypatch.setattr("training.evaluation.suite.Suite.__call__", suite)
    monkeypatch.setattr("training.watch.config_for", _quick)
    return values


def _quick(begun: Begun) -> OnsetConfig:
    """Steps of a tiny run are not hundreds: hardly a warm-up, no memory between rows."""
    forked = begun == "fork"
    return OnsetConfig(warmup_steps=0 if forked else 1, trained=forked, memory_steps=0.01)


def config(steps: int = 11, **loop):
    base = tiny_config(steps=steps)
    return replace(base, loop=replace(base.loop, evaluate_every=1, probe_every=1, save_every=2, **loop))


def events(path: Path, kind: str) -> list[dict]:
    return [event for event in Run(path).events()[0] if event["kind"] == kind]


def test_a_decline_is_written_once_with_its_advice(scores: list[float], tmp_path: Path):
    scores[:] = RISE_AND_FALL
    path = tmp_path / "it's a run"
    assert launch(config(), path) == 0
    (event,) = events(path, PEAK)
    assert event["level"] == "warn"
    assert event["peak_step"] == 4
    assert event["since"] == 5
    assert event["confidence"] > 0.95
    assert event["advised_step"] == 4
    words = shlex.split(event["command"])
    assert words[:5] == ["python", "-m", "training", "fork", str(path)]
    assert f"run:{path}@step=4:teacher" in words
    assert "python" not in event["text"]


def test_a_rise_is_left_alone(scores: list[float], tmp_path: Path):
    scores[:] = RISE
    assert launch(config(), tmp_path / "run") == 0
    assert not events(tmp_path / "run", PEAK)


def test_none_does_not_look(scores: list[float], tmp_path: Path):
    scores[:] = RISE_AND_FALL
    assert launch(config(on_degradation="none"), tmp_path / "run") == 0
    assert not events(tmp_path / "run", PEAK)


def test_stop_saves_and_the_same_command_goes_on(scores: list[float], tmp_path: Path):
    scores[:] = RISE_AND_FALL
    path = tmp_path / "run"
    assert launch(config(on_degradation="stop"), path) == EXIT_DEGRADED
    stopped = Run(path).steps()[-1]
    assert stopped < 11
    assert "dense features decline" in events(path, "stopped")[-1]["text"]
    assert launch(config(on_degradation="stop"), path) == 0
    assert Run(path).steps()[-1] == 11
    assert len(events(path, PEAK)) == 1
    scores[:] = RISE_AND_FALL
    assert launch(config(on_degradation="none"), tmp_path / "whole") == 0
    assert weights_hash(path, 11) == weights_hash(tmp_path / "whole", 11), "looking must not change training"


def test_fork_starts_the_advised_one(scores: list[float], tmp_path: Path):
    scores[:] = RISE_AND_FALL
    path = tmp_path / "run"
    assert launch(config(on_degradation="fork"), path) == 0
    child = Run(tmp_path / "run-gram")
    assert child.info["phase"] == "anchor"
    assert child.info["parent"] == {"run": "run", "step": Run(path).steps()[-1]}
    assert child.config["objective"]["gram"]["teacher"] == f"run:{path}@step=4"
    assert child.steps()[-1] == 11


def test_one_command_forks_any_self_distillation_run_with_gram_and_resumes_without_the_parent(tmp_path: Path):
    parent = tmp_path / "parent"
    assert launch(config(steps=4), parent) == 0
    child = tmp_path / "child"
    words = [str(parent), "--step", "2", "--teacher", f"run:{parent}@step=1", "--weight", "5", "--run", str(child)]
    assert fork([*words, "--steps", "3"]) == 0
    run = Run(child)
    assert run.info["parent"] == {"run": "parent", "step": 2}
    assert run.config["objective"]["gram"]["weight"]["peak"] == 5
    assert run.config["objective"]["momentum"]["shape"] == "constant"
    resolved = config(steps=4).resolve()
    assert run.config["optim"]["lr"]["peak"] == resolved.optim.lr(2)
    assert all(row["loss/gram"] >= 0 for row in run.metrics()[0])
    parent.rename(tmp_path / "gone")
    assert fork([*words, "--steps", "3"]) == 0, "a finished run answers at once"
    assert fork([str(parent), "--run", str(child)]) == 0, "what is not said is as it was"


def test_another_fork_into_the_same_folder_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parent, child = tmp_path / "parent", tmp_path / "parent-gram"
    assert launch(config(steps=3), parent) == 0
    assert fork([str(parent), "--weight", "5", "--steps", "2"]) == 0
    before = {path: path.read_bytes() for path in child.rglob("*") if path.is_file() and path.name != ".lock"}
    for words, told in (
        (["--weight", "7"], "weight 5.0 there, 7.0 asked for"),
        (["--step", "2"], "step 3 there, 2 asked for"),
        (["--teacher", f"run:{parent}@step=1"], "teacher fork there"),
    ):
        assert fork([str(parent), *words]) == 2
        assert told in capsys.readouterr().err
    assert fork([str(tmp_path / "other"), "--run", str(child)]) == 2
    assert "is another fork (parent" in capsys.readouterr().err
    assert fork([str(child), "--run", str(parent)]) == 2
    assert "no fork with Gram anchoring" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in child.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_fork_that_cannot_be_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parent = tmp_path / "parent"
    assert launch(config(steps=2), parent) == 0
    assert fork([str(parent), "--step", "1"]) == 2
    assert "no resume checkpoint of step 1; nearest" in capsys.readouterr().err
    assert fork([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "parent-gram").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recorded_config_is_read_back(name: str):
    config = RECIPES[name].build().resolve()
    back = config_from_tree(as_tree(config), config.objective.phase)
    assert type(back.objective) is type(config.objective)
    assert back == config
    assert differences(as_tree(back), as_tree(config)) == []


def test_a_config_of_another_version_is_refused_or_filled_up():
    tree = as_tree(RECIPES["cpu_demo"].build())
    older = {**tree, "loop": {key: value for key, value in tree["loop"].items() if key != "on_degradation"}}
    assert config_from_tree(older, "pretrain").loop.on_degradation == "warn"
    with pytest.raises(ValueError, match="no field 'warp'"):
        config_from_tree({**tree, "warp": 9}, "pretrain")
    with pytest.raises(ValueError, match="none of this version"):
        config_from_tree({**tree, "loop": 5}, "pretrain")


def test_gram_is_kept_from_contrast(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = config(steps=2)
    objective = ContrastConfig(
        method="simclr", backbone=base.objective.backbone, initialisation="fan-in", projector=_small()
    )
    simclr = replace(base, objective=objective, augment=replace(base.augment, local_crops=0))
    assert launch(simclr, tmp_path / "simclr") == 0
    assert fork([str(tmp_path / "simclr")]) == 2
    assert "goes with self-distillation" in capsys.readouterr().err


def _small():
    from training.heads import EmbeddingHeadConfig

    return EmbeddingHeadConfig(hidden=16, out=8, batch_norm=True)


def test_an_anchored_run_is_forked_with_its_own_parts(tmp_path: Path):
    base = anchored(config(steps=2), GramConfig(teacher="ema"))
    tree = as_tree(base.resolve())
    assert isinstance(config_from_tree(tree, "anchor").objective, AnchorConfig)


def test_hostile_names_are_quoted():
    words = shlex.split(fork_command("runs/$(touch x); 'y", 3))
    assert words == [
        "python",
        "-m",
        "training",
        "fork",
        "runs/$(touch x); 'y",
        "--teacher",
        "run:runs/$(touch x); 'y@step=3",
    ]
