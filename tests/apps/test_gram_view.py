"""The Gram matrix in the page: its numbers are those of the analysis, its cells lead to patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apps.listing import run_id
from workbench.analysis.gram import gram_distance, gram_matrix
from workbench.runs import Run

pytestmark = pytest.mark.browser
GRAM = "document.querySelector('.dfw-gram')?.plate"


@pytest.fixture
def shown(page, served):
    page.goto(f"{served.url}/#run={run_id('finished')}&view=gram&step=60&probe=2&patch=1,3")
    page.wait_for_function(f"{GRAM}?.drawn?.base && {GRAM}.drawn.now.step === 60", timeout=60_000)
    return page


def test_the_numbers_are_those_of_the_analysis(shown, served):
    run = Run(served.folder / "finished")
    now, base = (run.probe_features(step).patches[1:2].flatten(1, 2) for step in (60, 0))
    theirs = gram_matrix(now)[0].numpy()
    n = len(theirs)
    ours = np.array(shown.evaluate(f"Array.from({GRAM}.drawn.gram)")).reshape(n, n)
    np.testing.assert_allclose(ours, theirs, atol=5e-3)  # features travel as int8
    said = shown.locator('[data-kind="distance"] figcaption').inner_text()
    distance = gram_distance(now, base).item()
    assert float(said.split(":")[1].split()[0]) == pytest.approx(distance, abs=2e-3)
    assert shown.evaluate(f"{GRAM}.view.frames.held.size") >= 2


def test_a_cell_shows_its_two_patches_and_a_click_chooses_one(shown):
    box = shown.locator('[data-kind="gram"] .dfw-gram-frame').bounding_box()
    shown.mouse.move(box["x"] + box["width"] * (2.5 / 16), box["y"] + box["height"] * (6.5 / 16))
    readout = shown.locator(".dfw-gram-readout")
    shown.wait_for_function("document.querySelector('.dfw-gram-readout').innerText.includes('row 2, col 3')")
    assert "row 1, col 3" in readout.inner_text()
    assert shown.evaluate(f"{GRAM}.cell.map((k) => {GRAM}.spot(k))") == [{"row": 1, "col": 2}, {"row": 0, "col": 2}]
    shown.mouse.click(box["x"] + box["width"] * (2.5 / 16), box["y"] + box["height"] * (6.5 / 16))
    shown.wait_for_function("location.hash.includes('patch=2%2C3')")
    photo = shown.locator('[data-kind="photo"] .dfw-gram-frame').bounding_box()
    shown.mouse.click(photo["x"] + photo["width"] * 0.9, photo["y"] + photo["height"] * 0.9)
    shown.wait_for_function("location.hash.includes('patch=4%2C4')")


def test_alike_patches_come_together(shown):
    """In that order neighbours in the anchor's matrix are more alike than in the order of the image."""
    neighbours = f"""(() => {{
        const {{ base, order }} = {GRAM}.drawn, n = order.length;
        let sum = 0;
        for (let k = 1; k < n; k++) sum += base[order[k - 1] * n + order[k]];
        return sum / (n - 1);
    }})()"""
    shown.locator(".dfw-gram-controls select").first.select_option("80")  # at step 0 there is no order to find
    shown.wait_for_function(f"{GRAM}.drawn.anchor?.step === 80")
    raster = shown.evaluate(neighbours)
    shown.locator(".dfw-gram-controls select").nth(1).select_option("alike")
    shown.wait_for_function(f"{GRAM}.drawn.order.some((place, k) => place !== k)")
    assert shown.evaluate(neighbours) > raster
    assert sorted(shown.evaluate(f"{GRAM}.drawn.order")) == list(range(16))


def test_large_grids_are_thinned_evenly(page, served):
    page.goto(f"{served.url}/#run={run_id('finished')}")
    page.wait_for_selector(".mon-run", timeout=60_000)
    script = """async ([rows, columns]) => {
        const { moduleUrls } = document.querySelector('.mon-host');
        return (await import(moduleUrls.renderer)).chosenPlaces(rows, columns);
    }"""
    assert page.evaluate(script, [4, 6]) == list(range(24))
    places = page.evaluate(script, [64, 40])
    assert 0 < len(places) <= 256 + 40
    rows, columns = {place // 40 for place in places}, {place % 40 for place in places}
    assert len(rows) * len(columns) == len(places)
    assert torch.tensor(sorted(rows)).diff().unique().numel() == 1


def test_words_in_chinese_and_the_key(shown):
    shown.get_by_role("button", name="Switch to Chinese").click()
    shown.get_by_text("第 60 步的 Gram 矩阵").wait_for()
    shown.keyboard.press("g")
    shown.wait_for_function("document.querySelector('.mon-page').dataset.view === 'pictures'")
