"""One real server for all tests of the pages, over a folder of runs that tests may add to."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import uvicorn

sys.path.insert(0, str(Path(__file__).parent))
import made_up_findings
import made_up_run

from apps import findings
from apps.__main__ import bind
from apps.listing import run_id
from apps.server import make_server_app, private_folders

START_SECONDS = 120


class Served(NamedTuple):
    url: str
    folder: Path

    def get(self, path: str, **options) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **options)

    def run(self, name: str, rest: str = "/summary", **options) -> httpx.Response:
        """GET a route of the run in the sub-folder `name`."""
        return self.get(f"/api/runs/{run_id(name)}{rest}", **options)


@contextlib.contextmanager
def serving(folder: Path, token: str | None = None, *, recorded: bool = False) -> Iterator[Served]:
    closing = threading.Event()
    app, starter = make_server_app(folder, host="127.0.0.1", token=token, closing=closing.is_set, recorded=recorded)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    bound = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while starter.app is None:
        assert starter.failed is None, starter.failed
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    yield Served(f"http://127.0.0.1:{bound.getsockname()[1]}", folder)
    closing.set()
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server over two runs: "finished", small and complete, and "future", of another format version."""
    folder = tmp_path_factory.mktemp("runs")
    writer, images = made_up_run.create(folder / "finished", side=64, steps=80)
    made_up_run.grow(writer, images, 0, 80)
    writer.event(80, "info", "finished", "all steps done")
    writer.close()
    (folder / "future").mkdir()
    (folder / "future" / "run.json").write_text('{"format_version": 9}')
    with pytest.MonkeyPatch.context() as patch, private_folders(), serving(folder) as started:
        patch.setattr(findings, "examine", made_up_findings.examine)
        yield started
