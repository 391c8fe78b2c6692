"""Names and lines of a run directory (docs/run-format.md): what reader and writer must agree on, and nothing else."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from workbench.plain_files import read_plain

FORMAT_VERSION = 1

RUN_FILE = "run.json"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
EVENTS_FILE = "events.jsonl"
LINE_FILES = (METRICS_FILE, EVALUATIONS_FILE, EVENTS_FILE)

BACKBONES_FOLDER = "backbones"
ARCHITECTURE_FILE = "architecture.json"
PROBES_FOLDER = "probes"
PROBE_IMAGES_FOLDER = "images"
RESUME_FOLDER = "resume"
LOCK_FILE = ".lock"
TEMPORARY_PREFIX = ".tmp-"

ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,99}")
"""A role is a folder name that needs no quoting anywhere: no dot, slash, colon or space."""

_STEP_FILE = re.compile(r"step-(\d{6,18})\.safetensors")
_LONGEST_INTEGER = 18


def step_file(step: int) -> str:
    """File name of the snapshot at `step` (optimizer steps done)."""
    return f"step-{step:06d}.safetensors"


def step_of(name: str) -> int | None:
    """Step number of a snapshot's file name, or None for any other name."""
    match = _STEP_FILE.fullmatch(name)
    return int(match.group(1)) if match and name == step_file(int(match.group(1))) else None


def steps_in(folder: Path) -> list[int]:
    """Steps of the snapshots in `folder`, rising; empty when the folder is absent."""
    if not folder.is_dir():
        return []
    steps = (step_of(entry.name) for entry in folder.iterdir())
    return sorted(step for step in steps if step is not None)


def check_role(role: str) -> str:
    """`role` itself when it may name a backbone's folder, else a ValueError."""
    if not ROLE.fullmatch(role):
        raise ValueError(
            f"backbone role {role!r} is not a plain name: use letters, digits, '_', '+' and '-' "
            "(for example teacher, student, vits_distilled)."
        )
    return role


def _integer(text: str) -> float | int | None:
    return int(text) if len(text.lstrip("-")) <= _LONGEST_INTEGER else _finite(text)


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON so that no number in the result is NaN or infinite: such numbers, and 1e999, become None.

    Raises ValueError for anything that is not JSON, also for bad UTF-8 and for nesting too deep to parse.
    """
    try:
        return json.loads(text, parse_float=_finite, parse_int=_integer, parse_constant=lambda name: None)
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


def parse_record(line: bytes) -> dict[str, Any] | None:
    """One line of an append-only file as a dict, or None when it is not a JSON object with a whole step >= 0."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    step = row.get("step")
    return row if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


class Tail(NamedTuple):
    """What `read_tail` found."""

    rows: list[dict[str, Any]]
    next_byte: int
    """Where the next read starts."""
    skipped: list[int]
    """Byte offsets of complete lines that are not records."""


def read_tail(path: Path, after_byte: int = 0) -> Tail:
    """Complete records of an append-only file from byte `after_byte` on; a torn last line is left for the next read.

    When `after_byte` is no longer the end of a line (a resumed writer cut the file), the answer is no rows and
    next_byte 0: the caller forgets its rows and reads from the start. An absent file is an empty one.
    """
    if after_byte < 0:
        raise ValueError(f"after_byte is {after_byte}; it is 0 or a next_byte returned earlier.")
    start = max(after_byte - 1, 0)
    try:
        data = read_plain(path, start)
    except FileNotFoundError:
        return Tail([], 0, [])
    if after_byte and data[:1] != b"\n":
        return Tail([], 0, [])
    rows, skipped, offset = [], [], after_byte
    for line in data[after_byte - start :].split(b"\n")[:-1]:
        row = parse_record(line)
        if row is None:
            skipped.append(offset)
        else:
            rows.append(row)
        offset += len(line) + 1
    return Tail(rows, offset, skipped)


class RunNotFoundError(FileNotFoundError, ValueError):
    """There is no such folder, or it is not a run."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ValueError naming the file when it is absent or something else."""
    try:
        content = read_plain(path)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}.") from None
    try:
        value = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, it holds a {type(value).__name__}.")
    return value


def read_info(path: Path) -> dict[str, Any]:
    """run.json of the run at `path`.

    Raises RunNotFoundError (a ValueError) when there is no run, ValueError when its format version is another one.
    """
    if not path.is_dir():
        raise RunNotFoundError(f"no run folder at {path}; give the path of a folder that holds {RUN_FILE}.")
    if not (path / RUN_FILE).is_file():
        raise RunNotFoundError(f"{path} is not a run: it has no {RUN_FILE}.")
    info = read_object(path / RUN_FILE)
    version = info.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise ValueError(
            f"{path} is of run format version {version!r}; this workbench reads version {FORMAT_VERSION}. "
            "Open it with the version of the workbench that wrote it."
        )
    return info
