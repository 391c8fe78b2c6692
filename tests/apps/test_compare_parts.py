"""What two runs compared rests on: which steps belong together, which events are kept, what a colour says."""

from __future__ import annotations

import shutil

import made_up_run
import pytest

from apps.listing import run_id

pytestmark = pytest.mark.browser


@pytest.fixture
def call(page, served):
    """call(module, script, *values): runs `script`, a function of the module and the values, in the page."""
    page.goto(f"{served.url}/#run={run_id('finished')}")
    page.wait_for_selector(".mon-run", timeout=60_000)

    def run(module: str, script: str, *values: object) -> object:
        return page.evaluate(
            f"""async (values) => {{
                const {{ moduleUrls }} = document.querySelector('.mon-host');
                return ({script})(await import(moduleUrls.{module}), ...values);
            }}""",
            list(values),
        )

    return run


FIRST = {"id": "1", "name": "first"}
ANCHOR = {"id": "2", "name": "anchor", "parent": {"run": "first", "step": 800}}
ADAPT = {"id": "3", "name": "adapt", "parent": {"run": "anchor", "step": 400}}
SIBLING = {"id": "4", "name": "sibling", "parent": {"run": "first", "step": 500}}
ORPHAN = {"id": "5", "name": "orphan", "parent": {"run": "gone", "step": 70}}
TWIN = {"id": "6", "name": "twin", "parent": {"run": "gone", "step": 90}}
LOOP = {"id": "7", "name": "loop", "parent": {"run": "loop", "step": 5}}
RECORDED = {"id": "8", "name": "first", "recorded": True}
OTHER = {"id": "9", "name": "other", "parent": {"run": "first", "step": 30}, "recorded": True}
ALL = [FIRST, ANCHOR, ADAPT, SIBLING, ORPHAN, TWIN, LOOP, RECORDED, OTHER]


OFFSETS = [
    (FIRST, ANCHOR, 800),
    (ANCHOR, FIRST, -800),
    (FIRST, ADAPT, 1200),
    (ADAPT, FIRST, -1200),
    (ANCHOR, ADAPT, 400),
    (ANCHOR, SIBLING, -300),
    (ADAPT, SIBLING, -700),
    (ORPHAN, TWIN, 20),
    (FIRST, ORPHAN, 0),
    (LOOP, FIRST, 0),
    (RECORDED, OTHER, 30),
    (FIRST, OTHER, 0),
]


def test_a_fork_lies_where_it_was_forked(call):
    script = "({ offsetOf }, cases, runs) => cases.map(([a, b]) => offsetOf(a, b, runs))"
    assert call("pair", script, [[a, b] for a, b, _ in OFFSETS], ALL) == [offset for *_, offset in OFFSETS]


def test_recorded_runs_are_no_kin_of_one_s_own(call):
    kin = call("pair", "({ kinOf }, run, runs) => kinOf(run, runs)", FIRST, ALL)
    assert [run["name"] for run in kin["children"]] == ["anchor", "sibling"]
    kin = call("pair", "({ kinOf }, run, runs) => kinOf(run, runs)", RECORDED, ALL)
    assert [run["name"] for run in kin["children"]] == ["other"]
    assert call("recorded", "({ story }, runs) => story(runs)", ALL) is None


def test_what_must_be_seen_survives_a_flood_of_warnings(call):
    flood = [{"step": step, "level": "warn", "kind": "bad-image", "text": f"{step}"} for step in range(200)]
    peak = {"step": 90, "level": "warn", "kind": "dense-peak", "text": "peak"}
    kept = call("marks", "({ marked }, events) => marked(events)", [*flood, peak])
    assert len(kept) == 60
    assert any(entry["event"]["kind"] == "dense-peak" for entry in kept)
    assert kept[-1]["event"]["step"] == 199, "of equals the latest"
    assert [entry["event"]["step"] for entry in kept] == sorted(entry["event"]["step"] for entry in kept)
    assert len(call("marks", "({ marked }, events) => marked(events, [], 1e9)", [*flood, peak])) == 201


def test_the_colour_of_a_difference_says_which_is_higher(call):
    """Orange where A is higher, blue where B is, the same grey where they agree; clipped at the reach."""
    script = """(renderer, a, b) => {
        const rgba = new Uint8ClampedArray(4 * a.length);
        renderer.colourDifferences(Float32Array.from(a), Float32Array.from(b), 0.5, rgba);
        return [...rgba];
    }"""
    rgba = call("renderer", script, [1.0, 0.0, 0.4, 0.9], [0.0, 1.0, 0.4, 0.4])
    high, low, same, at_reach = (rgba[4 * k : 4 * k + 4] for k in range(4))
    assert high[0] > high[2] + 60, "orange"
    assert low[2] > low[0] + 60, "blue"
    assert max(same[:3]) - min(same[:3]) < 12
    assert at_reach == high


def test_a_fork_is_shown_at_the_step_that_belongs_to_its_parents(page, served):
    folders = []
    for name, last, info in (
        ("trunk", 80, {}),
        ("branch", 40, {"parent": {"run": "trunk", "step": 40}}),
    ):
        writer, images = made_up_run.create(served.folder / name, side=64, **info)
        made_up_run.grow(writer, images, 0, last)
        writer.close()
        folders.append(writer.path)
    page.wait_for_timeout(1100)
    page.goto(f"{served.url}/#run={run_id('trunk')}&view=compare&b={run_id('branch')}&step=60")
    captions = page.locator(".mon-hero figcaption b")
    page.wait_for_function("document.querySelector('.mon-hero figcaption b')", timeout=60_000)
    page.wait_for_function("[...document.querySelectorAll('.mon-hero b')].some((b) => b.innerText === 'B · step 20')")
    assert "A · step 60" in captions.all_inner_texts()
    page.locator(".mon-compare-bar select:has(option[value=own])").select_option("own")
    page.wait_for_function("[...document.querySelectorAll('.mon-hero b')].some((b) => b.innerText === 'B · step 40')")
    page.goto("about:blank")
    for folder in folders:
        shutil.rmtree(folder)
