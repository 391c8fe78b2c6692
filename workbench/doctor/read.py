"""From a run directory or a config file to a `Case`: the only part of the doctor that opens files.

What it opens may come from anybody: nothing but regular files, no more than some MiB of each, and never `resume/`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from workbench.doctor.case import Case, Machine
from workbench.doctor.crops import SPECS
from workbench.doctor.gram import named_step
from workbench.doctor.tree import text_at, value_at
from workbench.plain_files import open_plain
from workbench.run_files import is_locked
from workbench.run_layout import (
    ARCHITECTURE_FILE,
    BACKBONES_FOLDER,
    CONFIG_FILE,
    EVALUATIONS_FILE,
    EVENTS_FILE,
    METRICS_FILE,
    PROBES_FOLDER,
    RUN_FILE,
    parse_json,
    parse_record,
    step_file,
    steps_in,
)
from workbench.runs import SILENCE, Run

MIB = 1024 * 1024
LARGEST_JSON = 8 * MIB
HEAD_BYTES, TAIL_BYTES = MIB // 8, MIB // 2
"""What is read of an append-only file that is longer than both together."""
_PACKAGES = ("torch", "torchvision")
_ENDINGS = {"started": "", "resumed": "", "finished": "ended", "stopped": "stopped", "diverged": "crashed"}


class Lines(NamedTuple):
    """The records of an append-only file, or its two ends."""

    rows: list[dict[str, Any]]
    damaged: int = 0
    gap: int | None = None
    """Step of the first record after the middle that was left out."""
    problem: str = ""
    """Why there is nothing."""


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a regular file. Raises ValueError, in one line, for anything else."""
    try:
        descriptor = open_plain(path, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from None
    with open(descriptor, "rb") as file:
        return json_object(file.read(LARGEST_JSON + 1), str(path))


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """The JSON object in `data`, which came from `name`. Raises ValueError, in one line, for anything else."""
    if len(data) > LARGEST_JSON:
        raise ValueError(f"{name} is larger than {LARGEST_JSON // MIB} MiB; a config is a few KiB of JSON.")
    try:
        value = parse_json(data)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold a JSON object, it holds a {type(value).__name__}.")
    return value


def read_lines(path: Path) -> Lines:
    """Records of an append-only file: all of them, or of a long one the first and the last."""
    try:
        descriptor = open_plain(path, os.O_RDONLY)
    except FileNotFoundError:
        return Lines([])
    except (OSError, ValueError) as error:
        return Lines([], problem=str(error))
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size <= HEAD_BYTES + TAIL_BYTES:
            rows, damaged = _records(file.read(HEAD_BYTES + TAIL_BYTES))
            return Lines(rows, damaged)
        head, head_damaged = _records(file.read(HEAD_BYTES))
        file.seek(size - TAIL_BYTES)
        tail, tail_damaged = _records(file.read(TAIL_BYTES).partition(b"\n")[2])
    return Lines(head + tail, head_damaged + tail_damaged, tail[0]["step"] if tail else None)


def _records(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Whole lines; what follows the last newline is left out."""
    lines = data.split(b"\n")[:-1]
    rows = [row for row in map(parse_record, lines) if row is not None]
    return rows, len(lines) - len(rows)


def machine(folder: Path | None = None) -> Machine:
    """This machine: installed packages (nothing is imported), and the room on the disk of `folder`."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    try:
        free = shutil.disk_usage(folder).free if folder is not None else None
    except OSError:
        free = None
    return Machine(versions=versions, free_bytes=free)


def run_case(run: Run, *, follow: bool = False) -> Case:
    """What `run` has written so far. `follow` also reads run.json and config.json of the runs that its config names.

    Never raises for what is inside the folder: what cannot be read is named in `Case.unreadable`.
    """
    metrics, evaluations, events = (
        read_lines(run.path / name) for name in (METRICS_FILE, EVALUATIONS_FILE, EVENTS_FILE)
    )
    unreadable = [each.problem for each in (metrics, evaluations, events) if each.problem]
    config, problem = _object_or_problem(run.path / CONFIG_FILE)
    role = run.main_role
    backbone = run.path / BACKBONES_FOLDER / role
    architecture = _object_or_problem(backbone / ARCHITECTURE_FILE)[0] if backbone.is_dir() else {}
    weights, probes = steps_in(backbone), steps_in(run.path / PROBES_FOLDER)
    inputs, kept = _named_runs(config) if follow else ({}, {})
    return Case(
        config=config,
        machine=machine(run.path),
        path=str(run.path),
        info=run.info,
        state=_state(run, events.rows),
        metrics=metrics.rows,
        gap=metrics.gap,
        evaluations=[row for row in evaluations.rows if row.get("backbone") == role],
        events=events.rows,
        probe_steps=probes,
        can_fork=run.can_fork,
        weight_steps=weights,
        snapshot_bytes=sum(_newest_bytes(folder, steps) for folder, steps in _folders(run, backbone, weights, probes)),
        architecture=architecture,
        inputs=inputs,
        kept=kept,
        damaged={
            METRICS_FILE: metrics.damaged,
            EVALUATIONS_FILE: evaluations.damaged,
            EVENTS_FILE: events.damaged,
        },
        unreadable=unreadable + ([problem] if problem else []),
    )


def config_case(config: Mapping[str, Any], *, follow: bool = False) -> Case:
    """A config before there is a run."""
    inputs, kept = _named_runs(config) if follow else ({}, {})
    return Case(config=config, machine=machine(Path.cwd()), inputs=inputs, kept=kept)


def case_at(place: str) -> Case:
    """The case at a path: a run's folder, a config as JSON, or "-" for a config on standard input.

    Raises ValueError, in one line, for anything else.
    """
    if place == "-":
        return config_case(json_object(sys.stdin.buffer.read(LARGEST_JSON + 1), "standard input"), follow=True)
    path = Path(place)
    if path.is_dir():
        about = path / RUN_FILE
        if about.is_file() and about.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{about} is larger than {LARGEST_JSON // MIB} MiB; this is no run.")
        return run_case(Run(path), follow=True)
    if not path.exists():
        raise ValueError(f"nothing at {place}; give a run's folder, or a config.json (--print-config writes one).")
    config = read_json(path.resolve())
    if not any(isinstance(config.get(name), dict) for name in ("objective", "optim", "loop", "augment")):
        raise ValueError(
            f"{place} is JSON, but no config of a training: it has none of objective, optim, loop, augment."
        )
    return config_case(config, follow=True)


def _state(run: Run, events: list[dict[str, Any]]) -> str:
    """As `Run.status`, from events that are read already."""
    locked = is_locked(run.path)
    if locked:
        return "live"
    endings = [_ENDINGS[kind] for event in events if (kind := str(event.get("kind"))) in _ENDINGS]
    if endings and endings[-1]:
        return endings[-1]
    if locked is False:
        return "crashed"
    age = run.age()
    return "live" if age is not None and age < SILENCE else "silent"


def _object_or_problem(path: Path) -> tuple[dict[str, Any], str]:
    try:
        return read_json(path), ""
    except ValueError as error:
        return {}, str(error)


def _folders(run: Run, backbone: Path, weights: list[int], probes: list[int]) -> list[tuple[Path, list[int]]]:
    return [(backbone, weights), (run.path / PROBES_FOLDER, probes)]


def _newest_bytes(folder: Path, steps: list[int]) -> int:
    try:
        return (folder / step_file(steps[-1])).stat().st_size if steps else 0
    except OSError:
        return 0


def _named_runs(config: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """("input" of run.json, "loop" of config.json) of the runs that the config names, by spec, where readable."""
    inputs, kept = {}, {}
    for spec in {text_at(config, path) for path in SPECS}:
        named = named_step(spec)
        if not named:
            continue
        folder = Path(named[0])
        about, loop = (
            value_at(_object_or_problem(folder / file)[0], key)
            for file, key in ((RUN_FILE, "input"), (CONFIG_FILE, "loop"))
        )
        inputs |= {spec: about} if isinstance(about, dict) else {}
        kept |= {spec: loop} if isinstance(loop, dict) else {}
    return inputs, kept
