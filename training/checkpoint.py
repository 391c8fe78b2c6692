"""Resume checkpoints: everything a bitwise continuation needs, in `resume/step-NNNNNN/`, private to this file.

A save goes to `.tmp-…`, is flushed to disk, gets a COMPLETE.json with the size and SHA-256 of every file, and is
then renamed; a folder without a matching COMPLETE.json is never trusted. Tensors are written by
torch.distributed.checkpoint, imported where it is used: it takes seconds, and a wrong command line must not wait.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEEP = 2
Kind = tuple[tuple[int, ...], torch.dtype]
_NAME = re.compile(r"step-(\d{6,})")


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], *, keep: int = KEEP, keep_every: int = 0
) -> Path:
    """Write `tensors` as the checkpoint of `step` and delete all but the `keep` newest afterwards.

    Those of steps that are multiples of `keep_every` stay too (0: none).

    Raises OSError (disk full, not writable) with earlier checkpoints untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    temporary = folder / f".tmp-{step:06d}-{uuid.uuid4().hex[:8]}"
    try:
        _write(temporary, tensors)
        _seal(temporary, step)
        final = folder / f"step-{step:06d}"
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(folder)
    for old in _folders(folder)[keep:]:
        if not keep_every or step_of(old) % keep_every:
            shutil.rmtree(old)
    return final


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and one line for each newer one that does not.

    Raises ValueError when `folder` belongs to another user: loading a checkpoint unpickles files in it.
    """
    _check_owner(folder)
    rejected = []
    for candidate in _folders(folder):
        problem = _problem(candidate)
        if problem is None:
            return candidate, rejected
        rejected.append(f"{candidate.name}: {problem}")
    return None, rejected


def kept_steps(folder: Path) -> list[int]:
    """Steps with a checkpoint in `folder`, rising, whether or not it verifies."""
    return sorted(step_of(path) for path in _folders(folder))


def checkpoint_at(folder: Path, step: int) -> Path:
    """The checkpoint of `step`, verified.

    Raises ValueError when there is none (listing those kept), when it is damaged, or when it is another user's.
    """
    _check_owner(folder)
    path, kept = folder / f"step-{step:06d}", kept_steps(folder)
    if step not in kept:
        raise ValueError(
            f"{folder.parent} keeps no resume checkpoint of step {step}; steps that have one: "
            f"{', '.join(map(str, kept)) or 'none'}. A run keeps its {KEEP} newest, and every Nth with "
            "--loop.keep-every N: resume it with that option (in a finished run, only what is there is left)"
        )
    problem = _problem(path)
    if problem is not None:
        raise ValueError(f"the resume checkpoint {path} cannot be trusted: {problem}. Choose another step")
    return path


def discard_later(folder: Path, step: int) -> None:
    """Delete the checkpoints after `step`. A run resumed there has rejected them, and they must not count as kept."""
    for path in _folders(folder):
        if step_of(path) > step:
            shutil.rmtree(path)


def load_checkpoint(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place; names, shapes and dtypes must match what was saved.

    Raises ValueError naming the first difference.
    """
    saved = saved_kinds(path)
    if unlike := differing(saved, tensors, saved.keys() | tensors.keys()):
        raise ValueError(
            f"checkpoint {path} does not fit this run: {len(unlike)} tensors differ, the first is {unlike[0]}; "
            "start a new run with --run NAME, or use the code version written in run.json"
        )
    read_tensors(path, tensors)


def differing(saved: dict[str, Kind | None], tensors: dict[str, Tensor], names: Iterable[str]) -> list[str]:
    """A description of each of `names` whose shape or dtype was saved differently, or that is on one side only."""
    wanted = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    return [
        f"{name!r} (saved {saved.get(name, 'not at all')}, wanted {wanted.get(name, 'not at all')})"
        for name in sorted(names)
        if saved.get(name) != wanted.get(name)
    ]


def saved_kinds(path: Path) -> dict[str, Kind | None]:
    """(shape, dtype) of every tensor of a checkpoint, by name."""
    import torch.distributed.checkpoint as dcp

    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    return {name: _kind(value) for name, value in metadata.items()}


def read_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, some or all of a checkpoint, in place; their names, shapes and dtypes are those saved."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.load(dict(tensors), storage_reader=dcp.FileSystemReader(path), no_dist=True)


def saved_number(path: Path, name: str) -> int | None:
    """The whole number saved as `name`; None when the checkpoint has none of that name."""
    if name not in saved_kinds(path):
        return None
    tensors = {name: torch.tensor(0)}
    read_tensors(path, tensors)
    return int(tensors[name])


def step_of(path: Path) -> int:
    """Number of steps done at the checkpoint `step-NNNNNN`."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match.group(1))


def sweep(folder: Path) -> None:
    """Delete what interrupted saves left behind."""
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors by parameter name (see `training.optim.parameter_groups`).

    States not yet created are created as zeros.
    """
    flat: dict[str, Tensor] = {}
    named = [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]
    for key, parameter in named:
        state: dict[str, Any] = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)  # where fused AdamW wants it
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        flat |= {f"{key}.{name}": value for name, value in sorted(state.items())}
    return flat


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def _check_owner(folder: Path) -> None:
    if hasattr(os, "getuid") and folder.exists() and (owner := folder.stat().st_uid) != os.getuid():
        raise ValueError(
            f"{folder} belongs to user {owner}, and this is user {os.getuid()}; a resume unpickles files, so only your "
            "own runs are resumed. Delete that folder if the run was given to you, or change its owner if it is yours"
        )


def _kind(saved: Any) -> Kind | None:
    """(shape, dtype) of a saved tensor, None for anything else."""
    return (tuple(saved.size), saved.properties.dtype) if hasattr(saved, "properties") else None


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write `tensors` into the new folder. Whatever went wrong inside comes out as the OSError it was, or as one."""
    import torch.distributed.checkpoint as dcp

    try:
        with warnings.catch_warnings():  # "torch.distributed is uninitialized": one process is what we mean
            warnings.simplefilter("ignore", UserWarning)
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
    except dcp.CheckpointException as error:  # no Exception but a BaseException, around what really happened
        cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, OSError) or not isinstance(cause, Exception):
            raise cause from None
        raise OSError(errno.EIO, f"the checkpoint could not be written ({cause})", str(folder)) from error


def _seal(folder: Path, step: int) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    with (folder / "COMPLETE.json").open("w") as handle:
        json.dump({"step": step, "files": files}, handle)
        handle.flush()
        os.fsync(handle.fileno())
    _flush(folder)


def _problem(folder: Path) -> str | None:
    try:
        seal = json.loads((folder / "COMPLETE.json").read_text())
        if seal["step"] != step_of(folder):
            return f"it was saved as step {seal['step']}"
        for name, expected in seal["files"].items():
            path = folder / name
            if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
                return f"{name} is not what was saved"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no readable COMPLETE.json or a missing file ({type(error).__name__})"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
