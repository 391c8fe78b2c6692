"""Pictures of the monitor page to look at: `python tests/apps/screenshots.py OUT` writes PNGs of 1440 x 900 pixels.

Runs are made up (tests/apps/made_up_run.py); give `--runs FOLDER` to show your own. With `--readme` only the pictures
of the README are taken, at a patch chosen for it. Needs the system's Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import made_up_run
from conftest import Served, serving
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Browser, Page, sync_playwright

from apps.listing import recorded_id
from apps.server import private_folders

SHOTS: dict[str, tuple[dict, str, str]] = {
    "pictures-light-en": ({}, "", ".dfw-pic canvas"),
    "pictures-dark-en": ({"color_scheme": "dark"}, "", ".dfw-pic canvas"),
    "pictures-light-zh": ({"locale": "zh-CN"}, "", ".dfw-pic canvas"),
    "curves-light-en": ({}, "#view=curves", ".mon-card canvas"),
    "curves-dark-zh": ({"locale": "zh-CN", "color_scheme": "dark"}, "#view=curves", ".mon-card canvas"),
    "pictures-small": ({"viewport": {"width": 1024, "height": 700}}, "", ".dfw-pic canvas"),
}

README: dict[str, tuple[dict, str, str]] = {
    "monitor-light": SHOTS["pictures-light-en"],
    "monitor-dark": SHOTS["pictures-dark-en"],
    "monitor-zh": SHOTS["pictures-light-zh"],
    "curves": SHOTS["curves-light-en"],
}
RECORDED: dict[str, tuple[str, str, str]] = {
    "monitor-compare": ("lab-cured", "&view=compare", ".mon-hero canvas"),
    "monitor-gram": ("lab-stressed", "&view=gram", ".dfw-gram canvas"),
    "monitor-diagnose": ("lab-stressed", "", ".dfw-pic canvas"),
    "monitor-peak": ("lab-stressed", "&view=curves", ".mon-advice"),
}
"""Pictures of the runs that ship with the workbench: name -> run, what the address says more, what to wait for."""
README_PATCH = {"image": 0, "row": 6, "col": 8}


VIEW = "document.querySelector('.dfw').view"
BARE = ".dfw-grid .dfw-value { display: none; } .dfw .dfw-chosen figcaption b { color: var(--dfw-ink); }"
BARE_LAYERS = (
    "for (const layer of Object.values(this.layers)) layer.draw(false, () => [], this.view.grid, this.bitmaps);"
)


def make_runs(folder: Path) -> None:
    """A finished run, a stopped one, a crashed one and one of another format version."""
    for name, last, ending in (
        ("koleo-off", 120, None),
        ("tau 0.04, seed 1", 240, "stopped"),
        ("demo", 600, "finished"),
    ):
        writer, images = made_up_run.create(folder / name)
        made_up_run.grow(writer, images, 0, last)
        if last > 420:
            writer.event(420, "warn", "dense-peak", "patch k-NN is at its best so far")
        if ending:
            writer.event(last, "info", ending, f"{ending} at step {last}")
        writer.close()
    (folder / "future").mkdir()
    (folder / "future" / "run.json").write_text('{"format_version": 9}')


def take(
    browser: Browser, out: Path, name: str, address: str, wait: str, options: dict, then: Callable | None = None
) -> None:
    page: Page = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options}).new_page()
    page.goto(address)
    page.locator(wait).first.wait_for(state="visible", timeout=60_000)
    if then:
        then(page)
    page.wait_for_timeout(1500)
    page.screenshot(path=out / f"{name}.png")
    page.context.close()


def take_all(browser: Browser, out: Path, served: Served, empty: Served) -> None:
    for name, (options, rest, wait) in SHOTS.items():
        take(browser, out, name, f"{served.url}/{rest}", wait, options)
    take(browser, out, "keys", served.url, ".dfw-pic canvas", {}, lambda page: page.keyboard.press("?"))
    choose = lambda page: page.get_by_text("future").click()  # noqa: E731
    take(browser, out, "trouble", served.url, ".mon-run", {}, choose)
    take(browser, out, "empty", empty.url, ".mon-empty-card", {})


def settle(page: Page) -> None:
    """Every step in memory, and the patch of the README selected."""
    known = "document.querySelector('.dfw')?.view?.summary"
    page.wait_for_function(f"{known} && {VIEW}.frames.held.size === {known}.steps.length", timeout=60_000)
    page.evaluate(f"{VIEW}.pin({json.dumps(README_PATCH)})")


def diagnose(page: Page) -> None:
    settle(page)
    page.keyboard.press("h")
    page.locator(".mon-verdict").last.wait_for()


def take_readme(browser: Browser, out: Path, served: Served) -> None:
    """The documents' pictures of the page, and the PCA maps at the first and the last step beside each other."""
    for name, (options, rest, wait) in README.items():
        take(browser, out, name, f"{served.url}/{rest}", wait, options, settle)
    for name, (run, rest, wait) in RECORDED.items():
        then = diagnose if name == "monitor-diagnose" else settle
        take(browser, out, name, f"{served.url}/#run={recorded_id(run)}{rest}", wait, {}, then)
    for name in (*README, *RECORDED):
        picture = out / f"{name}.png"
        Image.open(picture).convert("RGB").save(picture, optimize=True)
    take_ends(browser, out, served)


def take_ends(browser: Browser, out: Path, served: Served) -> None:
    """The PCA maps at the first and the last step, titled, beside each other; without the marks of a selection."""
    page: Page = browser.new_context(viewport={"width": 1024, "height": 800}).new_page()
    page.goto(served.url)
    page.wait_for_function("document.querySelector('.dfw')?.view?.matches", timeout=60_000)
    page.keyboard.press("m")
    page.add_style_tag(content=BARE)
    page.evaluate(f"() => {{ {VIEW}.stage.drawLayers = function () {{ {BARE_LAYERS} }}; }}")
    titles, ends = [], []
    for key in ("Home", "End"):
        page.keyboard.press(key)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        titles.append(page.evaluate(f"`step ${{{VIEW}.step.toLocaleString('en-US')}}`"))
        ends.append(Image.open(io.BytesIO(page.locator(".dfw-grid").screenshot())).convert("RGB"))
    side_by_side(titles, ends).save(out / "pca-before-after.png", optimize=True)
    page.context.close()


def side_by_side(titles: list[str], pictures: list[Image.Image], pad: int = 32, head: int = 52) -> Image.Image:
    """Pictures of one size in a row, a title over each, with `pad` pixels between and around them."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (pad + len(pictures) * (width + pad), head + height + pad), "#f8fafc")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=24)
    for place, (title, picture) in enumerate(zip(titles, pictures, strict=True)):
        left = pad + place * (width + pad)
        sheet.paste(picture, (left, head))
        pen.text((left, head - 14), title, fill="#0f172a", font=font, anchor="ls")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--readme", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, private_folders():
        made_up = Path(folder) / "runs"
        made_up.mkdir()
        if options.runs is None:
            make_runs(made_up)
        with (
            sync_playwright() as playwright,
            serving(options.runs or made_up, recorded=options.readme) as served,
            serving(Path(folder) / "none") as empty,
        ):
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
            if options.readme:
                take_readme(browser, options.out, served)
            else:
                take_all(browser, options.out, served, empty)
            browser.close()


if __name__ == "__main__":
    main()
