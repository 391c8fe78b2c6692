"""The runs of the lab: one chain a seed, each arm forked from the one before it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from workbench.analysis.onset import OnsetConfig, onset
from workbench.runs import Run

PACK = ("--data.classes", "14", "--data.backgrounds", "15")
"""Of a pack, as many classes and backgrounds as `cpu_real` takes."""


BUILTIN = {"train-scenes": 250, "test-scenes": 300, "bank": 600, "queries": 400, "patches-per-class": 400}
"""Sizes of the evaluation on the built-in scenes, whose classes (shapes) are harder to tell than those of a pack."""


class Arm(NamedTuple):
    """One run of a chain."""

    recipe: str
    title: str
    parent: str = ""
    """Name of the arm it is forked from; none: it starts from the seed."""
    shift: int = 0
    """Its seed is the chain's plus this: other batches than its parents'."""


ARMS = {
    "healthy": Arm("lab_healthy", "healthy anchor"),
    "control": Arm("lab_unstressed", "control: no stress", "healthy", 100),
    "induced": Arm("lab_induced", "induced stress, no Gram", "healthy", 100),
    "cured": Arm("lab_induced_gram", "induced stress + Gram, advised teacher", "induced", 200),
    "late": Arm("lab_induced_gram", "induced stress + Gram, last checkpoint as teacher", "induced", 200),
    "early": Arm("lab_induced_gram", "induced stress + Gram, random early teacher", "induced", 200),
    "relieved": Arm("lab_unstressed", "stress removed, no Gram", "induced", 200),
}
STAGES = (("healthy",), ("induced", "control"), ("cured", "late", "early", "relieved"))
"""The arms of a stage need only those before it."""


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A folder of chains, one a seed."""

    folder: Path
    seeds: tuple[int, ...] = (0,)
    library: str = ""
    """Path of a cut-out pack; none: the built-in scenes."""
    anchor: int = 800
    """Steps of the healthy anchor."""
    fork: int = 150
    """Steps of induced stress before the cures begin."""
    cure: int = 150
    """Steps of a cure; the stressed arm and the control go on as long."""
    published: int = 50
    """Steps between the weights that the anchor publishes; a random early teacher is one of them."""
    extra: tuple[str, ...] = ()
    """Further overrides, for all runs."""

    def path(self, name: str, seed: int) -> Path:
        return self.folder / f"seed{seed}-{name}"

    def run(self, name: str, seed: int) -> Run:
        return Run(self.path(name, seed))

    def parent_step(self, name: str) -> int:
        """The step of its parent that the arm is forked from."""
        return {"": 0, "healthy": self.anchor, "induced": self.fork}[ARMS[name].parent]

    def begin(self, name: str) -> int:
        """Steps from the first of the anchor to the first of this arm."""
        return self.begin(ARMS[name].parent) + self.parent_step(name) if ARMS[name].parent else 0

    def steps(self, name: str) -> int:
        if name == "healthy":
            return self.anchor
        return self.cure if ARMS[name].parent == "induced" else self.fork + self.cure

    def command(self, name: str, seed: int) -> list[str]:
        """The command of one run; a finished one answers at once, a stopped one goes on."""
        arm = ARMS[name]
        phase = "anchor" if arm.recipe.endswith("_gram") else "pretrain"
        words = [sys.executable, "-m", "training", phase, arm.recipe, "--run", str(self.path(name, seed))]
        words += ["--seed", str(seed + arm.shift), "--loop.steps", str(self.steps(name))]
        if self.library:
            words += ["--data.library", self.library, *PACK]
        else:
            words += [word for name, size in BUILTIN.items() for word in (f"--evaluation.suite.{name}", str(size))]
        if arm.parent:
            words += ["--start.fork", f"run:{self.path(arm.parent, seed)}@step={self.parent_step(name)}"]
        if phase == "anchor":
            words += ["--objective.gram.teacher", self.gram_teacher(name, seed)]
        return [*words, *self.extra]

    def gram_teacher(self, name: str, seed: int) -> str:
        """The spec of an arm's Gram teacher: advised, the last checkpoint ("fork"), or a random early one."""
        if name == "late":
            return "fork"
        arm, step = ("healthy", self.random_early_step(seed)) if name == "early" else self.advised(seed)
        return f"run:{self.path(arm, seed)}@step={step}"

    def random_early_step(self, seed: int) -> int:
        """One of the published steps of the first half of the healthy anchor, step 0 apart, all equally likely."""
        draws = np.random.default_rng([seed, 8])
        return self.published * int(draws.integers(1, self.anchor // 2 // self.published + 1))

    def stream(self, seed: int) -> list[dict[str, Any]]:
        """Evaluations of the healthy anchor, then of the induced arm, steps counted from the anchor's first."""
        after = self.run("induced", seed).evaluations()[0]
        moved = [row | {"step": self.anchor + row["step"]} for row in after if row["step"]]
        return [*self.run("healthy", seed).evaluations()[0], *moved]

    def first_alarm(self, seed: int) -> Any:
        """The detector's verdict at the first evaluation that makes it say "peaked", blind to later ones; or None."""
        rows = self.stream(seed)
        verdicts = (onset(rows[: count + 1], OnsetConfig()) for count in range(len(rows)))
        return next((verdict for verdict in verdicts if verdict.state == "peaked"), None)

    def advised(self, seed: int) -> tuple[str, int]:
        """Arm and step of the Gram teacher: the peak the detector names, or the anchor's end where it is silent."""
        alarm = self.first_alarm(seed)
        peak = self.anchor if alarm is None or alarm.peak_step is None else alarm.peak_step
        return ("healthy", peak) if peak <= self.anchor else ("induced", peak - self.anchor)

    def run_stages(self, jobs: int) -> None:
        """Run what is not there yet, `jobs` runs at a time; the first that fails ends the lab."""
        for stage in STAGES:
            commands = [self.command(name, seed) for seed in self.seeds for name in stage]
            with ThreadPoolExecutor(jobs) as pool:
                codes = list(pool.map(run_command, commands))
            if failed := [" ".join(words) for words, code in zip(commands, codes, strict=True) if code]:
                raise SystemExit(f"{failed[0]} failed; the lines above say why. Run the lab again to go on.")


def run_command(words: list[str]) -> int:
    """Run a command of `Lab.command` on one thread; its exit code."""
    print(f"+ {' '.join(words[1:])}", flush=True)
    threads = {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, env=os.environ | threads, stdout=subprocess.DEVNULL).returncode
