"""Opening files of a run, which may come from anybody: regular files only, without waiting, and no more than fits."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

MOST_BYTES = 512 * 2**20
"""Of one file, or of what was appended to one since the last look."""


def open_plain(path: Path, flags: int) -> int:
    """A descriptor of the regular file `path`, opened with `flags` and without ever waiting; the caller closes it.

    A run may come from somebody else: a symbolic link in it could point at any file of the reader. Raises ValueError
    for a symbolic link, a pipe, a socket or a device, OSError for what else goes wrong.
    """
    refusal = f"{path} is no regular file but a link, a pipe or a device; delete it if this run is yours."
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a pipe that nobody reads, or a socket
            raise ValueError(refusal) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(refusal)
    return descriptor


def read_plain(path: Path, start: int = 0) -> bytes:
    """The bytes of the regular file `path` from `start` on.

    Raises FileNotFoundError or another OSError, and ValueError as `open_plain` does or for more than MOST_BYTES.
    """
    with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size - start
        if size > MOST_BYTES:
            raise ValueError(f"{path} has {size} bytes to read; at most {MOST_BYTES} are read of one file.")
        file.seek(start)
        return file.read(MOST_BYTES)


def check_plain(path: Path) -> None:
    """Raise as `open_plain` does for a file that a library is about to open by its name."""
    os.close(open_plain(path, os.O_RDONLY))


def check_new(path: Path, suffixes: Sequence[str]) -> None:
    """Raise before any work: ValueError unless `path` ends in one of `suffixes`, FileExistsError if it is there."""
    if path.suffix not in suffixes:
        raise ValueError(f"{path.name} must end in {' or '.join(suffixes)}.")
    if path.exists():
        raise FileExistsError(f"{path} is there already; name another file or remove it.")
