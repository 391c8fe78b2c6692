"""From a config to a finished, stopped or resumed run: builds every part once, hands them to the loop."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError

from training import checkpoint
from training.config import TrainConfig, as_tree, differences
from training.evaluation.plan import EvaluationPlan
from training.optim import build_optimizer
from training.progress import ProgressLine
from training.start import begin
from training.trainer import EXIT_STOPPED, DataFailed, Trainer, TrainingDiverged
from workbench import __version__
from workbench.run_files import RunLock
from workbench.run_layout import CONFIG_FILE, LOCK_FILE, PROBE_IMAGES_FOLDER, PROBES_FOLDER, RESUME_FOLDER, RUN_FILE
from workbench.run_probes import same_probes
from workbench.runs import Run, RunWriter, parse_run_spec

FREE_TO_CHANGE = (
    "loop.threads",
    "loop.log_every",
    "loop.save_every",
    "loop.keep_every",
    "loop.on_degradation",
    "batch.workers",
    "batch.prefetch",
    "data.cache_mib",
)
"""Fields that a resume may change: speed and cadence, not what is computed. With another number of threads sums may be
split differently, and the last bits of the weights with them; all others leave every bit as it is."""

EXIT_DEGRADED = 3
"""Stopped by --loop.on-degradation stop: dense features decline. The same command goes on all the same."""

EXIT_FAILED = 74  # EX_IOERR: the disk or the data failed; mend it and run the same command again


def launch(config: TrainConfig, folder: Path, *, fresh: bool = False) -> int:
    """Start or resume the run in `folder`; returns the process's exit code.

    0 finished, 75 stopped (the same command continues), 3 stopped because dense features decline (it continues, too),
    74 the disk or the data failed (mend it, then the same command continues), 1 diverged. Raises ValueError or OSError,
    with nothing lost, for what a person can mend before anything starts: a wrong folder, another config, a lock.
    """
    _refuse_many_processes()
    config = config.resolve()
    device = _device(config.loop.device)
    if config.loop.threads:
        torch.set_num_threads(config.loop.threads)
    _check_folder(config, folder, fresh)
    with _stop_flag() as stop:
        try:  # before the run directory is touched: a mistake in here leaves nothing behind, not even with --fresh
            plan, parts = _parts(config, device)
            parent = None
            if fresh or not checkpoint.kept_steps(folder / RESUME_FOLDER):
                parent = begin(config.start, config.objective.references, parts["phase"], parts["optimizer"])
            stop.noted_only = True  # in here: a signal on the way out of the try would be caught by nothing
        except _StoppedEarlyError:
            return EXIT_STOPPED
        if fresh:
            _empty(folder)
        about = {"parent": parent, "backbone": next(iter(parts["phase"].backbones()))}
        writer, resume = _open(config, folder, plan, len(parts["stream"].source), about)
        with writer:
            trainer = Trainer(
                **parts,
                writer=writer,
                resume_folder=folder / RESUME_FOLDER,
                device=device,
                stop_requested=lambda: stop.requested,
                begun="fork" if config.start.fork else "weights" if config.start.weights else "random",
            )
            code = _run(trainer, writer, plan, resume, config)
    if code == EXIT_DEGRADED and config.loop.on_degradation == "fork":
        from training.fork import follow  # which launches in its turn

        return follow(folder)
    return code


def _parts(config: TrainConfig, device: str) -> tuple[EvaluationPlan, dict[str, Any]]:
    """The evaluation plan, and what a Trainer needs besides the run directory."""
    try:
        json.dumps(as_tree(config), allow_nan=False)
    except ValueError:
        raise ValueError(
            "a number of the config is nan or infinite; --print-config shows which, give another"
        ) from None
    phase = config.objective.build(seed=config.seed, device=device)
    source = config.data.build()
    normalisation = (config.augment.mean, config.augment.std)
    patch_size = config.objective.backbone.patch_size
    stream = config.stream(source)
    plan = EvaluationPlan(config.evaluation, config.data, patch_size=patch_size, source=source)
    return plan, {
        "phase": phase,
        "optimizer": build_optimizer(phase.trainable(), config.optim, config.objective.backbone.depth),
        "stream": stream,
        "suite": plan.suite(*normalisation),
        "probes": plan.probes.images,
        "normalisation": normalisation,
        "optim": config.optim,
        "loop": config.loop,
    }


def _run(trainer: Trainer, writer: RunWriter, plan: EvaluationPlan, resume: Path | None, config: TrainConfig) -> int:
    plan.publish(writer)  # the same images again, or none yet
    if resume is not None:
        trainer.load(resume)
        writer.event(trainer.step, "info", "resumed", f"continued from step {trainer.step}")
    else:
        source = config.start.fork or config.start.weights
        begun = f" from {source}" if source else ""
        writer.event(0, "info", "started", f"recipe {config.recipe}, seed {config.seed}{begun}")
        if begun or config.objective.references:
            trainer.save()  # a resume needs nothing but the run itself from here on
    images = config.batch.batch_size
    with ProgressLine(total=config.loop.steps, start=trainer.step, images_per_step=images) as progress:
        progress.say(f"run {writer.path} · step {trainer.step} of {config.loop.steps}")
        for repair in writer.repairs:
            progress.say(f"warning: {repair}")
        try:
            finished = _train(trainer, progress)
        except TrainingDiverged as error:
            return _ended_badly(trainer, progress, "diverged", str(error), 1)
        except (DataFailed, OSError, SafetensorError) as error:
            advice = "mend the disk or the data, then the same command continues from there"
            return _ended_badly(trainer, progress, "failed", f"{error}; {trainer.kept()}; {advice}", EXIT_FAILED)
        kind = "finished" if finished else "stopped"
        again = "" if finished else "; the same command continues from here"
        progress.say(f"{kind} at step {trainer.step}{again}")
    if finished:
        return 0
    return EXIT_DEGRADED if trainer.degraded else EXIT_STOPPED


def _train(trainer: Trainer, progress: ProgressLine) -> bool:
    """Train to the end (True) or until asked to stop, and write down which; without data, save before giving up."""
    writer, last = trainer.writer, trainer.loop.steps
    try:
        finished = trainer.run({row["step"] for row in Run(writer.path).evaluations()[0]}, progress)
    except DataFailed:
        trainer.save()
        raise
    finally:
        trainer.report_bad_images()
    kind = "finished" if finished else "stopped"
    why = " because dense features decline" if trainer.degraded else ""
    writer.event(trainer.step, "info", kind, f"{kind} at step {trainer.step} of {last}{why}")
    return finished


def _ended_badly(trainer: Trainer, progress: ProgressLine, kind: str, text: str, code: int) -> int:
    with suppress(OSError):  # a full disk has no room for this line either
        trainer.writer.event(trainer.step, "error", kind, text)
    progress.say(f"error: {text}")
    return code


def _open(
    config: TrainConfig, folder: Path, plan: EvaluationPlan, images: int, about: dict[str, Any]
) -> tuple[RunWriter, Path | None]:
    """The writer, and the checkpoint to resume from (None at the very start). `about`: what run.json says beyond the
    config, the parent of a fork and the backbone looked at."""
    if not (folder / RUN_FILE).exists():
        info = _run_information(config) | about
        return RunWriter.create(folder, info=info, config=as_tree(config)), None
    resume = folder / RESUME_FOLDER
    newest, rejected = checkpoint.newest_checkpoint(resume)
    if rejected and newest is None:
        raise ValueError(
            f"no checkpoint in {resume} can be trusted ({'; '.join(rejected)}), and starting over would delete what "
            "the run recorded. Restore that folder from a copy, use another --run NAME, or --fresh to start again"
        )
    _check_data(folder, newest, plan, images)
    writer = RunWriter.reopen(folder, step=checkpoint.step_of(newest) if newest else None)
    checkpoint.sweep(resume)
    if newest is not None:
        checkpoint.discard_later(resume, checkpoint.step_of(newest))
        for line in rejected:
            writer.event(checkpoint.step_of(newest), "warn", "checkpoint-rejected", line)
    return writer, newest


def _check_data(folder: Path, newest: Path | None, plan: EvaluationPlan, images: int) -> None:
    """Refuse to go on with other images than the run began with: steps would stand for other batches."""
    again = "Restore the images, use another --run NAME to start beside it, or --fresh to delete it"
    saved = None if newest is None else checkpoint.saved_number(newest, "loop/images")
    if saved is not None and saved != images:
        raise ValueError(f"the data changed: {folder} began with {saved} images, now there are {images}. {again}")
    published = (folder / PROBES_FOLDER / PROBE_IMAGES_FOLDER).exists()
    if published and not same_probes(Run(folder).probe_images(), plan.probes):
        raise ValueError(f"the data changed: {folder} has other probe images than its data gives now. {again}")


def _check_folder(config: TrainConfig, folder: Path, fresh: bool) -> None:
    """Refuse to continue a run under another config or in use; `fresh` only ever deletes a run directory."""
    if not folder.exists():
        return
    if not (folder / RUN_FILE).exists():
        if fresh and any(folder.iterdir()):
            raise ValueError(f"{folder} is not a run directory, so --fresh does not delete it; choose another --run")
        return
    with RunLock(folder):  # asked for now, before minutes of set-up, and taken again when the run is opened
        pass
    if fresh:
        _keep_sources(config, folder)
        return
    drift = [
        line
        for line in differences(Run(folder).config, as_tree(config))
        if line.partition(":")[0] not in FREE_TO_CHANGE
    ]
    if drift:
        shown = "\n  ".join(drift[:12])
        raise ValueError(
            f"{folder} holds a run with another config ({len(drift)} fields, run -> command):\n  {shown}\n"
            "use the same options to resume it, another --run NAME to start beside it, or --fresh to delete it"
        )


def _keep_sources(config: TrainConfig, folder: Path) -> None:
    """Refuse to delete the run in `folder` when the new run starts from it."""
    for spec in (config.start.fork, config.start.weights, *config.objective.references.values()):
        if spec.startswith("run:") and Path(parse_run_spec(spec).path).resolve() == folder.resolve():
            raise ValueError(f"--fresh would delete {folder}, which this run starts from ({spec}); take another --run")


def _empty(folder: Path) -> None:
    """Delete the run in `folder`, unless it is in use. A kill in between leaves a run that --fresh can delete.

    run.json goes last; the lock and config.json stay for the run that follows.
    """
    if not (folder / RUN_FILE).exists():
        return
    with RunLock(folder):
        for entry in folder.iterdir():
            if entry.name in (LOCK_FILE, CONFIG_FILE, RUN_FILE):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        (folder / RUN_FILE).unlink()


def _run_information(config: TrainConfig) -> dict[str, Any]:
    return {
        "phase": config.objective.phase,
        "recipe": config.recipe,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": _code_version(),
        "seed": config.seed,
        "steps": config.loop.steps,
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": _device(config.loop.device),
            "threads": torch.get_num_threads(),
        },
        "input": {"mean": list(config.augment.mean), "std": list(config.augment.std)},
    }


def _code_version() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}"


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {wanted!r} cannot be used: {reason}. Use --loop.device auto or cpu") from None
    return wanted


def _refuse_many_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("this version trains in one process; start it without torchrun (WORLD_SIZE must be 1)")


class _StoppedEarlyError(BaseException):
    """A stop was asked for before there was anything to save."""


@dataclass
class _StopFlag:
    """What signals have asked for."""

    requested: bool = False
    noted_only: bool = False
    """Whether a stop waits for the end of the step; before the run is open it ends the set-up at once."""

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. Prints with one raw write: print() may not be entered twice."""
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if not self.noted_only:
            raise _StoppedEarlyError
        with suppress(OSError):
            os.write(2, "stopping after this step; saving …\n".encode())


@contextmanager
def _stop_flag() -> Iterator[_StopFlag]:
    """SIGTERM and SIGINT ask for a stop after the current step; the second SIGINT is the usual interrupt.

    Outside the main thread, where Python allows no handlers, signals stay as they are.
    """
    flag = _StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = {number: signal.signal(number, flag.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
