"""Every word in every language, and every key that the pages ask for."""

from __future__ import annotations

import re
from importlib.resources import files

from apps.language import LANGUAGES, strings

STATIC = files("apps").joinpath("static")
OWN_SCRIPTS = sorted(file.name for file in STATIC.iterdir() if file.name.endswith(".js") and file.name != "host.js")
CHINESE = re.compile(r"[一-鿿]")


def test_languages_have_the_same_keys_and_places():
    tables = strings()
    assert set(tables) == set(LANGUAGES)
    assert set(tables["en"]) == set(tables["zh"])
    for key, text in tables["en"].items():
        assert text.strip()
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", tables["zh"][key])), key


def test_chinese_is_chinese_and_english_has_none():
    for key, text in strings()["zh"].items():
        assert CHINESE.search(text) or key == "language.other", key
    for key, text in strings()["en"].items():
        assert not CHINESE.search(text) or key.startswith("language.other"), key


def test_every_key_the_scripts_use_exists():
    known = set(strings()["en"])
    scripts = "".join(STATIC.joinpath(name).read_text("utf-8") for name in OWN_SCRIPTS)
    plain = set(re.findall(r"(?:words|say)\('([\w.-]+)'", scripts))
    families = set(re.findall(r"(?:words|say)\(`([\w.-]+)\$\{", scripts))
    assert len(plain) > 20
    assert plain <= known
    assert families == {
        "view.",
        "curves.axis.",
        "theme.",
        "help.",
        "status.",
        "phase.",
        "ago.",
        "error.",
        "empty.",
        "group.",
        "level.",
        "compare.problem.",
        "compare.align.",
        "compare.strips.",
        "verdicts.",
        "disease.",
        "number.",
        "picture.",
        "cure.",
    }
    for family in families:
        assert any(key.startswith(family) for key in known), family


def test_words_asked_for_by_a_choice_exist():
    """Keys that a script picks by a condition are not seen by the search above: every quoted key must be known."""
    tables = strings()
    scripts = "".join(STATIC.joinpath(name).read_text("utf-8") for name in OWN_SCRIPTS)
    heads = {key.split(".")[0] for key in tables["en"]} - {"gauge"}
    quoted = set(re.findall(r"'([a-z]+(?:\.[a-z-]+)+)'", scripts))
    asked = {key for key in quoted if key.split(".")[0] in heads}
    assert {"copy.done", "advice.peak", "compare.no-pca"} <= asked
    assert asked <= set(tables["en"])
    trouble = STATIC.joinpath("compare.js").read_text("utf-8").split("\n  trouble() {")[1].split("\n  }\n")[0]
    problems = set(re.findall(r"'(\w+)'", trouble))
    assert problems == {"choose", "waiting", "images", "grids"}
    assert {f"compare.problem.{problem}" for problem in problems} <= set(tables["en"])


def test_gauges_are_explained_under_the_names_of_the_run_format():
    known = {key.removeprefix("gauge.") for key in strings()["en"] if key.startswith("gauge.")}
    assert known >= {"dense/patch_knn", "dense/linear_miou", "global/knn", "health/cls_patch_cosine"}
    assert known >= {"health/near_cosine", "health/far_cosine", "health/within_variance", "health/norm_outliers"}
