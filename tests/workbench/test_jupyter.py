"""The same renderer in a JupyterLab cell: a real server and kernel, a click that reaches Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
TOKEN = "a-token-for-one-test"
ROOT = Path(__file__).resolve().parents[2]

SHOW = """\
import torch
from skimage import data
from workbench.backbones import SyntheticBackbone
from workbench.widgets import PatchView
crops = [torch.from_numpy(image[:288, :288].copy()).permute(2, 0, 1) for image in (data.astronaut(), data.chelsea())]
view = PatchView(torch.stack(crops), backbone=SyntheticBackbone(16, 32, 3), theme="light")
view"""

LISTEN = """\
import json, pathlib
def write(change):
    pathlib.Path("told.json").write_text(json.dumps(view.select()))
view.observe(write, "selection")
pathlib.Path("ready").touch()"""


@pytest.fixture
def lab(tmp_path: Path, free_port: int) -> Iterator[tuple[str, Path]]:
    """(URL of an open notebook, its folder) of a JupyterLab of this environment on the loopback interface."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = [nbformat.v4.new_code_cell(SHOW), nbformat.v4.new_code_cell(LISTEN)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "show.ipynb")
    places = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet_settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet_settings.parent.mkdir(parents=True)
    quiet_settings.write_text('{"fetchNews": "false"}', encoding="utf-8")  # else a question lies over the notebook
    places["JUPYTERLAB_SETTINGS_DIR"] = str(tmp_path / "settings")
    environment = {**os.environ, **places, "IPYTHONDIR": str(tmp_path / "ipython"), "PYTHONPATH": paths}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={free_port}", "--ip=127.0.0.1"]
    quiet = ["check_for_updates_class=jupyterlab.NeverCheckForUpdate", "news_url=None", "extension_manager=readonly"]
    command += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    command += ["--allow-root", *(f"--LabApp.{setting}" for setting in quiet)]
    with (tmp_path / "lab.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            base = f"http://127.0.0.1:{free_port}"
            wait_for(f"{base}/api?token={TOKEN}", server, tmp_path / "lab.log")
            yield f"{base}/lab/tree/show.ipynb?token={TOKEN}", folder
        finally:
            server.terminate()
            server.wait(timeout=15)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if server.poll() is not None:
                break
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-3000:]}")


def run_cell(page: Page, index: int) -> None:
    """Shift+Enter in a cell until its prompt shows that it started: JupyterLab drops keys while it still settles."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(index)
    for _ in range(10):
        cell.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(500)
        if (cell.locator(".jp-InputArea-prompt").text_content() or "").strip() != "[ ]:":
            return
    pytest.fail(f"cell {index} would not run")


def test_a_click_in_a_cell_reaches_python(page: Page, lab: tuple[str, Path], page_problems: list[str]) -> None:
    url, folder = lab
    page.goto(url)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=60_000)  # the kernel answers
    for cell in range(2):
        run_cell(page, cell)
    ready = "(view => view?.matches && view.stage.bitmaps.size === 2)(document.querySelector('.dfw')?.view)"
    page.wait_for_function(ready, timeout=60_000)
    page.wait_for_timeout(200)  # the frame that draws the photos
    colours = page.evaluate("""() => {
      const canvas = document.querySelector(".dfw-grid .dfw-layer");
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return new Set(new Uint32Array(pixels.buffer)).size;
    }""")
    assert colours > 500, "the photos and maps were drawn"
    deadline = time.monotonic() + 30
    while not (folder / "ready").exists() and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    panel = page.locator(".dfw-probe").nth(1).locator(".dfw-photo").last
    box = panel.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 4.5 / 18, box["y"] + box["height"] * 2.5 / 18)
    while not (folder / "told.json").exists() and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    told = json.loads((folder / "told.json").read_text())
    assert (told["image"], told["row"], told["col"]) == (1, 2, 4)
    assert len(told["best"]) == 2
    shown = page.evaluate("document.querySelector('.dfw').view.matches[0].value")
    assert shown == pytest.approx(told["best"][0]["similarity"], abs=1e-2)
    page.screenshot(path=os.environ.get("DFW_JUPYTER_SHOT", str(folder / "shot.png")))
    page.goto("about:blank")  # before the server goes, so that the page does not complain of it
    assert page_problems == []
