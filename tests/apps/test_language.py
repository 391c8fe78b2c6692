"""Every word in every language, and every key that the pages ask for."""

from __future__ import annotations

import re
from importlib.resources import files

from apps.language import LANGUAGES, strings

STATIC = files("apps").joinpath("static")
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
    scripts = "".join(STATIC.joinpath(name).read_text("utf-8") for name in ("monitor.js", "rail.js", "curves.js"))
    plain = set(re.findall(r"(?:words|say)\('([\w.]+)'", scripts))
    families = set(re.findall(r"(?:words|say)\(`([\w.]+)\$\{", scripts))
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
    }
    for family in families:
        assert any(key.startswith(family) for key in known), family
