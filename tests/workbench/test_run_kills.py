"""kill -9 of a writer at random moments, with a reader following: nothing that counts is lost, nothing comes twice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import torch

from workbench.features import Features
from workbench.runs import Run, RunWriter

KILLS = 20
EVERY = 3
"""Steps between snapshots; the newest snapshot is where a killed writer goes on."""


def newest(path: Path) -> int | None:
    return max(Run(path).steps(), default=None) if (path / "run.json").exists() else None


def write_until_killed(path: Path) -> None:
    """What a trainer does: create or reopen, then write on and on. Never returns."""
    saved = newest(path)
    exists = (path / "run.json").exists()
    writer = RunWriter.reopen(path, step=saved) if exists else RunWriter.create(path, info={"phase": "test"}, config={})
    writer.event(saved or 0, "info", "resumed" if exists else "started", "")
    for step in range((saved or 0) + 1, 10**6):
        writer.metrics(step, step, {"loss/total": 1 / step, "text": 10**15})
        if step % EVERY == 0:
            patches = torch.full((2, 4, 4, 8), step % 1000, dtype=torch.float16)
            writer.evaluation(step, step, "teacher", {"global/knn": 0.5})
            writer.probe_features(step, Features(patches, patches[:, 0, 0], patches[:, 0, :0]))
            writer.backbone("teacher", step, {"class": "None", "config": {}}, {"w": torch.full((64,), float(step))})


def start_writer(path: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(path)
        finally:
            os._exit(1)  # only reached by a fault: a killed process runs nothing
    return child


class Follower:
    """A reader that tails the metrics as the page does."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.position = 0

    def look(self, path: Path) -> None:
        if not (path / "run.json").exists():
            return
        rows, position = Run(path).metrics(self.position)
        if position < self.position:
            self.rows = []
        self.rows, self.position = self.rows + rows, position


def check_whole(path: Path) -> int:
    """Every snapshot opens and holds its step; the records are 1, 2, 3, … once each. The number of records."""
    from safetensors.torch import load_file

    run = Run(path)
    steps = [row["step"] for row in run.metrics()[0]]
    assert steps == list(range(1, len(steps) + 1))
    assert set(run.skipped.values()) == {0}
    for step in run.steps():
        weights = load_file(path / "backbones" / "teacher" / f"step-{step:06d}.safetensors")["w"]
        assert torch.equal(weights, torch.full((64,), float(step)))
    for step in run.probe_steps():
        assert run.probe_features(step).patches.unique().tolist() == [step % 1000]
    return len(steps)


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    path, chance, follower, reached = tmp_path / "run", random.Random(0), Follower(), 0
    for _ in range(KILLS):
        child = start_writer(path)
        deadline = time.monotonic() + chance.uniform(0.002, 0.25)
        while time.monotonic() < deadline:
            follower.look(path)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself: an exception, not the kill"
        if (path / "run.json").exists():
            records = check_whole(path)
            saved = newest(path) or 0
            assert saved >= reached, "a snapshot that was written is gone"
            assert records >= saved
            reached = saved
            assert Run(path).status() == "crashed"
    assert reached > KILLS, "the kills came too early to show anything"
    follower.look(path)
    assert [row["step"] for row in follower.rows] == [row["step"] for row in Run(path).metrics()[0]]
    RunWriter.reopen(path, step=reached).close()
    assert check_whole(path) == reached
    assert not list(path.rglob(".tmp-*"))
    evaluated = [row["step"] for row in Run(path).evaluations()[0]]
    assert evaluated == list(range(EVERY, reached + 1, EVERY)) == Run(path).probe_steps() == Run(path).steps()
