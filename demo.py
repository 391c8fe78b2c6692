"""`make demo`: train on built-in scenes and watch it in the browser.

Two processes: `python -m training pretrain RECIPE --run RUN` in the background, its output in RUN.log and shown here
as plain lines; and `python -m apps --runs FOLDER`, the page, on a free port of 127.0.0.1. Ctrl-C stops both: the
trainer is asked with SIGTERM, saves and exits with 75. The same command again goes on from there.
Standard library only, and no import of ours: the two sides meet in the run directory alone.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

SAVED_AND_STOPPED = 75  # the trainer's exit code after a SIGTERM, "start me again"
SAVE_SECONDS = 60.0  # how long the trainer may take to save before it is killed
FIRST_PORT, PORTS_TRIED = 7860, 40  # the same address from one demo to the next, when it is free
LOG_TAIL_LINES = 20  # lines of the trainer's output to show when it failed


class Stop(Exception):
    """Ctrl-C, or a polite kill."""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo.py", description="Train on built-in scenes and watch it in the browser."
    )
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run directory (default: %(default)s)")
    parser.add_argument("--recipe", default="cpu_demo", help="recipe of the pretrain phase (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port of the page on 127.0.0.1 (default: a free one)")
    parser.add_argument("--no-open", action="store_true", help="do not open a browser window")
    parser.add_argument("overrides", nargs="*", help="after a lone --: options passed on to the trainer")
    return parser.parse_args(arguments)


def find_free_port() -> int:
    """The first free port from FIRST_PORT, or any free one."""
    for port in [*range(FIRST_PORT, FIRST_PORT + PORTS_TRIED), 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise OSError("no free port on 127.0.0.1")


def start_trainer(options: argparse.Namespace, log: TextIO) -> subprocess.Popen[str]:
    """The trainer, in a session of its own: Ctrl-C reaches only this script, which then asks it to save."""
    command = [sys.executable, "-m", "training", "pretrain", options.recipe, "--run", str(options.run)]
    return subprocess.Popen(
        [*command, *options.overrides],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def start_server(options: argparse.Namespace, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "apps", "--runs", str(options.run.parent), "--port", str(port)]
    if not options.no_open:
        command.append("--open")
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, start_new_session=True)


def show_new_lines(log: TextIO) -> None:
    """Print what the trainer has written since the last call."""
    for line in log:
        print(f"  training | {line.rstrip()}", flush=True)


def saved_step(run: Path) -> int | None:
    """Step of the newest saved state, by the run's own events; None when nothing was saved yet."""
    try:
        lines = (run / "events.jsonl").read_bytes().split(b"\n")[:-1]
    except OSError:
        return None
    steps = [event["step"] for event in map(parse_event, lines) if event.get("kind") == "saved"]
    return steps[-1] if steps else None


def parse_event(line: bytes) -> dict[str, Any]:
    """One line of events.jsonl; empty when it is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) and "step" in event else {}


def explain_trainer_exit(code: int, run: Path, log: Path) -> int:
    """Say how the trainer of `run` ended. Returns the exit code the demo should have."""
    if code == 0:
        print("Training is finished.", flush=True)
        return 0
    if code in (SAVED_AND_STOPPED, -signal.SIGTERM):  # the latter: stopped before it was ready to train
        step = saved_step(run)
        if step is None:
            print("Training has stopped before there was anything to save. The same command starts it.", flush=True)
        else:
            print(f"Training has stopped, its state of step {step} is saved. The same command goes on.", flush=True)
        return 0
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
    print(f"Training failed with exit code {code}. The end of {log}:", file=sys.stderr)
    print("\n".join(f"  {line}" for line in lines), file=sys.stderr)
    print("To start beside this run: make demo RUN=runs/another", file=sys.stderr, flush=True)
    return 1


def watch(
    trainer: subprocess.Popen[str], server: subprocess.Popen[str], port: int, run: Path, log: Path, shown: TextIO
) -> int:
    """Follow both processes until one fails (returns 1) or Stop is raised. The page outlives a finished training."""
    training = True
    while True:
        show_new_lines(shown)
        if training and trainer.poll() is not None:
            training = False
            show_new_lines(shown)
            if explain_trainer_exit(trainer.returncode, run, log):
                return 1
            print(f"The page stays at http://127.0.0.1:{port}/ until you press Ctrl-C.", flush=True)
        if server.poll() is not None:
            print(f"The page's server ended by itself with exit code {server.returncode}.", file=sys.stderr)
            return 1
        time.sleep(0.25)


def end(process: subprocess.Popen[str], seconds: float) -> int:
    """Ask the process to end with SIGTERM; kill it when it takes longer than `seconds`. Returns its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def raise_stop(number: int, frame: FrameType | None) -> None:
    raise Stop


def listen_for(handler: signal.Handlers | Callable[[int, FrameType | None], None]) -> None:
    """Set the handler of everything that means "stop": Ctrl-C, a polite kill, a closed terminal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup: goes on when it closes
            signal.signal(number, handler)


def run_both(options: argparse.Namespace, port: int, log: Path, written: TextIO, shown: TextIO) -> int:
    """Start trainer and server, follow them, and end both whatever happens. Returns the demo's exit code."""
    verdict, trainer, server = 0, None, None
    try:
        listen_for(raise_stop)
        trainer = start_trainer(options, written)
        server = start_server(options, port)
        verdict = watch(trainer, server, port, options.run, log, shown)
    except Stop:
        print("\nStopping …", flush=True)
    finally:
        listen_for(signal.SIG_IGN)  # the trainer is saving: one Ctrl-C is enough
        try:
            if trainer is not None and trainer.poll() is None:
                code = end(trainer, SAVE_SECONDS)
                show_new_lines(shown)  # fails when the terminal is gone
                verdict = max(verdict, explain_trainer_exit(code, options.run, log))
        finally:
            if server is not None:
                end(server, 5.0)
    return verdict


def main(arguments: list[str]) -> int:
    options = parse_arguments(arguments)
    port = options.port or find_free_port()
    log = options.run.with_name(options.run.name + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"Training in the background (output also in {log}); starting the page …", flush=True)
    with log.open("a", encoding="utf-8") as written, log.open(encoding="utf-8", errors="replace") as shown:
        shown.seek(0, 2)
        return run_both(options, port, log, written, shown)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
