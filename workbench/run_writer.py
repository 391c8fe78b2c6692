"""Writing a run directory (docs/run-format.md) so that a kill at any moment loses nothing that was written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save_file
from torch import Tensor

from workbench.features import Features
from workbench.run_files import RunLock, append_line, replace_bytes, replacing, sweep_temporary, sync_folder
from workbench.run_layout import (
    ARCHITECTURE_FILE,
    BACKBONES_FOLDER,
    CONFIG_FILE,
    EVALUATIONS_FILE,
    EVENTS_FILE,
    FORMAT_VERSION,
    LINE_FILES,
    LOCK_FILE,
    METRICS_FILE,
    PROBE_IMAGES_FOLDER,
    PROBES_FOLDER,
    RUN_FILE,
    TEMPORARY_PREFIX,
    check_role,
    parse_record,
    read_info,
    read_object,
    step_file,
    steps_in,
)
from workbench.run_probes import ProbeSet, read_probes, same_probes, write_probes

LEVELS = ("info", "warn", "error")
_KIND = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")


class RunWriter:
    """The one writer of a run. Make it with `create` or `reopen`; close it (or leave its `with`) to free the run."""

    def __init__(self, path: Path, lock: RunLock) -> None:
        self.path = path
        self._lock = lock
        self.repairs: list[str] = []
        """What `reopen` had to mend, in words for the person who resumes; each is an event of the run, too."""

    @classmethod
    def create(cls, path: str | Path, *, info: Mapping[str, Any], config: Mapping[str, Any]) -> Self:
        """Start a new run at `path` and claim it.

        `info` fills run.json (format_version, name and created are added when absent), `config` fills config.json.
        What a writer killed inside `create` left behind is taken over. Raises ValueError when `path` is a file, a
        run already, a folder with other content, not writable, or claimed by another writer.
        """
        path = Path(path)
        _make_folder(path)
        lock = _claim(path)
        try:
            _refuse_foreign_content(path)
            created = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"name": path.name, "created": created, **info, "format_version": FORMAT_VERSION}
            sweep_temporary(path)
            _write_json(path / CONFIG_FILE, config)
            _write_json(path / RUN_FILE, about)
        except BaseException:
            lock.release()
            raise
        return cls(path, lock)

    @classmethod
    def reopen(cls, path: str | Path, *, step: int | None) -> Self:
        """Claim the run at `path` to go on from `step`: everything later is forgotten; None forgets step 0 as well.

        Sweeps temporary files, cuts torn lines (an event `torn-line` each, see `repairs`), drops records and snapshots
        of later steps. `resume/` is left alone. Raises ValueError when `path` is no run of this format version or is
        claimed by another writer.
        """
        path = Path(path)
        read_info(path)
        lock = _claim(path)
        last = -1 if step is None else step
        try:
            writer = cls(path, lock)
            _sweep_all(path)
            torn = {name: _cut_lines(path / name, last) for name in LINE_FILES}
            for folder in _snapshot_folders(path):
                _drop_snapshots(folder, last)
            writer._report_torn(max(last, 0), torn)
        except BaseException:
            lock.release()
            raise
        return writer

    def metrics(self, step: int, seconds: float, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. `seconds` is training time since step 0; a non-finite value is null."""
        self._append(METRICS_FILE, step, {"seconds": _number(seconds), **_numbers(values, {"step", "seconds"})})

    def evaluation(self, step: int, seconds: float, backbone: str, values: Mapping[str, Any]) -> None:
        """Append one line to evaluations.jsonl: scores of the backbone of role `backbone` at `step`."""
        named = {"seconds": _number(seconds), "backbone": check_role(backbone)}
        self._append(EVALUATIONS_FILE, step, {**named, **_numbers(values, {"step", *named})})

    def event(self, step: int, level: str, kind: str, text: str, details: Mapping[str, Any] | None = None) -> None:
        """Append one line to events.jsonl, stamped with the time (UTC). `level` is info, warn or error.

        `details`: further fields of the line for programs, such as the `command` that an event advises.
        """
        if level not in LEVELS:
            raise ValueError(f"event level {level!r} is unknown; use one of {', '.join(LEVELS)}.")
        if not _KIND.fullmatch(kind):
            raise ValueError(f"event kind {kind!r} must be lower-case words joined by '-', such as dense-peak.")
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        named = {"level": level, "kind": kind, "text": str(text), "time": time}
        self._append(EVENTS_FILE, step, {**(details or {}), **named})

    def backbone(self, role: str, step: int, architecture: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Path:
        """Save weights of `role` at `step` as safetensors, and its architecture; the path of the weights.

        `architecture` is {"class": ..., "config": {...}} and stays the same for the whole run, else ValueError.
        """
        folder = self.path / BACKBONES_FOLDER / check_role(role)
        about = folder / ARCHITECTURE_FILE
        plain = json.loads(_json_bytes(architecture))
        if not about.exists():
            _write_json(about, plain)
        elif read_object(about) != plain:
            raise ValueError(f"{about} describes another network; a role keeps one architecture for the whole run.")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        return _save_tensors(folder / step_file(_whole(step)), tensors, step=step, backbone=role)

    def probe_images(
        self,
        images: Tensor,
        *,
        patch_size: int,
        masks: Tensor | None = None,
        captions: Sequence[Mapping[str, str]] | None = None,
        classes: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        """Write the fixed probe images uint8 [I, 3, h, w] once; masks are class indices [I, h, w], 0 background.

        Writing the same set again (after a resume) does nothing; another set is a ValueError.
        """
        probes = ProbeSet(
            images=images.cpu(),
            masks=None if masks is None else masks.cpu().long(),
            captions=None if captions is None else [dict(caption) for caption in captions],
            classes=None if classes is None else [dict(name) for name in classes],
            patch_size=patch_size,
        )
        folder = self.path / PROBES_FOLDER / PROBE_IMAGES_FOLDER
        folder.parent.mkdir(exist_ok=True)
        if not folder.exists():
            write_probes(folder, probes)
        elif not same_probes(read_probes(folder), probes):
            raise ValueError(f"{folder} holds other probe images; they stay the same for the whole run.")

    def probe_features(self, step: int, features: Features, *, backbone: str = "teacher") -> Path:
        """Save the dense features of the probe images at `step` in float16; attention is not stored."""
        names = ("patches", "cls", "registers")
        tensors = {name: getattr(features, name).detach().cpu().half().contiguous() for name in names}
        return _save_tensors(self.path / PROBES_FOLDER / step_file(_whole(step)), tensors, step=step, backbone=backbone)

    def has_probe(self, step: int) -> bool:
        """Whether the probe features of `step` are written."""
        return (self.path / PROBES_FOLDER / step_file(step)).exists()

    def _report_torn(self, step: int, torn: Mapping[str, int]) -> None:
        for name, size in torn.items():
            if size:
                text = f"{name}: the last {size} bytes were half a record of a killed write; cut"
                self.event(step, "warn", "torn-line", text)
                self.repairs.append(text)

    def close(self) -> None:
        """Free the run for another writer."""
        self._lock.release()

    def _append(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        append_line(self.path / name, json.dumps({"step": _whole(step), **values}, allow_nan=False).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _make_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; a run needs a folder of its own. Choose another run name.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot create the run folder {path}: {error.strerror}. Choose a writable place.") from None


def _claim(path: Path) -> RunLock:
    try:
        return RunLock(path)
    except OSError as error:
        raise ValueError(f"cannot write in the run folder {path}: {error.strerror}. Choose a writable place.") from None


def _refuse_foreign_content(path: Path) -> None:
    if (path / RUN_FILE).exists():
        raise ValueError(f"{path} is a run already; resume it, or choose another run name.")
    own = {LOCK_FILE, CONFIG_FILE}
    names = (entry.name for entry in path.iterdir())
    foreign = sorted(name for name in names if name not in own and not name.startswith(TEMPORARY_PREFIX))
    if foreign:
        raise ValueError(
            f"{path} is not a run but has content ({', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''}); "
            "nothing was touched. Choose another run name."
        )


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"only plain JSON values can be recorded in a run: {error}.") from None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    replace_bytes(path, _json_bytes(value))


def _whole(step: int) -> int:
    if int(step) != step or step < 0:
        raise ValueError(f"step is {step!r}; steps are whole numbers from 0.")
    return int(step)


def _number(value: Any) -> float | int | None:
    """A finite number, or None for NaN, infinity and None itself; tensors and numpy scalars are accepted."""
    if value is None or isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None


def _numbers(values: Mapping[str, Any], reserved: set[str]) -> dict[str, float | int | None]:
    if clash := reserved & set(values):
        raise ValueError(f"{', '.join(sorted(clash))}: reserved names; pass them as arguments, not among the values.")
    return {str(name): _number(value) for name, value in values.items()}


def _save_tensors(path: Path, tensors: dict[str, Tensor], *, step: int, backbone: str) -> Path:
    seen: set[int] = set()
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensors[name] = tensor.clone()
        seen.add(pointer)
    about = {"step": step, "backbone": backbone, "format_version": FORMAT_VERSION}
    metadata = {"snapshot": json.dumps(about)}  # one entry: safetensors writes several in an order that varies
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return path


def _snapshot_folders(path: Path) -> list[Path]:
    roles = path / BACKBONES_FOLDER
    return [path / PROBES_FOLDER, *(sorted(entry for entry in roles.iterdir()) if roles.is_dir() else ())]


def _sweep_all(path: Path) -> None:
    for folder in (path, path / BACKBONES_FOLDER, *_snapshot_folders(path)):
        sweep_temporary(folder)


def _cut_lines(path: Path, step: int) -> int:
    """Drop the torn tail and the records later than `step`; lines that are no records stay where they are.

    Returns the bytes of the torn tail, 0 when the last line was whole.
    """
    if not path.exists():
        return 0
    data = path.read_bytes()
    *lines, torn = data.split(b"\n")
    records = (parse_record(line) for line in lines)
    kept = [line for line, row in zip(lines, records, strict=True) if row is None or row["step"] <= step]
    whole = b"".join(line + b"\n" for line in kept)
    if whole != data:
        replace_bytes(path, whole)
    return len(torn)


def _drop_snapshots(folder: Path, step: int) -> None:
    later = [saved for saved in steps_in(folder) if saved > step]
    for saved in later:
        (folder / step_file(saved)).unlink()
    if later:
        sync_folder(folder)
