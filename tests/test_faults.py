"""What people meet: each fault ends in one clear message that names the next step, and nothing is lost."""

from __future__ import annotations

import importlib
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "training"))
from tiny import OVERRIDES, tiny_config  # noqa: E402

from training.launch import launch  # noqa: E402
from workbench.runs import Run  # noqa: E402

PRETRAIN = ["training", "pretrain"]
RESUME = [*PRETRAIN, "cpu_demo", *OVERRIDES, "--loop.steps", "4", "--run", "{tmp}/runs/torn"]

FAULTS = {
    "a wrong recipe": (
        [*PRETRAIN, "cpu_dmo"],
        2,
        "unknown recipe 'cpu_dmo' for phase pretrain; did you mean 'cpu_demo'?",
    ),
    "an unknown field": ([*PRETRAIN, "cpu_demo", "--loop.stpes", "4"], 2, "--loop.steps"),
    "a missing folder": ([*PRETRAIN, "cpu_folder", "--data.path", "{tmp}/nowhere"], 2, "{tmp}/nowhere"),
    "a folder with no images": ([*PRETRAIN, "cpu_folder", "--data.path", "{tmp}/text"], 2, "no image"),
    "an unwritable output": ([*PRETRAIN, "cpu_demo", *OVERRIDES, "--run", "/proc/run"], 2, "Choose a writable place"),
    "an output that is a file": ([*PRETRAIN, "cpu_demo", "--run", "{tmp}/text/notes.txt"], 2, "notes.txt"),
    "a busy port": (["apps", "--runs", "{tmp}/runs", "--port", "{port}"], 2, "{port} is in use; give another one"),
    "a missing folder of runs": (["workbench", "runs", "{tmp}/nowhere"], 2, "no folder of runs at {tmp}/nowhere"),
    "a damaged line, listed": (["workbench", "runs", "{tmp}/runs"], 0, "metrics.jsonl has 1 damaged line, left out"),
    "a torn line, listed": (
        ["workbench", "runs", "{tmp}/runs"],
        0,
        "metrics.jsonl ends in half a record of 14 bytes, which a resume cuts",
    ),
    "a torn line, resumed": (RESUME, 0, "warning: metrics.jsonl: the last 14 bytes were half a record of a killed"),
}
"""What it is -> the words after `python -m`, the exit code, and what must be said."""


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "torn"
    assert launch(tiny_config(steps=4), folder) == 0
    return folder


@pytest.fixture
def surroundings(finished: Path, tmp_path: Path) -> Path:
    """A folder with text in it, and runs/torn: finished, then a line that is no record and half of another."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("precious")
    shutil.copytree(finished, tmp_path / "runs" / "torn")
    with (tmp_path / "runs" / "torn" / "metrics.jsonl").open("ab") as file:
        file.write(b'not json\n{"step": 4, "l')
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_in_one_clear_message(
    fault: str,
    surroundings: Path,
    busy_port: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def filled(text: str) -> str:
        return text.replace("{tmp}", str(surroundings)).replace("{port}", str(busy_port))

    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(surroundings)
    (module, *words), code, says = FAULTS[fault]
    before = kept(surroundings)
    try:
        ended = importlib.import_module(f"{module}.__main__").main([filled(word) for word in words])
    except SystemExit as leaving:
        ended = leaving.code
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert ended == code, said
    assert filled(says) in said
    assert "Traceback" not in said
    assert kept(surroundings) == before, "nothing is lost and nothing is added"


def kept(folder: Path) -> dict[str, object]:
    """All that counts in `folder`: every record, all weights and other files."""
    run = Run(folder / "runs" / "torn")
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jsonl" and path.name != ".lock"]
    return {
        "files": {str(path.relative_to(folder)): path.read_bytes() for path in files},
        "records": [run.metrics()[0], run.evaluations()[0]],
    }


def test_a_torn_line_is_an_event_of_the_resumed_run(surroundings: Path) -> None:
    folder = surroundings / "runs" / "torn"
    assert launch(tiny_config(steps=4), folder) == 0
    kinds = [event["kind"] for event in Run(folder).events()[0]]
    assert kinds.index("torn-line") < kinds.index("resumed")
    assert kinds.count("torn-line") == 1
