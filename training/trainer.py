"""The loop: batch, losses, step, after_step, log, evaluate, save. It knows no phase by name.

State that decides the future (weights, optimizer, generators, step) is saved and restored bit for bit; batches are a
pure function of (seed, step), so the position in the data is the step itself.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from training import checkpoint
from training.data.batch import Batch, BatchStream
from training.optim import OptimConfig, all_finite, clip_gradients, set_rates
from training.phases.phase import Phase
from training.progress import ProgressLine
from training.watch import OnDegradation, Watch
from workbench.analysis.onset import Begun
from workbench.backbones import VisionTransformer, architecture_of
from workbench.images import normalize
from workbench.runs import Run, RunWriter

EXIT_STOPPED = 75  # EX_TEMPFAIL: "run the same command again"


class TrainingDiverged(RuntimeError):
    """The loss or a gradient was not finite too many times in a row."""


class DataFailed(RuntimeError):
    """No batch came: a loading process died, or no image can be read any more. The trainer's state is whole."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length and cadence of a run, in optimizer steps."""

    steps: int = 1000
    log_every: int = 10
    probe_every: int = 50
    """Dense features of the probe images and the published weights are written every so many steps."""
    evaluate_every: int = 100
    save_every: int = 100
    keep_every: int = 0
    """Resume checkpoints of steps that are multiples of it are never deleted, so that a fork can start there; 0: the
    two newest alone are kept."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1", …"""
    precision: Literal["fp32", "bf16"] = "fp32"
    on_degradation: OnDegradation = "warn"
    """When the evaluations say that dense features have peaked and decline (docs/onset.md), once in a run: "warn"
    writes an event with the advised Gram teacher and the command that forks with it; "stop" also saves and ends with
    exit code 3; "fork" does that and starts the advised fork. "none" does not look."""
    max_bad_steps: int = 3
    """So many steps in a row may be skipped for a loss that is not finite before the run stops."""

    def __post_init__(self) -> None:
        lowest = {"steps": 0, "threads": 0, "max_bad_steps": 0, "keep_every": 0}
        for name in ("steps", "log_every", "probe_every", "evaluate_every", "save_every", *list(lowest)[1:]):
            if getattr(self, name) < lowest.get(name, 1):
                raise ValueError(
                    f"LoopConfig.{name} is {getattr(self, name)}; the smallest allowed is {lowest.get(name, 1)}."
                )


class Trainer:
    """Runs one phase to its end, or until asked to stop."""

    def __init__(
        self,
        *,
        phase: Phase,
        stream: BatchStream,
        suite: Callable[[VisionTransformer], Iterator[tuple[str, float]]],
        probes: Tensor,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]],
        writer: RunWriter,
        resume_folder: Path,
        optim: OptimConfig,
        optimizer: torch.optim.Optimizer,
        loop: LoopConfig,
        device: str,
        stop_requested: Callable[[], bool],
        begun: Begun = "random",
    ):
        """`begun`: what the first weights are."""
        self.phase, self.stream, self.suite = phase, stream, suite
        self.probes = normalize(probes, *normalisation)
        self.writer, self.resume_folder, self.loop, self.optim = writer, resume_folder, loop, optim
        self.device, self.stop_requested = torch.device(device), stop_requested
        self.role, self.backbone = next(iter(phase.backbones().items()))
        self.optimizer = optimizer
        self.step, self.seconds, self.bad_steps = 0, 0.0, 0
        self.degraded = False
        """Whether the run ended early because dense features decline."""
        self.watch = None if loop.on_degradation == "none" else Watch(writer, self.role, begun=begun)
        self._clock: Callable[[], float] = lambda: self.seconds
        self.saved_step: int | None = None
        """Step of the newest checkpoint that is known to be good."""
        events, _ = Run(writer.path).events()
        self._reported = {event.get("text") for event in events if event.get("kind") == "bad-image"}
        self._window: dict[str, list[Tensor | float]] = defaultdict(list)

    def run(self, evaluated: set[int], progress: ProgressLine) -> bool:
        """Train from `self.step` on; `evaluated` are steps that need no second evaluation. False when stopped early."""
        started, before = time.monotonic(), self.seconds
        self._clock = lambda: before + time.monotonic() - started
        batches = self.stream.iterate(self.step, self.loop.steps)
        while True:
            paused = time.monotonic()
            complete = self._observe(evaluated)
            if self.stop_requested() or not complete:
                self.save()
                return False
            if self._due(self.loop.save_every) or (self.loop.keep_every and self._due(self.loop.keep_every)):
                self.save()
            paused = time.monotonic() - paused
            if self.step == self.loop.steps:
                return True
            self._train_one(batches, progress, paused)

    def save(self) -> None:
        """Write the resume checkpoint of the current step, unless it is there."""
        if self.saved_step != self.step:
            self.seconds = self._clock()
            keep_every = self.loop.keep_every
            checkpoint.save_checkpoint(self.resume_folder, self.step, self._tensors(), keep_every=keep_every)
            self.saved_step = self.step
            self.writer.event(self.step, "info", "saved", f"resume checkpoint of step {self.step}")

    def load(self, path: Path) -> None:
        """Continue from a checkpoint folder, bit for bit."""
        tensors = self._tensors()
        checkpoint.load_checkpoint(path, tensors)
        for name, generator in self.phase.generators().items():
            generator.set_state(tensors[f"generator/{name}"])
        torch.set_rng_state(tensors["generator/torch"])
        self.step, self.bad_steps = int(tensors["loop/step"]), int(tensors["loop/bad_steps"])
        self.seconds = float(tensors["loop/seconds"])
        self.saved_step = self.step

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            f"{name}/{key}": value
            for name, module in self.phase.modules().items()
            for key, value in module.state_dict().items()
        }
        tensors |= {f"optimizer/{k}": v for k, v in checkpoint.optimizer_tensors(self.optimizer).items()}
        tensors |= {f"generator/{name}": g.get_state() for name, g in self.phase.generators().items()}
        tensors["generator/torch"] = torch.get_rng_state()
        tensors["loop/step"] = torch.tensor(self.step)
        tensors["loop/bad_steps"] = torch.tensor(self.bad_steps)
        tensors["loop/images"] = torch.tensor(len(self.stream.source))  # read by launch.py before anything is touched
        tensors["loop/seconds"] = torch.tensor(self.seconds, dtype=torch.float64)
        return tensors

    def _due(self, every: int) -> bool:
        return self.step > 0 and (self.step % every == 0 or self.step == self.loop.steps)

    # --- one step --------------------------------------------------------------------------------------------------

    def _train_one(self, batches: Iterator[Batch], progress: ProgressLine, paused: float) -> None:
        asked = time.monotonic()
        batch = self._next(batches)
        progress.waited(time.monotonic() - asked)
        rates = self._set_rates()
        record = self._optimize(self._to_device(batch))
        for name, value in (record | rates).items():
            self._window[name].append(value)
        self._window["paused"].append(paused)
        self.step += 1
        if self.step % self.loop.log_every == 0 or self.step == self.loop.steps:
            self._log(progress)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except (RuntimeError, ValueError, OSError) as error:
            raise DataFailed(f"no data for step {self.step}: {error}") from error

    def _set_rates(self) -> dict[str, float]:
        rates = self.optim.rates(self.step)
        set_rates(self.optimizer, **rates)
        return {f"rate/{name}": value for name, value in rates.items()}

    def _optimize(self, batch: Batch) -> dict[str, Tensor | float]:
        """Forward, backward, clip, step. A loss or gradient that is not finite changes no weight, teacher, centre or
        optimizer state: only the counts of steps, and the generators that were drawn from."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.loop.precision == "bf16"):
            losses = self.phase.losses(batch, self.step)
        if not all_finite([losses.total]):
            return self._skip("loss")
        losses.total.backward()
        norms = clip_gradients(self.phase.trainable(), self.optim.clip_norm)
        if not all_finite(norms.values()):
            return self._skip("gradient norm")
        self.optimizer.step()
        self.bad_steps = 0
        record: dict[str, Tensor | float] = {**losses.record}
        record |= {f"gradient_norm/{name}": norm for name, norm in norms.items()}
        return record | self.phase.after_step(self.step)

    def _skip(self, what: str) -> dict[str, Tensor | float]:
        self.bad_steps += 1
        self.writer.event(self.step, "warn", "nan-skipped", f"{what} not finite: step {self.step} left weights alone")
        if self.bad_steps > self.loop.max_bad_steps:
            raise TrainingDiverged(
                f"{what} was not finite for {self.bad_steps} steps in a row, up to step {self.step}; "
                f"{self.kept()}. Try half the learning rate (--optim.lr.peak), more warm-up, or "
                "--loop.precision fp32 in a new run (--run NAME)"
            )
        return {}

    def kept(self) -> str:
        """Where a resume would continue, in words."""
        if self.saved_step is None:
            return "no checkpoint was written yet"
        return f"the checkpoint of step {self.saved_step} is kept"

    def _to_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        return batch._replace(
            globals_=batch.globals_.to(self.device, non_blocking=True),
            locals_=batch.locals_.to(self.device, non_blocking=True),
            masks=batch.masks.to(self.device, non_blocking=True),
            gram=batch.gram.to(self.device, non_blocking=True),
        )

    def _log(self, progress: ProgressLine) -> None:
        paused = sum(float(value) for value in self._window.pop("paused"))
        values = {name: sum(float(v) for v in many) / len(many) for name, many in self._window.items()}
        self._window.clear()
        self.seconds = self._clock()
        values |= progress.show(self.step, values.get("loss/total", float("nan")), paused)
        self.report_bad_images()
        if self._reported:
            values["data/bad_images"] = len(self._reported)
        self.writer.metrics(self.step, self.seconds, values)

    def report_bad_images(self) -> None:
        """Write one event for each file found unreadable since the last call; a resume does not repeat them."""
        for name, reason in self.stream.bad:
            text = f"{name}: {reason.removeprefix(f'{name}: ')}"  # reasons of single files begin with the path
            if text not in self._reported:
                self._reported.add(text)
                self.writer.event(self.step, "warn", "bad-image", text)

    # --- what is looked at -----------------------------------------------------------------------------------------

    def _observe(self, evaluated: set[int]) -> bool:
        """Write probe features, weights and evaluations that are due. False when a stop came in between."""
        every, last = self.loop, self.step == self.loop.steps
        if (self.step % every.probe_every == 0 or last) and not self.writer.has_probe(self.step):
            self._publish()
        if (self.step % every.evaluate_every == 0 or last) and self.step not in evaluated:
            return self._evaluate(evaluated)
        return True

    def _publish(self) -> None:
        with torch.no_grad():
            features = self.backbone.features(self.probes.to(self.device))
        self.writer.probe_features(self.step, features, backbone=self.role)
        for role, backbone in self.phase.backbones().items():
            self.writer.backbone(role, self.step, architecture_of(backbone), backbone.state_dict())

    def _evaluate(self, evaluated: set[int]) -> bool:
        values = {}
        for name, value in self.suite(self.backbone):
            values[name] = value
            if self.stop_requested():
                return False
        self.seconds = self._clock()
        self.writer.evaluation(self.step, self.seconds, self.role, values)
        evaluated.add(self.step)
        peaked = self.watch is not None and self.watch.look(self.step)
        self.degraded = peaked and self.loop.on_degradation in ("stop", "fork") and self.step < self.loop.steps
        return not self.degraded
