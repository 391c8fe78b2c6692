"""`python -m apps`: mistakes are one line and exit code 2; the address is printed at once."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from apps.__main__ import address, main


@pytest.fixture
def busy_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--runs", "FILE"], "is a file; give the folder"),
        (["--runs", "FOLDER", "--port", "BUSY"], "is in use; give another one"),
        (["--runs", "FOLDER", "--host", "0.0.0.0"], "add a secret, for example --token"),
        (["--runs", "FOLDER", "--host", "192.0.2.7", "--token", "x"], "cannot serve at 192.0.2.7"),
        (["--runs", "FOLDER", "--token", "schlüssel"], "printable ASCII"),
        (["--runs", "FOLDER", "--token", "a\nb"], "printable ASCII"),
    ],
)
def test_mistakes_are_one_line_with_the_next_step(tmp_path, capsys, busy_port, arguments, words):
    (tmp_path / "file").write_text("")
    known = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path), "BUSY": str(busy_port)}
    assert main([known.get(argument, argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_the_printed_link_carries_any_token():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        link = address("127.0.0.1", bound, "a&b=c #+%")
    assert parse_qs(urlsplit(link).query) == {"token": ["a&b=c #+%"]}


@pytest.mark.parametrize("line", ["--runs", "--runs . --port x", "--runs . --port 70000", "--runs . --sharing"])
def test_unknown_options_and_values_end_with_2(capsys, line):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_address_answers_at_once_and_sigterm_ends_it(tmp_path):
    command = [sys.executable, "-m", "apps", "--runs", str(tmp_path / "not yet there"), "--port", "free"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as server:
        try:
            found = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())
            assert found
            answer = httpx.get(found.group(), timeout=30)
            assert answer.status_code == 200
            assert "retry-after" in answer.headers
            assert "Starting the workbench" in answer.text
            assert httpx.get(found.group() + "api/runs", timeout=30).json()["error"] == "starting"
            assert httpx.get(found.group(), headers={"host": "evil.example"}, timeout=30).status_code == 403
        finally:
            server.send_signal(signal.SIGTERM)
            stopped = time.monotonic()
            rest = server.communicate(timeout=60)[0]
        assert rest == ""
        assert server.returncode == 0
        assert time.monotonic() - stopped < 4
