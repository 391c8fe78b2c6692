"""Reading run directories (docs/run-format.md). `Run` reads only, opens no pickle and never looks into resume/."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from workbench.backbones.architecture import config_from_architecture, network_with_weights
from workbench.features import Backbone, Features
from workbench.plain_files import check_plain, read_plain
from workbench.run_files import is_locked
from workbench.run_layout import (
    ARCHITECTURE_FILE,
    BACKBONES_FOLDER,
    CONFIG_FILE,
    EVALUATIONS_FILE,
    EVENTS_FILE,
    FORMAT_VERSION,
    LINE_FILES,
    METRICS_FILE,
    PROBE_IMAGES_FOLDER,
    PROBES_FOLDER,
    RESUME_FOLDER,
    ROLE,
    RUN_FILE,
    RunNotFoundError,
    check_role,
    read_info,
    read_object,
    read_tail,
    step_file,
    steps_in,
)
from workbench.run_probes import ProbeSet, read_probes
from workbench.run_writer import RunWriter

__all__ = [
    "FORMAT_VERSION",
    "RECORDED_RUNS",
    "ProbeSet",
    "Run",
    "RunListing",
    "RunNotFoundError",
    "RunSpec",
    "RunWriter",
    "list_runs",
    "load_run_backbone",
    "parse_run_spec",
    "scan_runs",
]

RECORDED_RUNS = Path(__file__).resolve().parent / "recorded"
"""Finished runs that ship with the workbench, to look at before there are any of one's own."""
SILENCE = 120.0
"""Seconds without a record after which a run whose writer cannot be asked counts as silent."""

_SPEC = re.compile(r"run:(?P<path>.+?)(?:@step=(?P<step>\d{1,18}))?(?::(?P<role>" + ROLE.pattern + r"))?", re.DOTALL)
MAIN_ROLE = "teacher"
"""The backbone looked at in a run whose run.json names none."""
_STATES = {"started": None, "resumed": None, "finished": "ended", "stopped": "stopped", "diverged": "crashed"}
"""What the last event of these kinds says about a run that no writer holds."""

Rows = list[dict[str, Any]]


class Run:
    """A run directory, open for reading while it is being written.

    The three tails (`metrics`, `evaluations`, `events`) return (rows, next_byte): all complete records from
    `after_byte` on, and where to go on next time. A torn last line waits for the next read; a line that is no record
    is skipped and counted in `skipped`. next_byte < after_byte says that a resumed writer cut the file: forget the
    rows and read again from 0. No number in a row is NaN or infinite.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the run at `path`. Raises RunNotFoundError or ValueError, both saying what is wrong with the folder."""
        self.path = Path(path)
        self.info = read_info(self.path)
        self._skipped: dict[str, set[int]] = {name: set() for name in LINE_FILES}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The run's name as text (show it, never interpret it); the folder's name when run.json gives none."""
        name = self.info.get("name")
        text = name if isinstance(name, str) and name else self.path.name
        return text.encode("utf-8", "replace").decode()

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as recorded."""
        return read_object(self.path / CONFIG_FILE)

    @property
    def parent(self) -> dict[str, Any] | None:
        """{"run": name, "step": int} of the run this one started from, or None."""
        parent = self.info.get("parent")
        return parent if isinstance(parent, dict) else None

    @property
    def can_fork(self) -> bool:
        """Whether there are resume checkpoints, which training goes on or forks from; a copy often comes without."""
        return (self.path / RESUME_FOLDER).is_dir()

    @property
    def skipped(self) -> dict[str, int]:
        """How many complete lines of each append-only file were no records, among those read so far."""
        return {name: len(offsets) for name, offsets in self._skipped.items()}

    def torn(self) -> dict[str, int]:
        """Bytes after the last line of each append-only file: half a record, of a write under way or of a kill."""
        sizes = {name: (self.path / name).stat().st_size for name in LINE_FILES if (self.path / name).exists()}
        return {name: max(0, size - read_tail(self.path / name).next_byte) for name, size in sizes.items()}

    def metrics(self, after_byte: int = 0) -> tuple[Rows, int]:
        """Training metrics, one row per logged step."""
        return self._tail(METRICS_FILE, after_byte)

    def evaluations(self, after_byte: int = 0) -> tuple[Rows, int]:
        """Evaluations, one row per step and backbone."""
        return self._tail(EVALUATIONS_FILE, after_byte)

    def events(self, after_byte: int = 0) -> tuple[Rows, int]:
        """What happened, in order."""
        return self._tail(EVENTS_FILE, after_byte)

    def roles(self) -> list[str]:
        """Names of the backbones that have saved weights."""
        folder = self.path / BACKBONES_FOLDER
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        return sorted(name for name in names if ROLE.fullmatch(name) and steps_in(folder / name))

    @property
    def main_role(self) -> str:
        """The backbone that is evaluated and whose features of the probes are stored, as run.json names it.

        Where it names none: the teacher, or the first by name of a run that has weights but no teacher.
        """
        named = self.info.get("backbone")
        if isinstance(named, str) and ROLE.fullmatch(named):
            return named
        roles = self.roles()
        return MAIN_ROLE if MAIN_ROLE in roles or not roles else roles[0]

    def steps(self, role: str | None = None) -> list[int]:
        """Steps at which weights of `role` (None: the main one) were saved, rising."""
        return steps_in(self._backbone_folder(role))

    def probe_steps(self) -> list[int]:
        """Steps at which probe features were saved, rising."""
        return steps_in(self.path / PROBES_FOLDER)

    def probe_features(self, step: int) -> Features:
        """Dense features of the probe images at `step`, float16 as stored, without attention."""
        tensors = _load_tensors(self._probe_path(step))
        missing = [name for name in ("patches", "cls", "registers") if name not in tensors]
        if missing or [tensors[name].dim() for name in ("patches", "cls", "registers")] != [4, 2, 3]:
            raise ValueError(f"{self._probe_path(step)} is not a file of probe features: missing {missing or 'axes'}.")
        return Features(patches=tensors["patches"], cls=tensors["cls"], registers=tensors["registers"])

    def probe_stamp(self, step: int) -> tuple[int, int, int]:
        """Inode, size in bytes and time of change in nanoseconds of the features at `step`: other when written anew."""
        status = self._probe_path(step).stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def probe_bytes(self, step: int) -> bytes:
        """The safetensors file of the probe features at `step`, to hand on as it is."""
        return read_plain(self._probe_path(step))

    def probe_images(self) -> ProbeSet:
        """The fixed probe images with masks, captions and class names where known."""
        return read_probes(self.path / PROBES_FOLDER / PROBE_IMAGES_FOLDER)

    def architecture(self, role: str | None = None) -> dict[str, Any]:
        """{"class": name, "config": {...}} of the backbone `role` (None: the main one)."""
        return read_object(self._backbone_folder(role) / ARCHITECTURE_FILE)

    def backbone(self, role: str | None = None, step: int | None = None) -> Backbone:
        """The backbone `role` (None: the main one) at `step` (None: the latest), on the CPU, in evaluation mode."""
        role = self.main_role if role is None else role
        steps = self.steps(role)
        if not steps:
            raise ValueError(f"{self.path} has no weights of {role!r}; it has {', '.join(self.roles()) or 'none yet'}.")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise ValueError(f"{self.path} has no weights of {role!r} at step {step}; steps: {_short(steps)}.")
        config = config_from_architecture(self.architecture(role))
        path = self._backbone_folder(role) / step_file(step)
        try:
            return network_with_weights(config, _load_tensors(path))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{path} does not fit {ARCHITECTURE_FILE} beside it: {error}") from None

    def weights_bytes(self, step: int) -> int | None:
        """Size of the main backbone's file at `step`; None when there is none."""
        path = self._backbone_folder(None) / step_file(step)
        return path.stat().st_size if path.is_file() else None

    def age(self, now: float | None = None) -> float | None:
        """Seconds since the last record or snapshot line was appended, None when there is none.

        `now` is in seconds since 1970 (None: this moment).
        """
        now = time.time() if now is None else now
        times = [(self.path / name).stat().st_mtime for name in LINE_FILES if (self.path / name).exists()]
        return max(0.0, now - max(times)) if times else None

    def status(self, now: float | None = None) -> str:
        """ "live", "ended", "stopped", "crashed", or "silent" when the writer cannot be asked and nothing came lately.

        The writer's lock decides where it can be asked (same machine); elsewhere a last record younger than SILENCE
        counts as life. `now` is in seconds since 1970.
        """
        locked = is_locked(self.path)
        if locked:
            return "live"
        kinds = [str(row["kind"]) for row in self.events()[0] if str(row.get("kind")) in _STATES]
        ending = _STATES[kinds[-1]] if kinds else None
        if ending:
            return ending
        if locked is False:
            return "crashed"
        age = self.age(now)
        return "live" if age is not None and age < SILENCE else "silent"

    def _tail(self, name: str, after_byte: int) -> tuple[Rows, int]:
        tail = read_tail(self.path / name, after_byte)
        if after_byte == 0 or tail.next_byte < after_byte:
            self._skipped[name].clear()
        self._skipped[name].update(tail.skipped)
        return tail.rows, tail.next_byte

    def _backbone_folder(self, role: str | None) -> Path:
        return self.path / BACKBONES_FOLDER / check_role(self.main_role if role is None else role)

    def _probe_path(self, step: int) -> Path:
        path = self.path / PROBES_FOLDER / step_file(step)
        if not path.is_file():
            raise ValueError(f"{self.path} has no probe features at step {step}; steps: {_short(self.probe_steps())}.")
        return path


class RunListing(NamedTuple):
    """What `scan_runs` found in a folder."""

    runs: list[Run]
    """Oldest first."""
    problems: dict[str, str]
    """Folder name -> why it cannot be opened, for folders that hold a run.json of another kind."""


def scan_runs(folder: str | Path) -> RunListing:
    """All runs right inside `folder` (or `folder` itself when it is a run), and those that cannot be opened.

    Raises ValueError when `folder` does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunNotFoundError(f"no folder of runs at {folder}; give the folder whose sub-folders are runs.")
    if (folder / RUN_FILE).exists():
        return RunListing([Run(folder)], {})
    runs, problems = [], {}
    for entry in sorted(folder.iterdir()):
        try:
            if (entry / RUN_FILE).is_file():
                runs.append(Run(entry))
        except (ValueError, OSError) as error:
            problems[entry.name] = str(error)
    return RunListing(sorted(runs, key=lambda run: (str(run.info.get("created")), run.path.name)), problems)


def list_runs(folder: str | Path) -> list[Run]:
    """The readable runs right inside `folder`, oldest first. Raises ValueError when `folder` does not exist."""
    return scan_runs(folder).runs


class RunSpec(NamedTuple):
    """A backbone of a run, as "run:PATH[@step=N][:role]" names it."""

    path: str
    role: str | None = None
    """None: the run's main role."""
    step: int | None = None
    """None: the latest."""


def parse_run_spec(spec: str) -> RunSpec:
    """The parts of "run:PATH[@step=N][:role]"; the latest step and the main role when not said.

    A path that itself ends in ":word" needs the role written out. Raises ValueError for anything else.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(f"{spec!r} is not a run's backbone; write run:PATH[@step=N][:role].")
    step = match["step"]
    return RunSpec(match["path"], match["role"], None if step is None else int(step))


def load_run_backbone(spec: str) -> Backbone:
    """The backbone named by "run:PATH[@step=N][:role]" (see `parse_run_spec`)."""
    path, role, step = parse_run_spec(spec)
    return Run(path).backbone(role, step)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        check_plain(path)
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _short(steps: list[int]) -> str:
    if len(steps) <= 8:
        return ", ".join(map(str, steps)) or "none yet"
    return f"{steps[0]}, {steps[1]}, {steps[2]}, …, {steps[-1]} ({len(steps)} in all)"
