"""Writing files that survive a kill: whole files by temporary name and rename, lines by one write each, one lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

from workbench.plain_files import open_plain
from workbench.run_layout import LOCK_FILE, TEMPORARY_PREFIX

OWNER_BYTES = 200
"""Most bytes read of `.lock`: a process id and a host name."""

LOCK_PATIENCE = 1.0
"""Seconds a writer keeps trying: a reader that asks who is alive holds the lock for some microseconds."""


def temporary_path(folder: Path) -> Path:
    """A fresh name in `folder` that readers ignore and `sweep_temporary` removes."""
    return folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:12]}"


def sync_folder(folder: Path) -> None:
    """Make renames and removals inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; at the end it is flushed to disk and renamed over `path`.

    Its mode is that of any new file (see umask), also after a library that keeps its own to the owner, as safetensors.
    Whatever happens inside, `path` holds either the old bytes or all of the new ones, and no temporary file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path.parent)
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` as a whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sweep_temporary(folder: Path) -> int:
    """Remove temporary files and folders that a killed writer left right inside `folder`; how many there were."""
    if not folder.is_dir():
        return 0
    stale = [entry for entry in folder.iterdir() if entry.name.startswith(TEMPORARY_PREFIX)]
    for entry in stale:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    return len(stale)


def append_line(path: Path, line: bytes) -> None:
    """Append `line` (without its newline) with one write call; a write that falls short is undone before it raises.

    Raises OSError, naming the file, when the disk is full or the file cannot be written (earlier lines are intact),
    and ValueError when `path` is a symbolic link or otherwise no regular file.
    """
    line += b"\n"
    descriptor = open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        end = os.fstat(descriptor).st_size
        written = os.write(descriptor, line)
        if written != len(line):
            os.ftruncate(descriptor, end)
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes fit; the line was taken back", str(path))
    finally:
        os.close(descriptor)


class RunLock:
    """The exclusive claim of one writer on a run: flock on `.lock`, which the kernel frees when the process dies.

    A forked child (a data-loading worker) lets go of its copy at once, so that it cannot outlive its parent's claim.
    """

    _held: ClassVar[weakref.WeakSet[RunLock]] = weakref.WeakSet()

    def __init__(self, folder: Path) -> None:
        """Claim `folder`, or raise ValueError naming who holds it, or that its lock is no regular file."""
        self.path = folder / LOCK_FILE
        self._descriptor: int | None = open_plain(self.path, os.O_RDWR | os.O_CREAT)
        deadline = time.monotonic() + LOCK_PATIENCE
        while not _try_lock(self._descriptor):
            if time.monotonic() > deadline:
                self.release()
                raise ValueError(
                    f"run {folder} is being written by another process ({lock_owner(folder) or 'unknown'}); "
                    "stop that one first, or choose another run name."
                )
            time.sleep(0.02)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        RunLock._held.add(self)

    def release(self) -> None:
        """Give the claim back; calling it twice is fine."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @classmethod
    def _release_in_child(cls) -> None:
        for lock in list(cls._held):
            lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


os.register_at_fork(after_in_child=RunLock._release_in_child)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_owner(folder: Path) -> str | None:
    """`PID HOST` as the last writer noted it, or None when no writer ever claimed `folder` (or its lock is no file)."""
    try:
        descriptor = open_plain(folder / LOCK_FILE, os.O_RDONLY)
    except (OSError, ValueError):
        return None
    try:
        return os.read(descriptor, OWNER_BYTES).decode(errors="replace").strip() or None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool | None:
    """Whether a living writer holds `folder`; None when that cannot be known here (no lock file, another machine)."""
    owner = lock_owner(folder)
    if owner is None or owner.partition(" ")[2] != socket.gethostname():
        return None
    try:
        descriptor = open_plain(folder / LOCK_FILE, os.O_RDONLY)
    except (OSError, ValueError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
