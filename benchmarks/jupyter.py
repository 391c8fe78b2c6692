"""Does hovering keep up inside JupyterLab, and what do a first look and a saved notebook cost? Chromium, headless.

A real server and kernel show a `PatchView` of one picture in a notebook: 64 x 64 patches of 384 channels, and 128 x 128
of 768. Prints the figures of `benchmarks/hover.py` with their targets, the seconds from running the cell until the maps
are drawn (features are made in a cell before), and the size of the saved notebook with the state of its widgets.
The server is the one that the tests drive, `tests/workbench/jupyter_lab.py`.

    python benchmarks/jupyter.py [--moves 150] [--mode both|similarity|…] [--chromium PROGRAM]
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import tyro
from hover import GRIDS, chromium_page, hover, report_hover
from playwright.sync_api import Locator, Page

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/workbench"))
from jupyter_lab import Lab, jupyter_lab  # pyright: ignore[reportMissingImports]

LARGEST_NOTEBOOK = 200_000  # bytes
SETUP = """\
import sys; sys.path.append({here!r})
import torch
from hover import smooth_features
from workbench.widgets import PatchView
draw = torch.Generator().manual_seed(0)
image = torch.rand(1, 3, 512, 512, generator=draw)
features = {{grid: smooth_features(1, *grid, draw) for grid in {grids}}}"""
RAN = """() => document.querySelector(".jp-Notebook .jp-CodeCell .jp-InputArea-prompt").textContent.includes("[1]")"""
SHOWN = """(number) => {
  const view = document.querySelectorAll(".dfw")[number]?.view;
  return Boolean(view?.matches && view.stage.bitmaps.size && view.basis);
}"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def shown(page: Page, cell: int, number: int) -> tuple[Locator, float]:
    """Run a code cell: the view number `number` of the page, and seconds until it has drawn its maps."""
    page.locator(".jp-Notebook .jp-CodeCell").nth(cell).locator(".cm-content").click()
    start = time.perf_counter()
    page.keyboard.press("Shift+Enter")
    page.wait_for_function(SHOWN, arg=number, timeout=120_000, polling=20)
    return page.locator(".dfw").nth(number), time.perf_counter() - start


def saved_bytes(page: Page, lab: Lab) -> int:
    before = lab.notebook.stat().st_mtime_ns
    page.locator(".jp-Notebook .jp-CodeCell").first.locator(".cm-content").click()
    page.keyboard.press("Control+s")
    end = time.monotonic() + 30
    while lab.notebook.stat().st_mtime_ns == before and time.monotonic() < end:
        page.wait_for_timeout(100)
    if "widget-state+json" not in lab.notebook.read_text(encoding="utf-8"):
        raise RuntimeError("the notebook was not saved with the state of its widgets")
    return lab.notebook.stat().st_size


def main(
    moves: int = 150,
    mode: Literal["both", "pca", "similarity", "image"] = "both",
    chromium: str | None = None,
) -> None:
    setup = SETUP.format(here=str(Path(__file__).resolve().parent), grids=list(GRIDS))
    cells = [f"PatchView(image, features=features[{grid}], mode={mode!r})" for grid in GRIDS]
    kept, waits = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        chromium_page(chromium) as page,
        jupyter_lab(Path(folder) / "lab", free_port(), [setup, *cells]) as lab,
    ):
        lab.open(page, cells=1)
        page.wait_for_function(RAN, timeout=120_000)
        for number, ((side, channels), kernel) in enumerate(GRIDS.items()):
            root, seconds = shown(page, number + 1, number)
            waits.append(f"{seconds:.1f} s")
            page.wait_for_timeout(500)
            kept += report_hover(f"{side} x {side} x {channels}", hover(root, moves), kernel)
        size = saved_bytes(page, lab)
        page.goto("about:blank")  # before the server goes
    print(f"until the maps are drawn: {', '.join(waits)} (the first fetches the renderer)")
    kept.append(size <= LARGEST_NOTEBOOK)
    verdict = "kept" if kept[-1] else "MISSED"
    print(f"saved notebook: {size / 1000:.0f} kB, target {LARGEST_NOTEBOOK / 1000:.0f} kB: {verdict}")
    raise SystemExit(0 if all(kept) else 1)


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
