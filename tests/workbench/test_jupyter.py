"""The same renderer in JupyterLab cells: a real server and kernel, every widget shown, clicked and scrubbed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page

from workbench.widgets import RendererWidget

sys.path.insert(0, str(Path(__file__).parent))
from jupyter_lab import Lab, jupyter_lab

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """\
import json, pathlib, torch
from skimage import data
from workbench.backbones import SyntheticBackbone
from workbench.features import Features
from workbench.images import normalize
from workbench.views.steps import FeatureSteps
from workbench.widgets import CompareView, GramView, PatchView, RunView
crops = [torch.from_numpy(image[:256, :256].copy()).permute(2, 0, 1) for image in (data.astronaut(), data.chelsea())]
images = torch.stack(crops)
final = SyntheticBackbone(16, 32, 3).features(normalize(images))
coarse = SyntheticBackbone(32, 24, 2).features(normalize(images))
draw = torch.Generator().manual_seed(0)
noise = torch.randn(final.patches.shape, generator=draw)
film = {100 * k: final._replace(patches=final.patches * k / 5 + noise * (1 - k / 5)) for k in range(6)}
source = FeatureSteps(images, film, series={"dense/patch_knn": {step: step / 500 for step in film}})
def tell(name, widget, *traits):
    def write(change):
        state = {trait: getattr(widget, trait) for trait in traits}
        answer = widget.select() if hasattr(widget, "select") else None
        pathlib.Path(f"{name}.json").write_text(json.dumps({**state, "select": answer}))
    widget.observe(write, traits)
    return widget"""
CELLS = {
    "patches": "tell('patches', PatchView(images, features=final, theme='light'), 'selection')",
    "run": "tell('run', RunView(source, theme='light'), 'selection', 'step')",
    "gram": "tell('gram', GramView(source, theme='light', order='alike'), 'selection', 'step', 'anchor')",
    "compare": "tell('compare', CompareView(images, {'fine': final, 'coarse': coarse}, theme='light'), 'selection')",
}


@pytest.fixture
def lab(tmp_path: Path, free_port: int) -> Iterator[Lab]:
    with jupyter_lab(tmp_path / "lab", free_port, [SETUP, *CELLS.values(), "from pathlib import Path"]) as opened:
        yield opened


def told(page: Page, lab: Lab, name: str, wish: dict[str, Any]) -> dict[str, Any]:
    """What Python wrote of the widget's traits, once they hold `wish`."""
    path, end, last = lab.folder / f"{name}.json", time.monotonic() + 30, None
    while time.monotonic() < end:
        try:
            last = json.loads(path.read_text())
        except (OSError, ValueError):
            last = None
        if last and all(last[key] == value for key, value in wish.items()):
            return last
        page.wait_for_timeout(100)
    pytest.fail(f"{name}: Python was told {last}, not {wish}")


def click(page: Page, picture: Locator, across: float, down: float) -> None:
    """At a share of the picture's width and height."""
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * across, box["y"] + box["height"] * down)


def shot(widget: Locator, folder: Path, name: str) -> None:
    """Kept where $DFW_JUPYTER_SHOTS says, to look at."""
    widget.screenshot(path=str(Path(os.environ.get("DFW_JUPYTER_SHOTS") or folder) / f"jupyter-{name}.png"))


def test_every_widget_tells_python_what_is_chosen(page: Page, lab: Lab, page_problems: list[str]) -> None:
    lab.open(page, cells=len(CELLS) + 2)
    widgets = {name: page.locator(f".dfw[data-view='{view}']").nth(number) for name, view, number in WHERE}
    page.wait_for_function(READY, timeout=90_000)
    page.wait_for_timeout(300)  # the frame that draws the photos

    panel = widgets["patches"].locator(".dfw-probe").nth(1).locator(".dfw-photo").last
    click(page, panel, 4.5 / 16, 2.5 / 16)
    answer = told(page, lab, "patches", {"selection": {"image": 1, "row": 2, "col": 4}})["select"]
    shown = widgets["patches"].evaluate("(root) => root.view.matches[0].value")
    assert shown == pytest.approx(answer["best"][0]["similarity"], abs=1e-2)
    colours = panel.evaluate("""(photo) => {
      const canvas = photo.closest(".dfw-grid").querySelector(".dfw-layer");
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return new Set(new Uint32Array(pixels.buffer)).size;
    }""")
    assert colours > 500, "the photos and maps were drawn"

    click(page, widgets["run"].locator(".dfw-photo").last, 0.5 / 16, 15.5 / 16)
    page.keyboard.press("[")
    page.keyboard.press("[")
    told(page, lab, "run", {"step": 300, "selection": {"image": 1, "row": 15, "col": 0}})

    widgets["gram"].locator("select").filter(has_text="step 0").first.select_option("200")
    matrix = widgets["gram"].locator('[data-kind="gram"] canvas')
    widgets["gram"].locator(".dfw-track").press("Home")
    told(page, lab, "gram", {"anchor": 200, "step": 0})
    cell = 40
    click(page, matrix, 0.5, (cell + 0.5) / 256)
    place = widgets["gram"].evaluate(f"(root) => root.view.plate.spot(root.view.plate.drawn.order[{cell}])")
    told(page, lab, "gram", {"selection": {"image": 0, **place}})

    row = widgets["compare"].locator(".dfw-compared").nth(1)
    click(page, row.locator(".dfw-probe").first.locator(".dfw-photo").first, 1.5 / 8, 6.5 / 8)
    answer = told(page, lab, "compare", {"selection": {"source": 1, "image": 0, "row": 6, "col": 1}})["select"]
    assert answer["fine"] == {"image": 0, "row": 13, "col": 3}
    assert widgets["compare"].evaluate("(root) => root.view.views[0].pinned") == answer["fine"]

    for name, widget in widgets.items():
        shot(widget, lab.folder, name)
    saved_notebook_is_small(page, lab)
    what_was_loaded_outlives_the_kernel(page, lab, widgets)
    page.goto("about:blank")  # before the server goes, so that the page does not complain of it
    page_problems[:] = [problem for problem in page_problems if "kernels" not in problem]  # it was stopped on purpose
    assert page_problems == []


WHERE = (("patches", "patches", 0), ("run", "run", 0), ("gram", "run", 1), ("compare", "compare", 0))
READY = """() => {
  const views = [...document.querySelectorAll(".dfw")].map((root) => root.view);
  const ready = (view) => !view ? false : view.views ? view.views.length === 2 && view.views.every(ready)
    : (view.isGram ? view.plate.drawn?.base : view.matches) && view.stage.bitmaps.size === 2
    && view.frames.pending.size === 0;
  return views.length === 6 && views.every(ready);
}"""


def saved_notebook_is_small(page: Page, lab: Lab) -> None:
    """Features are pulled by the browser and are no part of a notebook, which also holds the widgets' state."""
    before = lab.notebook.stat().st_mtime_ns
    page.locator(".jp-Notebook .jp-CodeCell").first.locator(".cm-content").click()
    page.keyboard.press("Control+s")
    end = time.monotonic() + 20
    while lab.notebook.stat().st_mtime_ns == before and time.monotonic() < end:
        page.wait_for_timeout(100)
    size = lab.notebook.stat().st_size
    saved = lab.notebook.read_text(encoding="utf-8")
    assert "application/vnd.jupyter.widget-view+json" in saved
    assert "application/vnd.jupyter.widget-state+json" in saved
    assert size < 200_000
    print(f"the saved notebook with {len(CELLS)} widgets is {size / 1000:.0f} kB")


def what_was_loaded_outlives_the_kernel(page: Page, lab: Lab, widgets: dict[str, Locator]) -> None:
    lab.stop_kernels()
    page.wait_for_timeout(500)
    run = widgets["run"]
    run.locator(".dfw-track").press("Home")
    page.wait_for_timeout(400)
    assert run.evaluate("(root) => [root.view.step, root.view.frames.want(0).step]") == [0, 0]
    click(page, run.locator(".dfw-photo").last, 8.5 / 16, 8.5 / 16)
    assert run.evaluate("(root) => root.view.pinned") == {"image": 1, "row": 8, "col": 8}
    assert run.locator(".dfw-notice").is_hidden()


def test_every_widget_is_among_those_shown() -> None:
    shown = {cell.split("(")[1].split(", ")[1] for cell in CELLS.values()}
    assert shown == {widget.__name__ for widget in all_subclasses(RendererWidget)}


def all_subclasses(kind: type) -> set[type]:
    return {kind_ for direct in kind.__subclasses__() for kind_ in {direct, *all_subclasses(direct)}}
