"""kill -9 at random moments, then the same command: nothing is lost, and the weights end with the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny import OVERRIDES, command, train, weights_hash

from workbench.runs import Run

KILLS = int(os.environ.get("DFW_KILLS", "4"))
"""20 kills take about three minutes; `make test` does with a few, `DFW_KILLS=20` is the full measure."""
STEPS = ["--loop.steps", "40"]


def start(run: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(run, *OVERRIDES, *STEPS),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def steps_done(run: Path) -> int:
    """The last logged step, 0 before the first."""
    try:
        rows, _ = Run(run).metrics()
    except ValueError:
        return 0
    return rows[-1]["step"] if rows else 0


@pytest.mark.slow
def test_kill_minus_nine_at_random_moments(tmp_path: Path):
    clean = train(tmp_path / "clean", *STEPS)
    assert clean.returncode == 0, clean.stderr
    began = time.monotonic()
    whole = train(tmp_path / "timed", *STEPS)
    lasting = time.monotonic() - began
    assert whole.returncode == 0
    moments = random.Random(0)
    run, killed = tmp_path / "run", 0
    while killed < KILLS:
        process = start(run)
        try:
            process.wait(moments.uniform(0.3, 1.0) * lasting * 0.8)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
            process.wait()
            continue
        assert process.returncode == 0, process.stderr.read() if process.stderr else ""
        if killed < KILLS:  # it ended before we struck: begin another run, and keep counting
            assert weights_hash(run, 40) == weights_hash(tmp_path / "clean", 40)
            run = tmp_path / f"run{killed}"
    final = train(run, *STEPS)
    assert final.returncode == 0, final.stderr
    assert weights_hash(run, 40) == weights_hash(tmp_path / "clean", 40)
    record = Run(run)
    assert [row["step"] for row in record.metrics()[0]] == list(range(2, 41, 2))
    assert record.probe_steps() == Run(tmp_path / "clean").probe_steps()
    assert [row["step"] for row in record.evaluations()[0]] == [0, 12, 24, 36, 40]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_sigterm_saves_and_asks_to_be_run_again(tmp_path: Path, workers: str):
    run = tmp_path / "run"
    words = command(run, *OVERRIDES, "--loop.steps", "400", "--batch.workers", workers)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 100
    while steps_done(run) < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    took = time.monotonic() - began
    assert process.returncode == 75, errors
    assert "the same command continues from here" in errors
    assert took < 10, f"saving took {took:.1f} s"
    checkpoints = sorted((run / "resume").glob("step-*"))
    assert int(checkpoints[-1].name.removeprefix("step-")) >= steps_done(run) - 1
    assert Run(run).events()[0][-1]["kind"] == "stopped"
