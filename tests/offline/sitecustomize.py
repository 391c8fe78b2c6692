"""Refuse and record every attempt of this Python process to reach another machine.

The test session installs this guard in itself (tests/conftest.py) and puts this folder on PYTHONPATH, so that Python
runs it at the start of every child process too: a trainer, a server, a notebook kernel. Attempts are appended, one a
line, to the file named by DFW_OFFLINE_LOG; the session fails the test during which a line appeared.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Any

LOG_VARIABLE = "DFW_OFFLINE_LOG"


class LeftTheMachineError(OSError):
    """A connection or a name look-up that would have left the machine."""


def is_local(host: object) -> bool:
    """True for addresses and names that stay on this machine: loopback, unspecified, its own host name."""
    if isinstance(host, bytes):
        host = host.decode("idna", errors="replace")
    if not isinstance(host, str):
        return host is None
    name = host.partition("%")[0].rstrip(".").lower()
    if name in {"", "localhost", socket.gethostname().lower()}:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse(what: str) -> None:
    """Write the attempt to the log, then raise LeftTheMachineError."""
    log = os.environ.get(LOG_VARIABLE)
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"process {os.getpid()} ({' '.join(sys.argv[:3])}): {what}\n")
    raise LeftTheMachineError(f"{what}: this would leave the machine; tests stay on loopback addresses")


def install() -> None:
    """Put the guard in front of what connects, sends to an address or looks a name up. Again changes nothing."""
    if getattr(socket, "_stays_on_this_machine", False):
        return
    for name, position in (("connect", 0), ("connect_ex", 0), ("sendto", -1), ("sendmsg", 3)):
        setattr(socket.socket, name, _guarded(name, getattr(socket.socket, name), position))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
        setattr(socket, name, _guarded_look_up(getattr(socket, name), backwards=name == "gethostbyaddr"))
    socket._stays_on_this_machine = True  # type: ignore[attr-defined]


def _guarded(name: str, original: Any, position: int) -> Any:
    """The method with the address (its argument at `position`, a (host, port, …) tuple) checked before the call."""

    def method(self: socket.socket, *args: Any) -> Any:
        address = args[position] if len(args) > max(position, 0) else None
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple) and not is_local(address[0]):
            refuse(f"{name} to {address[0]!r} port {address[1]}")
        return original(self, *args)

    return method


def _guarded_look_up(original: Any, *, backwards: bool) -> Any:
    """The function with the host checked first; a look-up `backwards` asks for the name of an address as well."""

    def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_local(host) and (backwards or not _is_address(host)):
            refuse(f"look-up of {host!r}")
        return original(host, *args, **kwargs)

    return look_up


def _is_address(host: object) -> bool:
    """True for a literal IP address: turning it into an address sends nothing."""
    try:
        ipaddress.ip_address(str(host))
    except ValueError:
        return False
    return True


if os.environ.get(LOG_VARIABLE):
    install()
