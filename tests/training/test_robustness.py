"""What may happen to a training from outside: signals, lost workers, other cadences; and what it must leave alone."""

from __future__ import annotations

import fcntl
import gc
import io
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from training.__main__ import main
from training.config import TrainConfig, as_tree
from training.data.batch import BatchStream
from training.evaluation.plan import EvaluationPlan
from training.evaluation.suite import Suite
from training.launch import EXIT_FAILED, FREE_TO_CHANGE, launch
from training.phases.phase import StepLosses
from training.phases.pretrain import Pretrain
from training.progress import ProgressLine
from training.trainer import EXIT_STOPPED, LoopConfig, Trainer
from workbench.runs import Run

sys.path.insert(0, str(Path(__file__).parent))
from tiny import OVERRIDES, tiny_config, weights_hash


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    torch.set_num_threads(1)
    assert launch(tiny_config(6), run) == 0
    return run


def signal_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, when: Callable[..., bool], *numbers: int):
    """Send this process `numbers` when `owner.name` is entered for the first time with `when` true."""
    original, sent = getattr(owner, name), []

    def entered(self, *arguments, **options):
        if not sent and when(self):
            sent.append(True)
            for number in numbers:
                os.kill(os.getpid(), number)
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, entered)


def test_a_signal_between_set_up_and_run_leaves_nothing_and_does_not_escape(tmp_path: Path):
    """SIGTERM on the first line of launch() after the parts are built, where Python's tracing can place it exactly."""
    sent = []

    def at_line(frame, event, argument):
        if not sent and event == "line" and "parts" in frame.f_locals:
            sent.append(frame.f_lineno)
            os.kill(os.getpid(), signal.SIGTERM)
        return at_line

    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: at_line if frame.f_code is launch.__code__ else None)
    try:
        code = launch(tiny_config(6), tmp_path / "run")
    finally:
        sys.settrace(before)
    assert sent
    assert code == EXIT_STOPPED
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("owner", "name", "step", "numbers"),
    [
        (Suite, "_linear_miou", 0, (signal.SIGTERM,)),
        (BatchStream, "batch_at", 0, (signal.SIGINT,)),
        (Trainer, "save", 3, (signal.SIGTERM, signal.SIGTERM)),
        (Trainer, "_publish", 6, (signal.SIGTERM,)),
    ],
)
def test_a_signal_at_an_awkward_moment_stops_cleanly(
    finished: Path, tmp_path: Path, monkeypatch, owner: type, name: str, step: int, numbers: tuple[int, ...]
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_once(patch, owner, name, lambda it: getattr(it, "step", 0) == step, *numbers)
        code = launch(tiny_config(6), run)
    assert code == EXIT_STOPPED
    assert launch(tiny_config(6), run) == 0
    assert weights_hash(run, 6) == weights_hash(finished, 6)
    assert [row["step"] for row in Run(run).evaluations()[0]] == [0, 6]
    assert [row["step"] for row in Run(run).metrics()[0]] == [2, 4, 6]


def test_a_signal_during_set_up_stops_at_once_and_leaves_nothing(tmp_path: Path, monkeypatch):
    signal_once(monkeypatch, EvaluationPlan, "suite", lambda _: True, signal.SIGTERM)
    assert launch(tiny_config(), tmp_path / "run") == EXIT_STOPPED
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_second_interrupt_ends_at_once_without_a_traceback(finished: Path, tmp_path: Path, monkeypatch, capsys):
    run, words = tmp_path / "run", [*OVERRIDES, "--loop.steps", "6"]
    with monkeypatch.context() as patch:
        signal_once(patch, Trainer, "save", lambda it: it.step == 6, signal.SIGINT, signal.SIGINT)
        assert main(["pretrain", "cpu_demo", "--run", str(run), *words]) == 130
    assert "is intact, the same command continues" in capsys.readouterr().err
    assert [path.name for path in (run / "resume").iterdir()] == ["step-000003"]
    assert main(["pretrain", "cpu_demo", "--run", str(run), *words]) == 0
    assert weights_hash(run, 6) == weights_hash(finished, 6)


def test_training_outside_the_main_thread_works(finished: Path, tmp_path: Path):
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(launch(tiny_config(6), tmp_path / "run")))
    thread.start()
    thread.join(60)
    assert codes == [0]
    assert weights_hash(tmp_path / "run", 6) == weights_hash(finished, 6)


def test_a_killed_worker_costs_no_step(finished: Path, tmp_path: Path, monkeypatch, capsys):
    config = tiny_config(6)
    config = replace(config, batch=replace(config.batch, workers=1))
    original, trainer_process = BatchStream.batch_at, os.getpid()

    def batch_at(self, step):
        if step == 5 and os.getpid() != trainer_process:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(BatchStream, "batch_at", batch_at)
        assert launch(config, tmp_path / "run") == EXIT_FAILED
    printed = capsys.readouterr().err
    assert "no data for step" in printed
    assert "the same command continues from there" in printed
    kinds = [event["kind"] for event in Run(tmp_path / "run").events()[0]]
    assert kinds[-2:] == ["saved", "failed"]
    assert launch(config, tmp_path / "run") == 0
    assert weights_hash(tmp_path / "run", 6) == weights_hash(finished, 6)


CHANGES: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "loop.log_every": lambda c: replace(c, loop=replace(c.loop, log_every=1)),
    "loop.save_every": lambda c: replace(c, loop=replace(c.loop, save_every=1)),
    "loop.keep_every": lambda c: replace(c, loop=replace(c.loop, keep_every=1)),
    "loop.on_degradation": lambda c: replace(c, loop=replace(c.loop, on_degradation="none")),
    "batch.workers": lambda c: replace(c, batch=replace(c.batch, workers=2)),
    "batch.prefetch": lambda c: replace(c, batch=replace(c.batch, prefetch=1)),
    "data.cache_mib": lambda c: replace(c, data=replace(c.data, cache_mib=0)),
}
"""Every field of FREE_TO_CHANGE that promises the same bits: all but the number of threads."""


def test_what_may_change_on_a_resume_changes_no_bit(finished: Path, tmp_path: Path, monkeypatch):
    assert set(CHANGES) | {"loop.threads"} == set(FREE_TO_CHANGE)
    with monkeypatch.context() as patch:
        signal_once(patch, Trainer, "_train_one", lambda it: it.step == 1, signal.SIGTERM)
        assert launch(tiny_config(6), tmp_path / "run") == EXIT_STOPPED
    config = tiny_config(6)
    for change in CHANGES.values():
        config = change(config)
    assert launch(config, tmp_path / "run") == 0
    assert weights_hash(tmp_path / "run", 6) == weights_hash(finished, 6)


def test_other_changes_are_refused_by_name_and_the_run_is_left_as_it_was(finished: Path):
    config = tiny_config(6)
    others = {
        "seed": replace(config, seed=4),
        "data.count": replace(config, data=replace(config.data, count=25)),
        "batch.batch_size": replace(config, batch=replace(config.batch, batch_size=5)),
        "augment.global_scale": replace(config, augment=replace(config.augment, global_scale=(0.5, 1.0))),
        "objective.ibot_weight": replace(config, objective=replace(config.objective, ibot_weight=0.3)),
        "optim.clip_norm": replace(config, optim=replace(config.optim, clip_norm=None)),
        "loop.precision": replace(config, loop=replace(config.loop, precision="bf16")),
        "evaluation.probes": replace(config, evaluation=replace(config.evaluation, probes=3)),
    }
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    for field, other in others.items():
        with pytest.raises(ValueError, match=field):
            launch(other, finished)
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.name != ".lock"}
    assert before == after


def test_fresh_deletes_nothing_before_the_new_run_is_sure_to_start(finished: Path):
    before = sorted(path for path in finished.rglob("*") if path.is_file())
    config = tiny_config(6)
    wrong = replace(config, evaluation=replace(config.evaluation, probe_size=(100, 100)))
    with pytest.raises(ValueError, match="multiples of the patch size"):
        launch(wrong, finished, fresh=True)
    assert sorted(path for path in finished.rglob("*") if path.is_file()) == before


def test_fresh_does_not_delete_a_run_in_use(finished: Path):
    before = sorted(path for path in finished.rglob("*") if path.is_file())
    with (finished / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(ValueError, match="being written by another process"):
            launch(tiny_config(6), finished, fresh=True)
    assert sorted(path for path in finished.rglob("*") if path.is_file()) == before


def test_a_fresh_start_that_was_killed_half_way_can_be_repeated(finished: Path, tmp_path: Path, monkeypatch):
    run = tmp_path / "run"
    assert launch(tiny_config(2), run) == 0

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.launch.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            launch(tiny_config(6), run, fresh=True)
    assert launch(tiny_config(6), run, fresh=True) == 0
    assert weights_hash(run, 6) == weights_hash(finished, 6)


def test_a_skipped_step_touches_no_state_and_resumes_bit_for_bit(tmp_path: Path, monkeypatch):
    config = tiny_config(6)
    config = replace(config, objective=replace(config.objective, centering="softmax"))
    original, step_once, states = Pretrain.losses, Trainer._train_one, {}

    def losses(self, batch, step):
        outcome = original(self, batch, step)
        return StepLosses(outcome.total * float("nan"), outcome.record) if step in (2, 4) else outcome

    def train_one(self, *arguments):
        step_once(self, *arguments)
        kept = {k: v.clone() for k, v in self._tensors().items() if not k.startswith(("loop/", "generator/"))}
        states[self.step] = kept
        if stop_at and self.step == stop_at[0]:
            self.stop_requested = lambda: True

    stop_at: list[int] = []
    monkeypatch.setattr(Pretrain, "losses", losses)
    monkeypatch.setattr(Trainer, "_train_one", train_one)
    assert launch(config, tmp_path / "whole") == 0
    for skipped in (3, 5):
        unlike = [k for k, v in states[skipped].items() if not torch.equal(v, states[skipped - 1][k])]
        assert unlike == [], "weights, teacher, centres and optimizer state stay"
    stop_at.append(3)
    assert launch(config, tmp_path / "run") == EXIT_STOPPED
    stop_at.clear()
    assert launch(config, tmp_path / "run") == 0
    assert weights_hash(tmp_path / "run", 6) == weights_hash(tmp_path / "whole", 6)


def test_global_generators_are_left_alone_and_have_no_say(finished: Path, tmp_path: Path):
    torch.manual_seed(123)
    np.random.seed(123)
    random.seed(123)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    assert launch(tiny_config(6), tmp_path / "run") == 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert weights_hash(tmp_path / "run", 6) == weights_hash(finished, 6)


def test_bf16_trains_on_the_cpu(finished: Path, tmp_path: Path):
    config = tiny_config(6)
    assert launch(replace(config, loop=replace(config.loop, precision="bf16")), tmp_path / "run") == 0
    half, full = Run(tmp_path / "run").metrics()[0], Run(finished).metrics()[0]
    assert half[-1]["loss/total"] == pytest.approx(full[-1]["loss/total"], abs=0.1)
    assert half[-1]["loss/total"] != full[-1]["loss/total"]


def test_training_without_local_crops(tmp_path: Path):
    config = tiny_config(2)
    assert launch(replace(config, augment=replace(config.augment, local_crops=0)), tmp_path / "run") == 0
    assert Run(tmp_path / "run").metrics()[0][-1]["loss/dino"] > 0


def test_a_long_run_holds_no_more_tensors_than_a_short_one(tmp_path: Path, monkeypatch):
    counts, original = {}, Trainer._log

    def log(self, *arguments):
        original(self, *arguments)
        gc.collect()
        counts[self.step] = sum(isinstance(item, torch.Tensor) for item in gc.get_objects())

    monkeypatch.setattr(Trainer, "_log", log)
    config = tiny_config(40)
    config = replace(config, data=replace(config.data, cache_mib=0), loop=replace(config.loop, log_every=10))
    assert launch(replace(config, loop=replace(config.loop, log_every=10, save_every=20)), tmp_path / "run") == 0
    assert counts[40] == counts[20]


@pytest.mark.parametrize("name", ["log_every", "probe_every", "evaluate_every", "save_every"])
def test_cadences_of_zero_are_refused_by_name(name: str):
    with pytest.raises(ValueError, match=f"LoopConfig.{name} is 0; the smallest allowed is 1"):
        LoopConfig(**{name: 0})
    with pytest.raises(ValueError, match="steps is -1"):
        LoopConfig(steps=-1)


def test_a_seed_that_would_be_ignored_is_refused():
    config = tiny_config()
    with pytest.raises(ValueError, match="set --seed alone"):
        replace(config, batch=replace(config.batch, seed=5)).resolve()
    assert as_tree(replace(config, seed=5).resolve())["batch"]["seed"] == 5


def test_the_progress_line_on_a_terminal_and_off_it():
    for terminal in (False, True):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=terminal, width=200)
        with ProgressLine(total=10, start=0, images_per_step=4, console=console) as progress:
            progress.waited(0.5)
            rates = progress.show(5, 1.25)
        assert ("\x1b[" in screen.getvalue()) == terminal
        assert "step 5/10 · loss 1.2500 · " in screen.getvalue()
        assert all(word in screen.getvalue() for word in ("img/s", "data wait", "left"))
        assert set(rates) == {"speed/images_per_second", "speed/data_wait"}


def test_pauses_and_the_first_window_do_not_count(monkeypatch):
    now = iter([0.0, 100.0, 120.0, 130.0])
    monkeypatch.setattr("training.progress.time.monotonic", lambda: next(now))
    screen = io.StringIO()
    progress = ProgressLine(total=40, start=0, images_per_step=8, console=Console(file=screen, width=200))
    progress.show(10, 1.0)
    assert progress.show(20, 1.0, paused=10.0)["speed/images_per_second"] == pytest.approx(8.0)
    progress.show(30, 1.0)
    assert [line.split("· ")[-1].strip() for line in screen.getvalue().splitlines()] == [
        "0:05:00 left",
        "0:00:20 left",
        "0:00:10 left",
    ]


def test_a_reader_that_hangs_up_does_not_end_the_training():
    reader, writer = os.pipe()
    os.close(reader)
    console = Console(file=os.fdopen(writer, "w", buffering=1), width=200)
    console.on_broken_pipe = lambda: sys.exit(1)  # as rich does, without redirecting the test's own output
    progress = ProgressLine(total=10, start=0, images_per_step=4, console=console)
    progress.say("nobody reads this")
    assert progress.show(5, 1.0)["speed/images_per_second"] > 0
