"""Does hovering and scrubbing keep up with a screen at 60 Hz? Chromium, headless, software rendering.

Prints medians with their targets. Hovering over one picture, of 64 x 64 patches of 384 channels and of 128 x 128 of
768: pointer event to the first task after the frame that drew it, the similarity kernel alone, and the gap between
frames while the pointer is over another patch in each. Then the gap while 100 preloaded steps are scrubbed, and with
nothing to draw: what this machine gives at best just now.

    python benchmarks/hover.py [--chromium PROGRAM] [--moves 150] [--dtype int8|float16]
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Locator, Page, sync_playwright

from workbench.features import Features
from workbench.views.encode import Transport
from workbench.views.page import standalone_page, without_policy
from workbench.views.steps import FeatureSteps

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip
TARGETS = {"event to paint": 20.0, "frame gap": 20.0, "idle gap": 17.0}  # milliseconds, medians
GRIDS = {(64, 384): 1.0, (128, 768): 4.0}  # (patches a side, channels): most milliseconds of the kernel


def smooth_features(images: int, grid: int, channels: int, generator: torch.Generator) -> Features:
    """Features [images, grid, grid, channels] that vary smoothly, so that maps are worth looking at."""
    coarse = torch.randn(images, channels, 6, 6, generator=generator)
    patches = torch.nn.functional.interpolate(coarse, (grid, grid), mode="bicubic").permute(0, 2, 3, 1).contiguous()
    return Features(patches, patches.mean(dim=(1, 2)), patches.new_zeros(images, 0, channels))


@contextmanager
def chromium_page(program: str | None = None) -> Iterator[Page]:
    """A page of 1440 x 900 pixels in a headless Chromium; says before and after how busy the machine is."""
    program = program or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors before", flush=True)
        yield browser.new_page(viewport={"width": 1440, "height": 900})
        print(f"load average {os.getloadavg()[0]:.1f} after")
        browser.close()


def open_view(page: Page, html: str, steps: int) -> float:
    """Load a standalone page and wait until every step is in memory; returns the seconds that took."""
    with tempfile.NamedTemporaryFile("w", suffix=".html", delete=False, encoding="utf-8") as file:
        file.write(without_policy(html))
    start = time.perf_counter()
    page.goto(f"file://{file.name}")
    page.wait_for_function(f"document.querySelector('.dfw')?.view.frames.held.size === {steps}", timeout=60_000)
    seconds = time.perf_counter() - start
    page.wait_for_timeout(500)
    Path(file.name).unlink()
    return seconds


def hover(root: Locator, moves: int) -> dict[str, list[float]]:
    """Milliseconds while the pointer is over the first picture of a view (its element `.dfw`, in any host)."""
    page, photo = root.page, root.locator(".dfw-photo").first
    root.evaluate("(root) => { window.seen = []; root.view.onpaint = ({ paint }) => seen.push(paint); }")
    photo.scroll_into_view_if_needed()
    box = photo.bounding_box()
    assert box is not None
    for move in range(moves):
        x, y = (move * 37 % 101) / 101, (move * 61 % 103) / 103
        page.mouse.move(box["x"] + 2 + x * (box["width"] - 4), box["y"] + 2 + y * (box["height"] - 4))
        page.wait_for_timeout(4)
    page.wait_for_timeout(200)
    paints: list[float] = page.evaluate("seen")
    page.mouse.move(0, 0)
    gaps = changes(root.evaluate(_HOVER))
    return {"event to paint": paints, "kernel": root.evaluate(_KERNEL), "frame gap": gaps}


_KERNEL = """(root) => {
  const { kernel } = root.view, { n } = kernel.frame, times = [];
  for (let block = 0; block < 40; block++) { // the browser's clock is coarse: ten calls at a time
    const start = performance.now();
    for (let i = 0; i < 10; i++) kernel.cosines((block * 97 + i * 13) % n);
    times.push((performance.now() - start) / 10);
  }
  return times;
}"""
# Both are driven in the page, once a frame: the test driver is slower than a hand.
_HOVER = """async (root) => {
  const photo = root.querySelector(".dfw-photo"), box = photo.getBoundingClientRect(), drawn = [];
  for (let move = 0; move < 200; move++) {
    const clientX = box.left + (box.width * ((move * 37) % 101)) / 101;
    const clientY = box.top + (box.height * ((move * 61) % 103)) / 103;
    photo.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY }));
    const time = await new Promise(requestAnimationFrame);
    if (seen.length !== drawn.at(-1)?.[1]) drawn.push([time, seen.length]); // another frame was drawn
  }
  return drawn;
}"""
_DRAG = """async ({ left, width, y, drag }) => {
  const { view } = document.querySelector(".dfw"), track = document.querySelector(".dfw-track"), drawn = [];
  for (let move = 0; move < 200; move++) {
    const clientX = left + (width * move) / 199;
    if (drag) track.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY: y, buttons: 1 }));
    drawn.push([await new Promise(requestAnimationFrame), drag ? view.step : move]);
  }
  return drawn;
}"""


def changes(drawn: list[tuple[float, Any]]) -> list[float]:
    """Milliseconds between frames that drew something else, of (time, what was drawn)."""
    return [after[0] - before[0] for before, after in itertools.pairwise(drawn) if before[1] != after[1]]


def hovered_page(page: Page, side: int, channels: int, dtype: Transport, generator: torch.Generator) -> Locator:
    """The view of one picture of side x side patches in a standalone page."""
    features = smooth_features(1, side, channels, generator)
    source = FeatureSteps(torch.rand(1, 3, 512, 512, generator=generator), {0: features})
    open_view(page, standalone_page(source, view="patches", dtype=dtype, mode="similarity"), steps=1)
    return page.locator(".dfw")


def scrub(page: Page, generator: torch.Generator, steps: int = 100) -> dict[str, list[float]]:
    """Milliseconds between frames that drew another step, while the timeline is dragged over `steps` steps.

    "idle gap" is the same with nothing to draw.
    """
    features = {10 * step: smooth_features(8, 14, 192, generator) for step in range(steps)}
    curve = {step: 0.5 + 0.001 * step for step in features}
    source = FeatureSteps(torch.rand(8, 3, 224, 224, generator=generator), features, series={"dense/patch_knn": curve})
    open_view(page, standalone_page(source), steps)
    box = page.locator(".dfw-track").bounding_box()
    assert box is not None
    where = {"left": box["x"] + 54, "width": box["width"] - 108, "y": box["y"] + 60}
    page.mouse.move(where["left"], where["y"])
    page.mouse.down()
    pace = {"idle gap": False, "frame gap": True}
    gaps = {name: changes(page.evaluate(_DRAG, {**where, "drag": drag})) for name, drag in pace.items()}
    page.mouse.up()
    return gaps


def report(what: str, values: list[float], target: float) -> bool:
    """Print a median beside its target; whether it is kept."""
    median = statistics.median(values)
    p95 = sorted(values)[int(0.95 * (len(values) - 1))]
    print(f"{what:>38s}: median {median:6.2f} ms, 95 % {p95:6.2f} ms, {len(values):4d} samples, "
          f"target {target:.0f} ms: {'kept' if median <= target else 'MISSED'}", flush=True)  # fmt: skip
    return median <= target


def report_hover(where: str, figures: dict[str, list[float]], kernel: float) -> list[bool]:
    """The figures of `hover`, with the kernel's target in milliseconds."""
    return [report(f"{where}, {name}", values, {**TARGETS, "kernel": kernel}[name]) for name, values in figures.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", metavar="PROGRAM", help="(default: the first found of the usual names)")
    parser.add_argument("--moves", type=int, default=150)
    parser.add_argument("--dtype", choices=["int8", "float16"], default="int8")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    kept = []
    with chromium_page(options.chromium) as page:
        for (side, channels), kernel in GRIDS.items():
            root = hovered_page(page, side, channels, options.dtype, generator)
            kept += report_hover(f"{side} x {side} x {channels}", hover(root, options.moves), kernel)
        kept += [report(f"scrubbing, {name}", gaps, TARGETS[name]) for name, gaps in scrub(page, generator).items()]
    raise SystemExit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
