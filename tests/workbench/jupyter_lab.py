"""A real JupyterLab on the loopback interface, for tests and for `benchmarks/jupyter.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from playwright.sync_api import Page

TOKEN = "a-token-for-one-test"
ROOT = Path(__file__).resolve().parents[2]
WIDGETS = "@jupyter-widgets/jupyterlab-manager/plugin"
QUIET = ("check_for_updates_class=jupyterlab.NeverCheckForUpdate", "news_url=None", "extension_manager=readonly")
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false"},  # else a question lies over the notebook
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are there, too
    WIDGETS: {"saveState": True},  # what a notebook holds at most
}


class Lab:
    """An open server: `url` of the notebook, `folder` it lies in."""

    def __init__(self, base: str, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.notebook = folder / "show.ipynb"
        self.url = f"{base}/lab/tree/show.ipynb?token={TOKEN}"

    def api(self, path: str, method: str = "GET") -> bytes:
        """One request to the server's REST interface."""
        request = urllib.request.Request(
            f"{self.base}/api/{path}", method=method, headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def stop_kernels(self) -> None:
        for kernel in json.loads(self.api("kernels")):
            self.api(f"kernels/{kernel['id']}", "DELETE")

    def open(self, page: Page, cells: int) -> None:
        """Show the notebook and run its first `cells` cells."""
        page.goto(self.url)
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
        page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=60_000)  # it answers
        for cell in range(cells):
            _run_cell(page, cell)


@contextmanager
def jupyter_lab(folder: Path, port: int, cells: list[str]) -> Iterator[Lab]:
    """A JupyterLab of this environment, below `folder` (new), with a notebook `show.ipynb` of these code cells."""
    notebooks = folder / "notebooks"
    notebooks.mkdir(parents=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel)
    nbformat.write(made, notebooks / "show.ipynb")
    environment = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    for name, values in SETTINGS.items():
        path = folder / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **environment, "IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": paths}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ip=127.0.0.1"]
    command += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={notebooks}"]
    command += ["--allow-root", *(f"--LabApp.{setting}" for setting in QUIET)]
    with (folder / "lab.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=notebooks, env=environment, stdout=log, stderr=log)
        try:
            lab = Lab(f"http://127.0.0.1:{port}", notebooks)
            _wait_for(lab, server, folder / "lab.log")
            yield lab
        finally:
            server.terminate()
            server.wait(timeout=15)


def _wait_for(lab: Lab, server: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            lab.api("status")
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if server.poll() is not None:
                break
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _run_cell(page: Page, index: int) -> None:
    """Shift+Enter in a cell until its prompt shows that it started: JupyterLab drops keys while it still settles."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(index)
    for _ in range(10):
        cell.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(500)
        if (cell.locator(".jp-InputArea-prompt").text_content() or "").strip() != "[ ]:":
            return
    raise RuntimeError(f"cell {index} would not run")
