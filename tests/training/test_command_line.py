"""Every wrong command ends with exit code 2, one clear message and no traceback, and loses nothing."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from tiny import OVERRIDES

from training.__main__ import main
from training.config import differences


def attempt(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and everything printed by `python -m training WORDS`."""
    try:
        code = main(list(words))
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


MISTAKES = {
    "no words": ([], "phases and recipes"),
    "wrong phase": (["pretrian", "cpu_demo"], "did you mean 'pretrain'?"),
    "no recipe": (["pretrain"], "phases and recipes"),
    "wrong recipe": (["pretrain", "cpu_dmo"], "did you mean 'cpu_demo'?"),
    "unknown field": (["pretrain", "cpu_demo", "--loop.stpes", "4"], "--loop.steps"),
    "unknown nested field": (
        ["pretrain", "cpu_demo", "--objective.backbone.embed-dims", "4"],
        "--objective.backbone.embed-dim",
    ),
    "not a number": (["pretrain", "cpu_demo", "--loop.steps", "many"], "--loop.steps"),
    "wrong choice": (["pretrain", "cpu_demo", "--objective.centering", "mean"], "sinkhorn"),
    "impossible head": (["pretrain", "cpu_demo", "--objective.backbone.num-heads", "5"], "num_heads"),
    "crop off the patch grid": (["pretrain", "cpu_demo", "--augment.global-size", "50"], "48 or 56"),
    "warm-up too long": (
        ["pretrain", "cpu_demo", "--loop.steps", "5", "--optim.lr.warmup-steps", "9"],
        "shorten warmup_steps",
    ),
    "missing pack": (["pretrain", "cpu_real", "--data.library", "{tmp}/nowhere"], "nowhere"),
    "pack without index": (["pretrain", "cpu_real", "--data.library", "{tmp}/empty"], "index.csv"),
    "missing folder": (["pretrain", "vitl16_im1k", "--data.path", "{tmp}/nowhere"], "nowhere"),
    "folder with no images": (["pretrain", "vitl16_im1k", "--data.path", "{tmp}/text"], "no image"),
    "cadence of zero": (["pretrain", "cpu_demo", "--loop.log-every", "0"], "log_every is 0"),
    "no temperature": (["pretrain", "cpu_demo", "--objective.student-temperature", "0"], "temperature"),
    "not a number, exactly": (["pretrain", "cpu_demo", "--optim.weight-decay.peak", "nan"], "is nan or infinite"),
    "optimizer's own rule": (["pretrain", "cpu_demo", "--optim.betas", "2", "2", *OVERRIDES], "beta"),
    "KoLeo group of another batch": (["pretrain", "cpu_demo", "--objective.koleo-group", "5"], "koleo_group is 5"),
    "KoLeo without a neighbour": (["pretrain", "cpu_demo", "--objective.koleo-group", "1"], "koleo_group is 1"),
    "warm-up from temperature 0": (
        ["pretrain", "cpu_demo", "--objective.teacher-temperature.warmup-steps", "100"],
        "teacher_temperature.start",
    ),
    "momentum above 1": (
        ["pretrain", "cpu_demo", "--objective.momentum.end", "1.5", "--objective.momentum.shape", "cosine"],
        "1.5",
    ),
    "one crop": (
        ["pretrain", "cpu_demo", "--augment.global-crops", "1", "--augment.local-crops", "0"],
        "augment has 1 crop",
    ),
    "fork of no run": (["anchor", "cpu_anchor", "--start.fork", "run:{tmp}/nowhere@step=3"], "nowhere"),
    "fork without a step": (["anchor", "cpu_anchor", "--start.fork", "run:{tmp}/run"], "run:PATH@step=N"),
    "fork of a step not kept": (
        ["anchor", "cpu_anchor", "--start.fork", "run:{tmp}/run@step=3"],
        "keeps no resume checkpoint of step 3; steps that have one: none",
    ),
    "anchoring without a fork": (["anchor", "cpu_anchor"], "add --start.fork run:PATH@step=N"),
    "fork and weights": (
        ["adapt", "cpu_adapt", "--start.fork", "run:{tmp}/run@step=3", "--start.weights", "synthetic"],
        "both given",
    ),
    "wrong fork with --fresh onto a run": (
        ["anchor", "cpu_anchor", "--run", "{tmp}/run", "--fresh", "--start.fork", "run:{tmp}/nowhere@step=3"],
        "nowhere",
    ),
    "fork of the run that --fresh deletes": (
        ["anchor", "cpu_anchor", "--run", "{tmp}/run", "--fresh", "--start.fork", "run:{tmp}/text/../run@step=3"],
        "which this run starts from",
    ),
    "Gram teacher of the run that --fresh deletes": (
        ["anchor", "cpu_anchor", "--run", "{tmp}/run", "--fresh", "--objective.gram.teacher", "run:{tmp}/run"],
        "which this run starts from",
    ),
    "weights of nothing": (["pretrain", "cpu_continue", "--start.weights", "resnet"], "valid forms"),
    "weights of another kind": (["pretrain", "cpu_continue", "--start.weights", "synthetic"], "SyntheticBackbone"),
    "masked tokens image by image": (
        ["anchor", "cpu_anchor", "--objective.gram.tokens", "masked"],
        "needs level 'batch'",
    ),
    "Gram teacher of no run": (
        ["anchor", "cpu_anchor", "--objective.gram.teacher", "run:{tmp}/nowhere@step=3"],
        "nowhere",
    ),
    "Gram crops off the patch grid": (["anchor", "cpu_anchor", "--augment.gram-size", "98"], "96 or 104"),
    "Gram crops for the live teacher": (
        ["anchor", "cpu_anchor", "--objective.gram.teacher", "ema", "--objective.gram.refresh-every", "0"],
        "no Gram teacher would see them",
    ),
    "Gram crops for nobody": (["pretrain", "cpu_demo", "--augment.gram-size", "96"], "no Gram teacher would see them"),
    "mixed resolutions off the patch grid": (
        ["adapt", "cpu_adapt", "--resolutions.choices", "64", "24", "96", "0.5", "96", "20", "144", "0.5"],
        "local_size is 20",
    ),
    "mixed resolutions of too little probability": (
        ["adapt", "cpu_adapt", "--resolutions.choices", "64", "24", "96", "0.5"],
        "ResolutionMix has",
    ),
    "negative freezing": (["pretrain", "cpu_demo", "--optim.freeze-backbone-steps", "-1"], "freeze_backbone_steps"),
    "no probes": (["pretrain", "cpu_demo", "--evaluation.probes", "0"], "at least 1"),
    "unusable device": (["pretrain", "cpu_demo", "--loop.device", "warp"], "--loop.device auto"),
    "run is a file": (["pretrain", "cpu_demo", "--run", "{tmp}/file.txt"], "file.txt"),
    "run is not writable": (["pretrain", "cpu_demo", "--run", "/proc/nobody/run"], "/proc/nobody"),
    "run is another folder": (["pretrain", "cpu_demo", "--run", "{tmp}/text"], "text"),
    "fresh on another folder": (["pretrain", "cpu_demo", "--run", "{tmp}/text", "--fresh"], "does not delete"),
    "other config": (["pretrain", "cpu_demo", "--run", "{tmp}/run", "--seed", "7"], "seed: 0 -> 7"),
    "future format": (["pretrain", "cpu_demo", "--run", "{tmp}/future"], "version"),
}


@pytest.fixture
def surroundings(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("precious")
    (tmp_path / "file.txt").write_text("precious")
    for name, version in (("run", 1), ("future", 99)):
        (tmp_path / name).mkdir()
        about = {"format_version": version, "name": name, "phase": "pretrain", "steps": 1}
        (tmp_path / name / "run.json").write_text(json.dumps(about))
        (tmp_path / name / "config.json").write_text(json.dumps({"seed": 0}))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_explained_and_loses_nothing(case: str, surroundings: Path, capsys, monkeypatch):
    words, hint = MISTAKES[case]
    monkeypatch.chdir(surroundings)
    before = contents(surroundings)
    code, text = attempt(capsys, *[word.replace("{tmp}", str(surroundings)) for word in words])
    assert code == 2, text
    assert hint in text
    assert "Traceback" not in text
    assert contents(surroundings) == before


def test_a_run_in_use_is_left_alone(surroundings: Path, capsys, monkeypatch):
    run = surroundings / "used"
    assert main(["pretrain", "cpu_demo", "--run", str(run), *OVERRIDES, "--loop.steps", "2"]) == 0
    capsys.readouterr()
    with (run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        code, text = attempt(capsys, "pretrain", "cpu_demo", "--run", str(run), *OVERRIDES, "--loop.steps", "2")
    assert code == 2
    assert "Traceback" not in text
    assert str(run) in text


def test_several_processes_are_refused_by_name(capsys, monkeypatch, tmp_path: Path):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    code, text = attempt(capsys, "pretrain", "cpu_demo", "--run", str(tmp_path / "run"))
    assert code == 2
    assert "WORLD_SIZE" in text


def test_fresh_starts_again(tmp_path: Path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", "cpu_demo", "--run", str(run), *OVERRIDES, "--loop.steps", "2"]) == 0
    assert (
        main(["pretrain", "cpu_demo", "--run", str(run), *OVERRIDES, "--loop.steps", "2", "--seed", "3", "--fresh"])
        == 0
    )
    assert json.loads((run / "run.json").read_text())["seed"] == 3


def test_print_config_writes_nothing(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = attempt(capsys, "pretrain", "vitl16_im1k", "--print-config")
    assert code == 0
    shown = json.loads(text)
    assert shown["objective"]["dino_head"]["prototypes"] == 65536
    assert shown["optim"]["lr"]["warmup_steps"] == 12_500, "a tenth of the run, in steps"
    assert shown["optim"]["lr"]["peak"] == pytest.approx(1e-3 * 4 * 2**0.5), "scaled for 2048 images"
    assert list(tmp_path.iterdir()) == []


def test_print_config_shows_what_the_run_records(tmp_path: Path, capsys):
    words = ["pretrain", "cpu_demo", "--run", str(tmp_path / "run"), *OVERRIDES, "--loop.steps", "20", "--seed", "5"]
    code, text = attempt(capsys, *words, "--print-config")
    assert code == 0
    assert main([*words, "--loop.save-every", "20"]) == 0
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    assert differences(json.loads(text), recorded) == ["loop.save_every: 3 -> 20"]


def test_print_config_of_parts_that_do_not_fit_is_explained(capsys):
    code, text = attempt(capsys, "pretrain", "cpu_demo", "--objective.koleo-group", "5", "--print-config")
    assert code == 2
    assert "koleo_group is 5" in text


def test_cadence_may_change_on_resume(tmp_path: Path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", "cpu_demo", "--run", str(run), *OVERRIDES, "--loop.steps", "2"]) == 0
    assert (
        main(["pretrain", "cpu_demo", "--run", str(run), *OVERRIDES, "--loop.steps", "2", "--loop.save-every", "1"])
        == 0
    )


@pytest.mark.parametrize("change", ["one more", "another picture"])
def test_changed_data_is_noticed_on_resume_and_nothing_is_lost(change: str, tmp_path: Path, capsys):
    folder, run = tmp_path / "pictures", tmp_path / "run"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    for index in range(4):
        Image.fromarray(pixels[index]).save(folder / f"{index}.png")
    sizes = OVERRIDES[OVERRIDES.index("--batch.batch-size") :]  # what comes before describes scenes
    words = ["pretrain", "cpu_folder", "--data.path", str(folder), "--run", str(run), *sizes, "--loop.steps", "2"]
    assert attempt(capsys, *words)[0] == 0
    Image.fromarray(pixels[4]).save(folder / ("4.png" if change == "one more" else "0.png"))
    before = contents(run)
    code, text = attempt(capsys, *words)
    assert code == 2, text
    assert "the data changed" in text
    assert ("4 images, now there are 5" if change == "one more" else "other probe images") in text
    assert contents(run) == before
