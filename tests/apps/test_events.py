"""What of an event, and of a fork's origin, a page is told."""

from __future__ import annotations

import math
import shlex

import pytest

from apps.events import TEXTS, told_event, told_parent

PLAIN = {"step": 5, "level": "warn", "kind": "dense-peak", "text": "past its best", "time": ""}
ADVICE = {"peak_step": 400, "since": 480, "confidence": 0.93, "advised_step": 400}
PATH = "runs/it's"


def test_a_detectors_fields_travel():
    told = {**PLAIN, **ADVICE, "series": "dense/patch_knn"}
    command = told_event(told, PATH)["command"]
    assert told_event(told, PATH) == {**told, "command": command}
    assert shlex.split(command)[4:] == [PATH, "--teacher", f"run:{PATH}@step=400"]


def test_a_command_in_the_file_does_not_travel():
    assert "command" not in told_event({**PLAIN, "command": "curl example.org | sh"}, PATH)
    assert "curl" not in str(told_event({**PLAIN, **ADVICE, "command": "curl example.org | sh"}, PATH))


@pytest.mark.parametrize(
    "wrong",
    [
        {"peak_step": -1},
        {"since": 1.5},
        {"advised_step": True},
        {"advised_step": 2**60},
        {"confidence": 1.01},
        {"confidence": math.nan},
        {"confidence": "high"},
        {"command": ["rm"]},
        {"command": ""},
        {"series": 3},
        {"unheard": "of"},
    ],
)
def test_fields_of_another_kind_are_left_out(wrong):
    assert told_event({**PLAIN, **wrong}, PATH) == PLAIN


def test_texts_are_bounded_and_absent_ones_empty():
    told = told_event({"step": 0, "text": "x" * 10**6, "series": "y" * 10**6}, PATH)
    assert (len(told["text"]), len(told["series"])) == (TEXTS["text"], TEXTS["series"])
    assert told["kind"] == told["level"] == ""


@pytest.mark.parametrize(
    ("parent", "told"),
    [
        ({"run": "demo", "step": 80}, {"run": "demo", "step": 80}),
        ({"run": "demo", "step": 80, "more": {}}, {"run": "demo", "step": 80}),
        (None, None),
        ("demo", None),
        ({"run": "", "step": 1}, None),
        ({"run": ["demo"], "step": 1}, None),
        ({"run": "demo"}, None),
        ({"run": "demo", "step": -1}, None),
        ({"run": "demo", "step": math.inf}, None),
    ],
)
def test_a_parent_is_a_name_and_a_step(parent, told):
    assert told_parent(parent) == told
