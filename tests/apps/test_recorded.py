"""The runs that ship with the workbench: whole, small, first in sight where there is no other run, never in the way."""

from __future__ import annotations

import json
import re

import made_up_run
import pytest
from conftest import serving

from apps.listing import Listing, recorded_id, run_id
from apps.server import private_folders
from workbench.loading import load_backbone
from workbench.runs import RECORDED_RUNS, Run, scan_runs
from workbench.views.encode import encode_features

LARGEST = 15 * 2**20
NAMES = ["lab-healthy", "lab-stressed", "lab-cured"]


@pytest.fixture(scope="module")
def recorded_only(tmp_path_factory):
    with private_folders(), serving(tmp_path_factory.mktemp("none") / "runs", recorded=True) as started:
        yield started


def test_they_are_whole_and_small():
    found = scan_runs(RECORDED_RUNS)
    assert not found.problems
    assert [run.name for run in found.runs] == NAMES
    assert sum(path.stat().st_size for path in RECORDED_RUNS.rglob("*") if path.is_file()) <= LARGEST
    for run in found.runs:
        assert run.status() == "ended"
        assert not (run.path / "resume").exists()
        assert run.probe_steps()[-1] == run.evaluations()[0][-1]["step"]
        for step in run.probe_steps():
            assert encode_features(run.probe_features(step))
        for step in run.steps():
            assert load_backbone(f"run:{run.path}@step={step}").embed_dim == 96


def test_they_hold_no_path_and_no_command_of_the_machine_that_made_them():
    for path in RECORDED_RUNS.rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        assert "seed0-" not in text, path
        assert not re.search(r"/(tmp|home|work|root|Users)/", text), path
        for line in text.splitlines() if path.suffix == ".jsonl" else ():
            assert json.loads(line).get("command") is None


def test_the_story_they_tell_is_in_their_numbers():
    """Patch k-NN falls under the stress by more than its error, and Gram brings back half of it or more."""
    healthy, stressed, cured = (Run(RECORDED_RUNS / name).evaluations()[0] for name in NAMES)
    begin, end, brought = (rows[-1] for rows in (healthy, stressed, cured))
    lost = begin["dense/patch_knn"] - end["dense/patch_knn"]
    assert lost > 2 * (begin["dense/patch_knn:se"] ** 2 + end["dense/patch_knn:se"] ** 2) ** 0.5
    assert brought["dense/patch_knn"] - end["dense/patch_knn"] > lost / 2
    for name in ("within_variance", "cls_patch_cosine"):
        bad, good = end[f"health/{name}"], begin[f"health/{name}"]
        assert abs(brought[f"health/{name}"] - good) < abs(bad - good)


def test_they_come_last_in_the_list_and_have_ids_of_their_own(tmp_path):
    writer, images = made_up_run.create(tmp_path / "lab-healthy", side=64)
    made_up_run.grow(writer, images, 0, 20)
    writer.close()
    listing = Listing(tmp_path, RECORDED_RUNS)
    rows = listing.table()
    assert [row["name"] for row in rows] == ["lab-healthy", *NAMES]
    assert [row.get("recorded", False) for row in rows] == [False, True, True, True]
    assert rows[0]["id"] == run_id("lab-healthy") != rows[1]["id"] == recorded_id("lab-healthy")
    assert listing.feed(rows[0]["id"]).path.parent == tmp_path
    assert listing.feed(rows[1]["id"]).path.parent == RECORDED_RUNS
    assert len({row["id"] for row in rows}) == 4


@pytest.mark.browser
def test_the_first_visit_plays_the_decline_beside_its_cure(page, recorded_only):
    page.goto(recorded_only.url)
    page.wait_for_function("document.querySelector('.mon-page')?.dataset.view === 'compare'", timeout=60_000)
    page.locator(".mon-hero canvas").first.wait_for(state="visible")
    bar = page.locator(".mon-recorded-bar")
    assert "induced decline" in bar.inner_text()
    assert page.locator(".mon-title").inner_text() == "lab-stressed"
    step = "document.querySelector('.dfw')?.view?.step"
    page.wait_for_function(f"{step} > 0 && {step} < 150", timeout=20_000)  # it plays
    page.locator(".mon-hero").click()
    page.wait_for_timeout(700)
    still = page.evaluate(step)
    page.wait_for_timeout(1200)
    assert page.evaluate(step) == still  # a touch stops it
    page.get_by_role("tab", name="Pictures").click()
    page.get_by_role("button", name="Show it beside its cure").click()
    page.wait_for_function("document.querySelector('.mon-page').dataset.view === 'compare'")
    page.get_by_role("button", name="Switch to Chinese").click()
    page.get_by_text("录制示例：人为诱发的退化。").wait_for()


@pytest.mark.browser
def test_a_run_of_one_s_own_takes_over_unless_the_example_is_being_looked_at(page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "runs"
    with private_folders(), serving(folder, recorded=True) as served:
        page.goto(served.url)
        page.wait_for_function("document.querySelector('.mon-title')?.textContent === 'lab-stressed'", timeout=60_000)
        writer, images = made_up_run.create(folder / "mine", side=64)
        made_up_run.grow(writer, images, 0, 40)
        page.wait_for_function("document.querySelector('.mon-title')?.textContent === 'mine'", timeout=10_000)
        assert page.locator(".mon-page").get_attribute("data-view") == "pictures"
        assert not page.locator(".mon-recorded-bar").is_visible()
        page.goto(f"{served.url}/?again#run={recorded_id('lab-cured')}")
        page.get_by_role("button", name="Open mine").click()
        page.wait_for_function("document.querySelector('.mon-title')?.textContent === 'mine'")
        writer.close()
        page.goto("about:blank")
