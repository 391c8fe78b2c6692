"""`make demo` as a person meets it: it trains and serves, Ctrl-C saves, again goes on, a failure is told."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Small and long enough that it is still training when Ctrl-C comes.
OVERRIDES = ["--batch.batch_size", "4", "--batch.workers", "0", "--loop.log_every", "1", "--loop.steps", "100000"]
OVERRIDES += ["--loop.probe_every", "100000", "--loop.evaluate_every", "100000", "--loop.save_every", "100000"]
OVERRIDES += ["--evaluation.suite.train_scenes", "4", "--evaluation.suite.test_scenes", "4"]
OVERRIDES += ["--evaluation.suite.bank", "40", "--evaluation.suite.queries", "8", "--evaluation.probes", "2"]


def start_demo(run: Path, port: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "demo.py", "--run", str(run), "--port", str(port), "--no-open", *more]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(what: Callable[[], bool], demo: subprocess.Popen[str], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert demo.poll() is None, demo.communicate()[0]
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


def answer(port: int) -> str:
    """The page's text, empty while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
            return response.read().decode()
    except OSError:
        return ""


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path, free_port: int) -> None:
    run = tmp_path / "runs" / "demo"
    demo = start_demo(run, free_port, "--", *OVERRIDES)
    wait_for(lambda: lines(run / "metrics.jsonl") >= 3, demo)
    wait_for(lambda: "Dense Feature Workbench" in answer(free_port), demo)
    demo.send_signal(signal.SIGINT)
    output = demo.communicate(timeout=60)[0]
    assert demo.returncode == 0, output
    assert f"http://127.0.0.1:{free_port}/" in output
    assert re.search(r"its state of step \d+ is saved\. The same command goes on", output)
    assert not answer(free_port), "the server must end with the demo"
    reached = lines(run / "metrics.jsonl")

    demo = start_demo(run, free_port, "--", *OVERRIDES)
    wait_for(lambda: lines(run / "metrics.jsonl") > reached, demo)
    demo.terminate()
    output = demo.communicate(timeout=60)[0]
    assert demo.returncode == 0, output
    assert '"kind": "resumed"' in (run / "events.jsonl").read_text()


@pytest.mark.slow
def test_a_failing_trainer_is_told_and_ends_the_demo(tmp_path: Path, free_port: int) -> None:
    demo = start_demo(tmp_path / "runs" / "demo", free_port, "--recipe", "cpu_demmo")
    output = demo.communicate(timeout=120)[0]
    assert demo.returncode == 1
    assert "unknown recipe 'cpu_demmo'" in output
    assert "cpu_demo" in output.partition("unknown recipe 'cpu_demmo'")[2]
    assert "Traceback" not in output
    assert not answer(free_port)


@pytest.fixture
def kept_signals() -> Iterator[None]:
    """The signal handlers of this process, put back at the end."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def load_demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo", ROOT / "demo.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("code", [75, -signal.SIGTERM])
@pytest.mark.parametrize(
    ("events", "says"),
    [
        (None, "stopped before there was anything to save. The same command starts it."),
        (b'{"step": 0, "kind": "started"}\n{"kind": "saved"}\n[1]\n{"step": 3, "kind": "sav', "before there was"),
        (b'{"step": 4, "kind": "saved"}\nnot json\n{"step": 6, "kind": "saved"}\n', "its state of step 6 is saved"),
    ],
)
def test_a_stop_says_whether_anything_was_saved(
    code: int, events: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if events is not None:
        (tmp_path / "events.jsonl").write_bytes(events)
    assert load_demo().explain_trainer_exit(code, tmp_path, tmp_path / "demo.log") == 0
    assert says in capsys.readouterr().out


def test_both_processes_end_when_nothing_can_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_signals: None
) -> None:
    demo, started = load_demo(), []

    def sleeper(*_: object) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(["sleep", "60"], text=True))
        return started[-1]

    monkeypatch.setattr(demo, "start_trainer", sleeper)
    monkeypatch.setattr(demo, "start_server", sleeper)
    log = tmp_path / "demo.log"
    with log.open("w") as written:
        pass
    with pytest.raises(ValueError, match="closed file"):
        demo.run_both(demo.parse_arguments([]), 1, log, written, written)
    assert [process.poll() for process in started] == [-signal.SIGTERM, -signal.SIGTERM]


def test_a_demo_under_nohup_outlives_its_terminal(kept_signals: None) -> None:
    demo = load_demo()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    demo.listen_for(demo.raise_stop)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == demo.raise_stop
