"""The degradation lab: one chain of runs a seed, then its table, curves and films.

    make lab                                    seed 0 on the built-in scenes, into runs/lab
    make lab LAB_LIBRARY=PACK SEEDS="0 1 2"     three seeds on a pack of cut-outs (docs/data.md)

The same as `python benchmarks/lab.py runs/lab --library PACK --seeds 0 1 2`; the same again goes on where it stopped.
healthy -> control | induced stress -> from its step 150: cured, relieved, late, early (see ARMS). Two runs at a time.
Writes degradation-lab.md and images/ into the folder, or with --docs docs into the documentation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
FORK = 150
"""Steps of induced stress before the cures begin."""
PACK = ("--data.classes", "14", "--data.backgrounds", "15")
"""Of a pack, as many classes and backgrounds as `cpu_real` takes."""


@dataclass(frozen=True)
class Arm:
    """One run of a chain."""

    name: str
    recipe: str
    title: str
    parent: str = ""
    """Name of the arm it is forked from; none: it starts from the seed."""
    at: int = 0
    """Step of the parent."""
    shift: int = 0
    """Its seed is the chain's plus this: other batches than its parents'."""


HEALTHY = Arm("healthy", "lab_healthy", "healthy anchor")
ARMS = {
    arm.name: arm
    for arm in (
        HEALTHY,
        Arm("control", "lab_unstressed", "control: no stress", "healthy", 800, 100),
        Arm("induced", "lab_induced", "induced stress, no Gram", "healthy", 800, 100),
        Arm("cured", "lab_induced_gram", "induced stress + Gram, advised teacher", "induced", FORK, 200),
        Arm("relieved", "lab_unstressed", "stress removed, no Gram", "induced", FORK, 200),
        Arm("late", "lab_induced_gram", "induced stress + Gram, last checkpoint as teacher", "induced", FORK, 200),
        Arm("early", "lab_induced_gram", "induced stress + Gram, random early teacher", "induced", FORK, 200),
    )
}
STAGES = (("healthy",), ("control", "induced"), ("cured", "relieved", "late", "early"))


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the person asked for."""

    seeds: tuple[int, ...] = (0,)
    library: str = ""
    """Path of a cut-out pack; none: the built-in scenes."""
    docs: Path | None = None
    """Where the page goes; the lab's folder when not given."""
    jobs: int = 2
    """Runs at a time."""
    report_only: bool = False
    """Train nothing: the runs are there."""


def main(folder: Path, /, options: tyro.conf.OmitArgPrefixes[Options] = Options()) -> None:
    """Run the chains that are not there yet into `folder` and write the page about them."""
    started = time.monotonic()
    if not options.report_only:
        for stage in STAGES:
            commands = [command(folder, ARMS[name], seed, options) for seed in options.seeds for name in stage]
            run_all(commands, options.jobs)
    trained = time.monotonic() - started
    from lab_report import write_report

    page = write_report(folder, options.seeds, options.docs or folder, command_line(folder, options))
    print(page.read_text(encoding="utf-8"))
    minutes = (time.monotonic() - started) / 60
    print(f"{page}: {trained / 60:.1f} minutes by the clock for the runs, {minutes:.1f} with the page")


def path_of(folder: Path, name: str, seed: int) -> Path:
    return folder / f"seed{seed}-{name}"


def command(folder: Path, arm: Arm, seed: int, options: Options) -> list[str]:
    """The command of one run; a finished one answers at once, a stopped one goes on."""
    phase = "anchor" if arm.recipe.endswith("_gram") else "pretrain"
    words = [sys.executable, "-m", "training", phase, arm.recipe, "--run", str(path_of(folder, arm.name, seed))]
    words += ["--seed", str(seed + arm.shift)]
    if options.library:
        words += ["--data.library", options.library, *PACK]
    if arm.parent:
        words += ["--start.fork", f"run:{path_of(folder, arm.parent, seed)}@step={arm.at}"]
    if phase == "anchor":
        words += ["--objective.gram.teacher", gram_teacher(folder, arm.name, seed)]
    return words


def gram_teacher(folder: Path, name: str, seed: int) -> str:
    """The spec of the Gram teacher of the arm `name`: advised, the last checkpoint ("fork"), or a random early one."""
    if name == "late":
        return "fork"
    step = random_early_step(seed) if name == "early" else advised_step(folder, seed)
    return f"run:{path_of(folder, 'healthy', seed)}@step={step}"


def random_early_step(seed: int) -> int:
    """One of the steps 50, 100, … 400 of the healthy anchor, all equally likely."""
    import numpy as np

    return int(50 * np.random.default_rng([seed, 8]).integers(1, 9))


def advised_step(folder: Path, seed: int) -> int:
    """The healthy step to be held to: the anchor's last."""
    return ARMS["induced"].at


def run_all(commands: Sequence[list[str]], jobs: int) -> None:
    """Run the commands, `jobs` at a time; the first that fails ends the lab."""
    with ThreadPoolExecutor(jobs) as pool:
        for words, code in zip(commands, pool.map(run_one, commands), strict=True):
            if code:
                raise SystemExit(f"exit {code} from {' '.join(words)}; the lines above say why. Run the lab again.")


def run_one(words: list[str]) -> int:
    print(f"+ {' '.join(words[1:])}", flush=True)
    threads = {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=ROOT, env=os.environ | threads, stdout=subprocess.DEVNULL).returncode


def command_line(folder: Path, options: Options) -> str:
    library = f" LAB_LIBRARY={'PACK' if options.library else ''}" if options.library else ""
    return f'make lab{library} SEEDS="{" ".join(map(str, options.seeds))}"'


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
