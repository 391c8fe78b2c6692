"""What a run starts from: another run's checkpoint (a fork), or the weights of a backbone.

Read once, at step 0, before anything of the new run is written. Its own checkpoints carry everything from then on, so
a resume never opens the parent again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from training import checkpoint
from training.phases.phase import FORK, Phase
from workbench.backbones import VisionTransformer
from workbench.loading import load_backbone
from workbench.run_layout import RESUME_FOLDER
from workbench.runs import Run

_SPEC = re.compile(r"run:(?P<path>.+?)@step=(?P<step>\d{1,18})", re.DOTALL)
_TRAINING_ONLY = ("drop_path", "rope_shift", "rope_jitter", "rope_rescale", "layerscale")
"""Fields of a ViTConfig that two backbones may differ in and still compute the same features from the same weights."""


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Where the first weights come from; nothing given: from the seed."""

    fork: str = ""
    """run:PATH@step=N: go on from that run's resume checkpoint with its student, EMA teacher, heads, centres and
    optimizer moments, under this config and from step 0. Moments that the parent has not start at zero. With the
    parent's seed the batches are those the parent began with: give another."""
    student: Literal["student", "teacher"] = "student"
    """What a fork's student starts as: the parent's student, or its EMA teacher, then without optimizer moments."""
    weights: str = ""
    """Any spec of `load_backbone` that gives this architecture: the backbone of student and teacher alone."""

    def __post_init__(self) -> None:
        if self.fork and self.weights:
            raise ValueError("start.fork and start.weights are both given; choose one, a fork brings its own weights.")


def begin(
    start: StartConfig, references: Mapping[str, str], phase: Phase, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Fill a new `phase` and its `optimizer` as `start` says, then its `references` (see `Objective.references`).

    Returns {"run": name, "step": int} of the run forked from, else None. Raises ValueError for a spec that leads
    nowhere and for weights of another architecture, naming the first difference.
    """
    missing = [name for name, spec in references.items() if spec == FORK and not start.fork]
    if missing:
        raise ValueError(
            f"objective.{missing[0]}.teacher is 'fork', but nothing is forked: add --start.fork run:PATH@step=N, or "
            f"name a backbone, --objective.{missing[0]}.teacher run:PATH@step=N"
        )
    parent = _fork(start, set(references), phase, optimizer) if start.fork else None
    modules = phase.modules()
    if start.weights:
        for module in modules.values():
            if isinstance(backbone := getattr(module, "backbone", None), VisionTransformer):
                _load(start.weights, f"start.weights ({start.weights})", backbone)
    for name, spec in references.items():
        if spec == FORK:
            modules[name].load_state_dict(modules["teacher"].get_submodule("backbone").state_dict())
        else:
            _load(spec, f"objective.{name}.teacher ({spec})", modules[name])
    return parent


def _fork(start: StartConfig, apart: set[str], phase: Phase, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Carry everything but the networks named in `apart` over from the parent's checkpoint."""
    match = _SPEC.fullmatch(start.fork)
    if match is None:
        raise ValueError(f"start.fork is {start.fork!r}; write run:PATH@step=N, a run of yours and a step it keeps.")
    run, step = Run(match["path"]), int(match["step"])
    path = checkpoint.checkpoint_at(Path(match["path"]) / RESUME_FOLDER, step)
    _check_architecture(run.config, phase, start.fork)
    saved = checkpoint.saved_kinds(path)
    tensors = _network_tensors(phase, apart)
    if unlike := checkpoint.differing(saved, tensors, tensors):
        raise ValueError(
            f"{start.fork} does not fit this config: {len(unlike)} tensors differ, the first is {unlike[0]}. Give the "
            "child the networks and heads of its parent"
        )
    if start.student == "teacher" and "teacher" not in phase.modules():
        raise ValueError("start.student is 'teacher', but this objective has none; take --start.student student.")
    if start.student == "student":
        tensors |= _moments(saved, optimizer, start.fork)
    checkpoint.read_tensors(path, tensors)
    if start.student == "teacher":
        phase.modules()["student"].load_state_dict(phase.modules()["teacher"].state_dict())
    return {"run": run.name, "step": step}


def _network_tensors(phase: Phase, apart: set[str]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, module in phase.modules().items()
        if name not in apart
        for key, value in module.state_dict().items()
    }


def _moments(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, spec: str) -> dict[str, Tensor]:
    """The optimizer's tensors that the checkpoint has too. The backbone is always trained: none at all is an error."""
    moments = {f"optimizer/{name}": value for name, value in checkpoint.optimizer_tensors(optimizer).items()}
    common = {name: value for name, value in moments.items() if name in saved}
    if not common:
        raise ValueError(
            f"{spec} keeps no optimizer moments that this version can read: another version of the code made it. Add "
            "--start.student teacher, which starts without them from the averaged weights"
        )
    return common


def _check_architecture(config: Mapping[str, Any], phase: Phase, spec: str) -> None:
    """Refuse a parent whose backbone computes something else, even where all shapes agree."""
    recorded = config.get("objective")
    backbone = recorded.get("backbone") if isinstance(recorded, dict) else None
    if isinstance(backbone, dict):
        _refuse_differences(backbone, next(iter(phase.backbones().values())), spec)


def _load(spec: str, what: str, target: nn.Module) -> None:
    """Copy the weights that `spec` names into `target`."""
    assert isinstance(target, VisionTransformer)
    source = load_backbone(spec)
    if not isinstance(source, VisionTransformer):
        raise ValueError(f"{what} is a {type(source).__name__}; training starts from a VisionTransformer of ours only.")
    _refuse_differences(asdict(source.config), target, what)
    try:
        target.load_state_dict(source.state_dict(), strict=True)
    except RuntimeError as error:
        raise ValueError(f"{what} does not fit this config: {error}") from None


def _refuse_differences(source: Mapping[str, Any], target: VisionTransformer, what: str) -> None:
    wanted = asdict(target.config)
    unlike = [name for name in wanted if name not in _TRAINING_ONLY and source.get(name) != wanted[name]]
    if unlike:
        name = unlike[0]
        raise ValueError(
            f"{what} does not fit this config: {len(unlike)} fields of its backbone differ, the first is {name} "
            f"({source.get(name)} there, {wanted[name]} here). Set --objective.backbone.{name.replace('_', '-')} "
            "and the others to what it has, or choose another recipe"
        )
