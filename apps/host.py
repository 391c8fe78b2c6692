"""Puts our JavaScript modules, the shared renderer among them, into a `gr.HTML` component."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import gradio as gr


def module_text(package: str, path: str) -> str:
    """Text of a JavaScript or CSS file shipped in `package`, e.g. ("workbench", "static/renderer.js")."""
    return files(package).joinpath(path).read_text(encoding="utf-8")


def script(sources: Mapping[str, str], entry: str, props: Mapping[str, Any]) -> str:
    """The `js_on_load` text that loads `sources` (name -> module text) and calls `render` of the module `entry`.

    Every module gets `{el, modules, createModel, props}`; texts reach the browser unchanged, through Blob URLs.
    """
    if entry not in sources:
        raise ValueError(f"entry {entry!r} is not one of the modules {sorted(sources)}; name one of them")
    shim = module_text("apps", "static/host.js")
    for mark, value in (("SOURCES", dict(sources)), ("ENTRY", entry), ("PROPS", dict(props))):
        empty = '""' if mark == "ENTRY" else "{}"
        before, after = shim.split(f"/*{mark}*/{empty}")
        shim = before + json.dumps(value) + after
    return shim


def hosted(sources: Mapping[str, str], entry: str, props: Mapping[str, Any]) -> gr.HTML:
    """A `gr.HTML` with a static template (Gradio never redraws it) that our modules draw into."""
    return gr.HTML(
        value="",
        html_template='<div class="mon-host"></div>',
        apply_default_css=False,
        js_on_load=script(sources, entry, props),
        padding=False,
    )
