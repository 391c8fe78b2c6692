"""The guards themselves work: an attempt to leave the machine is refused, recorded and reported."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "192.0.2.1"  # TEST-NET-1 (RFC 5737): never a real machine


@pytest.mark.parametrize("call", ["connect", "connect_ex"])
def test_connecting_out_is_refused_and_recorded(call: str, offline_log: Path) -> None:
    with socket.socket() as client, pytest.raises(OSError, match="leave the machine"):
        getattr(client, call)((OUTSIDE, 80))
    assert f"{call} to '{OUTSIDE}' port 80" in offline_log.read_text()
    offline_log.write_text("")


def test_looking_up_a_name_is_refused_and_recorded(offline_log: Path) -> None:
    with pytest.raises(OSError, match="leave the machine"):
        socket.create_connection(("weights.example", 443))
    assert "look-up of 'weights.example'" in offline_log.read_text()
    offline_log.write_text("")


def test_a_datagram_out_is_refused_and_recorded(offline_log: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client, pytest.raises(OSError, match="leave the machine"):
        client.sendto(b"x", (OUTSIDE, 53))
    assert "sendto" in offline_log.read_text()
    offline_log.write_text("")


@pytest.mark.parametrize(
    ("call", "host"),
    [
        (socket.gethostbyname, "weights.example"),
        (socket.gethostbyname_ex, "weights.example"),
        (socket.gethostbyaddr, OUTSIDE),
    ],
)
def test_older_look_ups_are_refused_and_recorded(call: Callable[[str], object], host: str, offline_log: Path) -> None:
    with pytest.raises(OSError, match="leave the machine"):
        call(host)
    assert f"look-up of '{host}'" in offline_log.read_text()
    offline_log.write_text("")


def test_a_message_out_is_refused_and_recorded(offline_log: Path) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client, pytest.raises(OSError, match="leave the machine"):
        client.sendmsg([b"x"], [], 0, (OUTSIDE, 53))
    assert f"sendmsg to '{OUTSIDE}' port 53" in offline_log.read_text()
    offline_log.write_text("")


def test_look_ups_and_messages_that_stay_are_let_through() -> None:
    assert socket.gethostbyname("localhost") == "127.0.0.1"
    assert socket.gethostbyname(OUTSIDE) == OUTSIDE
    left, right = socket.socketpair()
    with left, right:
        assert left.sendmsg((b"a", b"b")) == 2
        assert right.recv(2) == b"ab"


def test_child_processes_are_guarded_too(offline_log: Path) -> None:
    code = f"import socket; socket.create_connection(({OUTSIDE!r}, 80), timeout=1)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert child.returncode == 1
    assert "LeftTheMachineError" in child.stderr
    assert OUTSIDE in offline_log.read_text()
    offline_log.write_text("")


def recipe_of(target: str) -> str:
    """The last command of a target of the Makefile, for the Python that runs the tests."""
    command = ["make", "--dry-run", target, f"BIN={Path(sys.executable).parent}"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return planned.stdout.splitlines()[-1]


@pytest.mark.parametrize(("target", "more"), [("types", " workbench/features.py"), ("imports", "")])
def test_the_checks_of_make_test_ask_no_other_machine(target: str, more: str, offline_log: Path) -> None:
    """The Makefile's own command line, on one file where it takes one; the launchers are Python and so guarded."""
    done = subprocess.run(recipe_of(target) + more, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert offline_log.read_text() == ""


def make_test_with(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`make test` of this Makefile in `folder`, installed already, with `program` as pyright and all else silent."""
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "tests" / "offline", folder / "tests" / "offline")
    for name in ("python", "ruff", "lint-imports", "pyright"):
        text = f"#!{sys.executable}\n{program}" if name == "pyright" else "#!/bin/sh\n"
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    (folder / ".venv" / ".installed").touch()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DFW_", "PYTHONPATH", "MAKE"))}
    return subprocess.run(["make", "test"], cwd=folder, capture_output=True, text=True, timeout=60, env=clean)


def test_make_test_fails_when_a_step_of_it_asks_another_machine(tmp_path: Path) -> None:
    asks = "import socket\ntry:\n    socket.create_connection(('index.example', 443))\nexcept OSError:\n    pass\n"
    silent = make_test_with("", tmp_path / "silent")
    assert silent.returncode == 0, silent.stdout + silent.stderr
    assert "everything passed" in silent.stdout
    asking = make_test_with(asks, tmp_path / "asking")
    assert asking.returncode != 0
    assert "look-up of 'index.example'" in asking.stdout
    assert "everything passed" not in asking.stdout


def test_loopback_is_open(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)), socket.create_connection(("localhost", free_port)) as client:
        assert client.getpeername()[1] == free_port


@pytest.mark.browser
@pytest.mark.parametrize("host", ["assets.example", OUTSIDE])
def test_a_page_that_asks_for_another_machine_is_caught(host: str, page: Any, page_problems: list[str]) -> None:
    page.goto("about:blank")
    answer = page.evaluate(
        "url => fetch(url, {mode: 'no-cors'}).then(() => 'reached', error => String(error))", f"http://{host}/x"
    )
    assert "TypeError" in answer
    assert f"request leaves the machine: http://{host}/x" in page_problems
    page_problems.clear()


@pytest.mark.browser
def test_page_errors_are_caught(open_page: Callable[..., Any], page_problems: list[str]) -> None:
    page = open_page(viewport={"width": 400, "height": 300})
    page.set_content("<script>console.error('first'); setTimeout(() => { throw new Error('second') })</script>")
    page.wait_for_timeout(100)
    assert [text.split(":")[0] for text in page_problems] == ["console error", "uncaught error"]
    page_problems.clear()
