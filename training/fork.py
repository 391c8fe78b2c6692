"""`python -m training fork RUN`: one command that turns a step of any self-distillation run into a run with Gram.

The child has its parent's config: data, crops, networks, losses, cadence. Schedules stand still at the values they had
at that step, so that nothing warms up or ends twice; Gram anchoring is added (DINOv3 section 4.2), and other batches.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from training import checkpoint
from training.config import TrainConfig, config_from_tree
from training.phases.anchor import AnchorConfig, GramConfig
from training.phases.phase import FORK
from training.phases.pretrain import PretrainConfig
from training.schedules import constant
from training.start import StartConfig
from training.watch import PEAK
from workbench.run_layout import RESUME_FOLDER, RUN_FILE
from workbench.runs import Run

GRAM_WEIGHT = 2.0
"""DINOv3's. Against the lab's induced stress 100 was needed (docs/log.md)."""


@dataclass(frozen=True, kw_only=True)
class ForkArguments:
    """What follows `fork`."""

    parent: Annotated[Path, tyro.conf.Positional]
    """The run to go on from."""
    step: int | None = None
    """A step whose resume checkpoint it keeps; the newest if not given."""
    teacher: str = FORK
    """The Gram teacher: run:PATH@step=N:ROLE, or "fork" for the EMA teacher of that step."""
    weight: float = GRAM_WEIGHT
    """Of the Gram loss."""
    steps: int | None = None
    """Length of the new run; as long as the parent if not given."""
    seed: int | None = None
    """Of the new run's batches; the parent's plus 100 if not given."""
    run: Path | None = None
    """The new run's directory; the parent's with "-gram" behind its name if not given."""


def main(words: list[str]) -> int:
    """Start the fork, or resume it: the same command again continues, and then needs nothing of the parent.

    Another parent, step, teacher, … than those of the run that is already there is a mistake, told by name.
    """
    arguments = tyro.cli(ForkArguments, args=words, prog="python -m training fork", description=__doc__)
    folder = arguments.run or beside(arguments.parent)
    try:
        from training.launch import launch  # torch networks and data are only needed from here on

        if (folder / RUN_FILE).exists():
            return launch(_same(Run(folder), arguments), folder)
        config = anchored(Run(arguments.parent), arguments)
        return launch(config, folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; the last checkpoint in {folder} is intact, the same command continues", file=sys.stderr)
        return 130


def follow(parent: Path) -> int:
    """Start the fork that the detector advised for the run in `parent`; the exit code of `main`."""
    steps = [event.get("advised_step") for event in Run(parent).events()[0] if event.get("kind") == PEAK]
    advised = steps[-1] if steps else None
    return main([str(parent), "--teacher", FORK if advised is None else f"run:{parent}@step={advised}"])


def beside(parent: Path) -> Path:
    """Where a fork of `parent` goes when nobody says."""
    return parent.parent / f"{parent.resolve().name}-gram"


def read_config(run: Run) -> TrainConfig:
    """The config that the run recorded."""
    return config_from_tree(run.config, str(run.info.get("phase", "")))


def anchored(run: Run, arguments: ForkArguments) -> TrainConfig:
    """The parent's config at that step, Gram anchoring added; a fork forks no further by itself.

    Raises ValueError for a parent without a teacher's prototypes (SimCLR, MoCo), and for one that keeps no checkpoint.
    """
    parent = read_config(run)
    if not isinstance(parent.objective, PretrainConfig):
        raise ValueError(
            f"{run.name} was trained with {type(parent.objective).__name__}; Gram anchoring goes with "
            "self-distillation (pretrain with DINO losses, anchor, adapt)."
        )
    kept = checkpoint.kept_steps(Path(run.path) / RESUME_FOLDER)
    if not kept:
        raise ValueError(f"{run.path} keeps no resume checkpoint to go on from; --loop.keep-every N keeps some.")
    step = max(kept) if arguments.step is None else arguments.step
    nearest = min(kept, key=lambda other: abs(other - step))
    if nearest != step:
        listed = ", ".join(map(str, sorted(kept)))
        raise ValueError(f"{run.path} keeps no resume checkpoint of step {step}; nearest {nearest}, kept: {listed}.")
    return replace(
        parent,
        seed=parent.seed + 100 if arguments.seed is None else arguments.seed,
        batch=replace(parent.batch, seed=0),
        objective=_still(
            parent.objective, step, GramConfig(teacher=arguments.teacher, weight=constant(arguments.weight))
        ),
        start=StartConfig(fork=f"run:{run.path}@step={step}"),
        optim=replace(
            parent.optim,
            lr=constant(parent.optim.lr(step)),
            weight_decay=constant(parent.optim.weight_decay(step)),
            freeze_last_layer_steps=0,
            freeze_backbone_steps=0,
        ),
        loop=replace(
            parent.loop,
            steps=parent.loop.steps if arguments.steps is None else arguments.steps,
            on_degradation="warn" if parent.loop.on_degradation == "fork" else parent.loop.on_degradation,
        ),
    )


def _same(run: Run, asked: ForkArguments) -> TrainConfig:
    """The config of the fork `run`. Raises ValueError when `asked` says otherwise, or when it is no such fork."""
    config = read_config(run)
    match = re.fullmatch(r"run:(.+)@step=(\d+)", config.start.fork, re.DOTALL)
    if match is None or not isinstance(config.objective, AnchorConfig):
        raise ValueError(f"{run.path} is a run, and no fork with Gram anchoring; give the new one another --run.")
    gram = config.objective.gram
    there = {
        "parent": Path(match[1]).resolve(), "step": int(match[2]), "teacher": gram.teacher, "weight": gram.weight.peak,
        "steps": config.loop.steps, "seed": config.seed,
    }  # fmt: skip
    wanted = {item.name: getattr(asked, item.name) for item in fields(asked) if item.name in there}
    wanted["parent"] = asked.parent.resolve()
    unasked = {item.name: item.default for item in fields(asked)}
    other = [name for name, value in wanted.items() if value != unasked[name] and value != there[name]]
    if other:
        shown = ", ".join(f"{name} {there[name]} there, {wanted[name]} asked for" for name in other)
        raise ValueError(f"{run.path} is another fork ({shown}). Give the new one another --run NAME.")
    return config


def _still(objective: PretrainConfig, step: int, gram: GramConfig) -> AnchorConfig:
    """The objective with its schedules standing at `step`, and Gram anchoring."""
    parts: dict[str, Any] = {item.name: getattr(objective, item.name) for item in fields(PretrainConfig)}
    still = {name: constant(parts[name](step)) for name in ("local_weight", "teacher_temperature", "momentum")}
    changed: dict[str, Any] = {**parts, **still, "ibot_warmup_steps": 0, "gram": gram}
    return AnchorConfig(**changed)
