"""Where the network of a spec comes from: the facts a model card needs, read from the run or the folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.analysis.health import ERROR_SUFFIX
from workbench.backbones.load import DEMO_FOLDER
from workbench.images import IMAGENET_MEAN, IMAGENET_STD
from workbench.model_card import DINOV3_TERMS, RUN_TERMS, STARTED_FROM_DINOV3_TERMS, Origin
from workbench.run_layout import parse_json
from workbench.runs import Run, parse_run_spec

ASSUMED = "It is not recorded what the input was normalised with; ImageNet's statistics are assumed."
SATELLITE = "Weights trained on satellite images (SAT-493M) want mean 0.430 0.411 0.296, deviation 0.213 0.156 0.143."


def origin_of(spec: str) -> tuple[Origin, str]:
    """The origin of the network that `spec` names, and a title for it (foreign text)."""
    kind, _, rest = spec.partition(":")
    if kind == "run":
        return _run_origin(spec)
    if kind == "dinov3":
        arch, _, path = rest.partition(":")
        facts = {"weights": f"DINOv3 {arch}, official checkpoint", "file": Path(path).name}
        return Origin(facts=facts, terms=DINOV3_TERMS, notes=[SATELLITE]), f"DINOv3 {arch}"
    folder = DEMO_FOLDER if kind == "demo" else Path(rest)
    found = _statistics(_preprocessing(folder), "image_mean", "image_std")
    facts = {"weights": "a folder in the layout of transformers", "folder": folder.name}
    return Origin(facts=facts, **_input(found)), folder.name


def input_statistics(spec: str, backbone: object) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """(mean, standard deviation, whether they are assumed) of what the backbone of `spec` wants pixels normalised with.

    Those of a run or a folder are recorded there, a timm model brings its own; ImageNet's where nothing is recorded.
    """
    config = getattr(getattr(backbone, "model", None), "pretrained_cfg", None)
    if spec.partition(":")[0] == "openclip":
        found = list(getattr(backbone, "mean", ())), list(getattr(backbone, "std", ()))
    elif isinstance(config, Mapping):
        found = _statistics({name: list(config.get(name) or ()) for name in ("mean", "std")}, "mean", "std")
    elif spec.partition(":")[0] in ("run", "hf", "demo"):
        origin, _ = origin_of(spec)
        found = None if ASSUMED in origin.notes else (list(origin.mean), list(origin.std))
    else:
        found = None
    mean, std = found or (IMAGENET_MEAN, IMAGENET_STD)
    return tuple(mean), tuple(std), found is None


def _run_origin(spec: str) -> tuple[Origin, str]:
    path, role, step = parse_run_spec(spec)
    run = Run(path)
    role = run.main_role if role is None else role
    step = run.steps(role)[-1] if step is None else step
    rows = [row for row in run.evaluations()[0] if row.get("backbone") == role and row["step"] <= step]
    last = rows[-1] if rows else {}
    weights = _given_weights(run)
    facts = {
        "run": run.name,
        "backbone": role,
        "step": step,
        "phase": run.info.get("phase"),
        "recipe": run.info.get("recipe"),
        "seed": run.info.get("seed"),
        "parent": _parent(run, weights),
        "created": run.info.get("created"),
        "code version": run.info.get("code_version"),
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    rest = ("step", "seconds", "backbone")
    scores = {name: value for name, value in last.items() if name not in rest and not name.endswith(ERROR_SUFFIX)}
    about = run.info.get("input")
    found = _statistics(about if isinstance(about, Mapping) else {}, "mean", "std")
    terms = f"{RUN_TERMS} {STARTED_FROM_DINOV3_TERMS}" if weights and weights.startswith("dinov3:") else RUN_TERMS
    origin = Origin(facts=facts, scores=scores, scores_step=last.get("step"), terms=terms, **_input(found))
    return origin, f"{run.name}, {role} at step {step}"


def _given_weights(run: Run) -> str | None:
    """The spec of the weights that training started from (`start.weights` of its config); None where unreadable."""
    try:
        start = run.config.get("start")
    except ValueError:
        return None
    weights = start.get("weights") if isinstance(start, Mapping) else None
    return weights if isinstance(weights, str) else ""


def _parent(run: Run, weights: str | None) -> str:
    if parent := run.parent:
        return f"{parent.get('run')}, step {parent.get('step')}"
    if weights is None:
        return "not recorded"
    if not weights:
        return "none: trained from scratch"
    kind, _, rest = weights.partition(":")
    what = f"DINOv3 {rest.partition(':')[0]}, " if kind == "dinov3" else ""
    return f"no run: trained from given weights, {what}{Path(rest).name}"  # folders are nobody else's business


def _input(found: tuple[list[float], list[float]] | None) -> dict[str, Any]:
    if found is None:
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "notes": [ASSUMED]}
    return {"mean": found[0], "std": found[1]}


def _statistics(values: Mapping[str, Any], mean: str, std: str) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of three channels, or None where they are absent or no such numbers."""
    pair = (values.get(mean), values.get(std))
    for numbers in pair:
        if not isinstance(numbers, list) or len(numbers) != 3:
            return None
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            return None
    return pair  # pyright: ignore[reportReturnType]


def _preprocessing(folder: Path) -> Mapping[str, Any]:
    """What a folder of transformers says of images; versions from 5 on write it beside the tokenizer's settings."""
    nested = _read(folder / "processor_config.json").get("image_processor")
    return _read(folder / "preprocessor_config.json") or (nested if isinstance(nested, Mapping) else {})


def _read(path: Path) -> Mapping[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
