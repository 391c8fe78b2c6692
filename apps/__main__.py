"""`python -m apps --runs runs/`: serve the pages over a folder of runs on this machine."""

from __future__ import annotations

import argparse
import contextlib
import errno
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import uvicorn

from apps.security import is_loopback
from apps.server import Starter, make_server_app, private_folders

FIRST_PORT = 7860
PORTS_TRIED = 40
SHUTDOWN_SECONDS = 2


class UsageError(Exception):
    """A mistake on the command line, told in one line."""


class Server(uvicorn.Server):
    """uvicorn that says at once, by `closing`, that it is stopping, so that open streams end by themselves."""

    def __init__(self, config: uvicorn.Config, closing: threading.Event) -> None:
        super().__init__(config)
        self.closing = closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.closing.set()
        super().handle_exit(sig, frame)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m apps", description="See runs in the browser while they train.")
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        help="folder whose sub-folders are runs (default: %(default)s; may not exist yet)",
    )
    parser.add_argument(
        "--no-recorded", action="store_true", help="leave out the recorded examples that ship with the workbench"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default: %(default)s, this machine only)"
    )
    parser.add_argument(
        "--port", type=port_number, default=None, help=f"port (default: the first free one from {FIRST_PORT})"
    )
    parser.add_argument("--token", help="secret that visitors must bring; needed when --host is not this machine only")
    parser.add_argument("--open", action="store_true", help="open a browser window")
    return parser.parse_args(arguments)


def port_number(text: str) -> int | None:
    """A port from 1 to 65535; "0" and "free" mean any free one (None)."""
    if text in ("0", "free"):
        return None
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 1 to 65535, or free")
    return int(text)


def check(options: argparse.Namespace) -> None:
    """Raise UsageError for a runs folder that is a file, an unfit token, a public host without one."""
    if options.runs.exists() and not options.runs.is_dir():
        raise UsageError(f"--runs {options.runs} is a file; give the folder whose sub-folders are runs")
    if options.token and not (options.token.isascii() and options.token.isprintable()):
        raise UsageError("--token holds other than printable ASCII characters; take letters, digits and punctuation")
    if not is_loopback(options.host) and not options.token:
        proposal = secrets.token_urlsafe(12)
        raise UsageError(
            f"--host {options.host} can be reached from other machines; add a secret, for example --token {proposal}"
        )


def listen(host: str, port: int | None) -> socket.socket:
    """A bound socket at `port`, or at the first free port from FIRST_PORT. Raises UsageError when there is none."""
    if port is not None:
        return bind(host, port)
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        with contextlib.suppress(UsageError):
            return bind(host, candidate)
    return bind(host, 0)


def bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
        bound.listen(128)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} is in use; give another one, or leave --port out to get a free one"
            ) from None
        raise UsageError(
            f"cannot serve at {host} port {port}: {error.strerror or error}; try --host 127.0.0.1"
        ) from None
    return bound


def address(host: str, bound: socket.socket, token: str | None) -> str:
    """The address to open on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host.strip("[]") else host)
    return f"http://{name}:{bound.getsockname()[1]}/" + (f"?token={quote(token, safe='')}" if token else "")


def stop_when_failed(starter: Starter, server: uvicorn.Server) -> None:
    """Ends the server when the application behind the waiting page could not be built."""
    while not server.should_exit and starter.app is None:
        if starter.failed is not None:
            server.should_exit = True
        threading.Event().wait(0.1)


def serve(options: argparse.Namespace, bound: socket.socket) -> int:
    """Serves until stopped by Ctrl-C or SIGTERM. Returns the exit code."""
    link = address(options.host, bound, options.token)
    print(f"Dense Feature Workbench: {link}  (runs in {options.runs}; Ctrl-C stops)", flush=True)
    if options.open:
        threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()
    closing = threading.Event()
    app, starter = make_server_app(
        options.runs,
        host=options.host,
        token=options.token,
        closing=closing.is_set,
        recorded=not options.no_recorded,
    )
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS)
    server = Server(config, closing)
    threading.Thread(target=stop_when_failed, args=(starter, server), daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn stops, then raises the signal once more
    server.run(sockets=[bound])
    if starter.failed is not None:
        print(f"python -m apps: could not start: {starter.failed}", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    try:
        check(options)
        bound = listen(options.host, options.port)
    except UsageError as mistake:
        print(f"python -m apps: {mistake}", file=sys.stderr)
        return 2
    with private_folders(), contextlib.suppress(KeyboardInterrupt):
        return serve(options, bound)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
