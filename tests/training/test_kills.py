"""kill -9 at random moments, then the same command: nothing is lost, and the weights end with the same bits."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny import OVERRIDES, command, train, weights_hash

from workbench.runs import Run

KILLS = int(os.environ.get("DFW_KILLS", "20"))
"""They cost about 100 CPU seconds, most of it imports; `DFW_KILLS` asks for more or fewer."""
LAST = 16
STEPS = ["--loop.steps", str(LAST)]


def steps_done(run: Path) -> int:
    """The last logged step, 0 before the first."""
    try:
        rows, _ = Run(run).metrics()
    except ValueError:
        return 0
    return rows[-1]["step"] if rows else 0


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    """What a living child has computed so far. A clock that other work on the cores does not move (Linux)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def life_of(run: Path) -> float:
    """Train `run` to its end; the CPU seconds that took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = train(run, *STEPS, timeout=600)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def killed_after(run: Path, seconds: float) -> bool:
    """Start or resume `run` and kill it after so many CPU seconds; False when it ended before."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command(run, *OVERRIDES, *STEPS), stderr=errors, stdout=errors, text=True)
        while process.poll() is None:
            if cpu_seconds(process) >= seconds:
                process.kill()
                return process.wait() == -signal.SIGKILL
            time.sleep(0.005)
        errors.seek(0)
        assert process.returncode == 0, errors.read()
    return False


def check_finished(run: Path, clean: Path) -> None:
    """`run` ended with the bits of `clean`, and with the same records, each once."""
    assert weights_hash(run, LAST) == weights_hash(clean, LAST)
    record, whole = Run(run), Run(clean)
    assert [row["step"] for row in record.metrics()[0]] == list(range(2, LAST + 1, 2))
    assert record.probe_steps() == whole.probe_steps() == record.steps() == [0, 6, 12, LAST]
    assert [row["step"] for row in record.evaluations()[0]] == [0, 12, LAST]
    assert not list(run.rglob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the cores may be busy with other things
def test_kill_minus_nine_at_random_moments(tmp_path: Path):
    """Moments from the whole life of a process: imports, a run directory half made, steps, the last save and after."""
    clean = tmp_path / "clean"
    lasting = life_of(clean)
    moments, runs, killed, before_it_was_a_run = random.Random(0), [tmp_path / "run0"], 0, 0
    while killed < KILLS:
        run = runs[-1]
        fresh = not (run / "run.json").exists()
        share = moments.uniform(0.0, 1.05) if killed else 0.2  # the first one during the imports
        if killed_after(run, share * lasting):
            killed += 1
            before_it_was_a_run += fresh and not (run / "run.json").exists()
        else:  # it ended before we struck: begin another run, and keep counting
            check_finished(run, clean)
            runs.append(tmp_path / f"run{len(runs)}")
    life_of(runs[-1])
    check_finished(runs[-1], clean)
    assert before_it_was_a_run, "no kill came before there was a run"


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
