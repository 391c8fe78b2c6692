"""Checkpoints: whole or not at all, damage is noticed, a full disk costs nothing that was saved before."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training import checkpoint
from training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from training.launch import EXIT_FAILED, launch
from training.trainer import Trainer
from workbench.runs import Run

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_config, weights_hash


def tensors(value: float) -> dict[str, Tensor]:
    return {
        "network/weight": torch.full((64, 64), value),
        "network/half": torch.full((3,), value, dtype=torch.bfloat16),
        "generator/networks": torch.Generator().manual_seed(int(value)).get_state(),
        "loop/step": torch.tensor(int(value)),
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the kernel refuses the write, as it does when the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_is_saved_comes_back_bit_for_bit_and_two_are_kept(tmp_path: Path):
    for step in (3, 6, 9):
        save_checkpoint(tmp_path, step, tensors(step))
    assert names(tmp_path) == ["step-000006", "step-000009"]
    newest, rejected = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "step-000009"
    assert rejected == []
    loaded = tensors(0)
    load_checkpoint(newest, loaded)
    assert all(torch.equal(value, tensors(9)[name]) for name, value in loaded.items())


def test_every_file_of_a_checkpoint_is_watched(tmp_path: Path):
    save_checkpoint(tmp_path, 1, tensors(1))
    save_checkpoint(tmp_path, 2, tensors(2))
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "step-000002", whole)
    for name in names(whole):
        for harm in (damage, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-7])):
            harm(tmp_path / "step-000002" / name)
            newest, rejected = newest_checkpoint(tmp_path)
            assert newest == tmp_path / "step-000001", name
            assert len(rejected) == 1
            assert rejected[0].startswith("step-000002: ")
            shutil.rmtree(tmp_path / "step-000002")
            shutil.copytree(whole, tmp_path / "step-000002")
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-000002"


def test_a_checkpoint_under_another_steps_name_is_not_believed(tmp_path: Path):
    save_checkpoint(tmp_path, 1, tensors(1))
    shutil.copytree(tmp_path / "step-000001", tmp_path / "step-000008")
    newest, rejected = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "step-000001"
    assert rejected == ["step-000008: it was saved as step 1"]


def test_what_an_interrupted_save_left_is_ignored_and_swept(tmp_path: Path):
    save_checkpoint(tmp_path, 1, tensors(1))
    shutil.copytree(tmp_path / "step-000001", tmp_path / ".tmp-000002-dead")
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-000001"
    save_checkpoint(tmp_path, 3, tensors(3))
    assert names(tmp_path) == ["step-000001", "step-000003"]


@pytest.mark.parametrize("operation", ["fsync", "rename", "dcp"])
def test_a_save_that_fails_leaves_the_earlier_ones_and_nothing_else(tmp_path: Path, monkeypatch, operation: str):
    import torch.distributed.checkpoint as dcp

    save_checkpoint(tmp_path, 1, tensors(1))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"fsync": (os, "fsync"), "rename": (Path, "rename"), "dcp": (dcp, "save")}[operation]
    monkeypatch.setattr(*target, full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, tensors(2))
    monkeypatch.undo()
    assert names(tmp_path) == ["step-000001"]
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step-000001"


def test_a_full_disk_is_an_oserror_whatever_the_library_makes_of_it(tmp_path: Path):
    save_checkpoint(tmp_path, 1, tensors(1))
    with small_disk(4096), pytest.raises(OSError, match=r"large|written"):
        save_checkpoint(tmp_path, 2, tensors(2))
    assert names(tmp_path) == ["step-000001"]


def test_an_interrupt_inside_a_save_stays_an_interrupt(tmp_path: Path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 1, tensors(1))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network/weight": torch.zeros(64, 32)}, "network/weight"),
        ({"network/half": torch.zeros(3)}, "network/half"),
        ({"network/new": torch.zeros(1)}, "network/new"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path: Path, changed, message: str):
    path = save_checkpoint(tmp_path, 1, tensors(1))
    with pytest.raises(ValueError, match=re.escape(message)):
        load_checkpoint(path, tensors(0) | changed)


def test_a_disk_that_fills_up_ends_the_run_with_advice_and_the_run_goes_on_later(tmp_path: Path, monkeypatch, capsys):
    assert launch(tiny_config(), tmp_path / "whole") == 0
    original = Trainer.save

    def save(self):
        with small_disk(20_000 if self.step == 6 else resource.RLIM_INFINITY):
            original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", save)
        assert launch(tiny_config(), tmp_path / "run") == EXIT_FAILED
    printed = capsys.readouterr().err
    assert "the checkpoint of step 3 is kept" in printed
    assert "the same command continues from there" in printed
    assert "Traceback" not in printed
    assert names(tmp_path / "run" / "resume") == ["step-000003"]
    assert Run(tmp_path / "run").events()[0][-1]["kind"] == "failed"
    assert Run(tmp_path / "run").status() == "crashed"
    assert launch(tiny_config(), tmp_path / "run") == 0
    assert weights_hash(tmp_path / "run", 12) == weights_hash(tmp_path / "whole", 12)
    steps = [row["step"] for row in Run(tmp_path / "run").metrics()[0]]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_damaged_later_checkpoints_do_not_push_out_the_good_ones(tmp_path: Path):
    run = tmp_path / "run"
    assert launch(tiny_config(), run) == 0
    good = weights_hash(run, 12)
    resume = run / "resume"
    assert names(resume) == ["step-000009", "step-000012"]
    damage(resume / "step-000012" / "COMPLETE.json")
    shutil.copytree(resume / "step-000012", resume / "step-000099")
    assert launch(tiny_config(), run) == 0
    assert names(resume) == ["step-000009", "step-000012"]
    assert newest_checkpoint(resume) == (resume / "step-000012", [])
    assert weights_hash(run, 12) == good


def test_a_run_without_a_trustworthy_checkpoint_is_never_started_over_in_silence(tmp_path: Path):
    run = tmp_path / "run"
    assert launch(tiny_config(6), run) == 0
    for path in (run / "resume").glob("step-*"):
        damage(path / "COMPLETE.json")
        (path / ".metadata").unlink()
    before = {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="can be trusted"):
        launch(tiny_config(6), run)
    assert {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert launch(tiny_config(6), run, fresh=True) == 0
    assert json.loads((run / "resume" / "step-000006" / "COMPLETE.json").read_text())["step"] == 6
    assert checkpoint.step_of(run / "resume" / "step-000006") == 6
