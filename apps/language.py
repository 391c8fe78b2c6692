"""The words of the pages: one JSON table a language, the same keys in each."""

from __future__ import annotations

import json
from importlib.resources import files

LANGUAGES = ("en", "zh")


def strings() -> dict[str, dict[str, str]]:
    """{language: {key: text}}; `{name}` in a text is filled in by the page."""
    folder = files("apps").joinpath("static/strings")
    return {language: json.loads(folder.joinpath(f"{language}.json").read_text("utf-8")) for language in LANGUAGES}
