"""A view as one HTML file that works offline: renderer, style and data in it, no server, no Python."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.views.comparison import Comparison
from workbench.views.encode import Transport
from workbench.views.payloads import PayloadSource, answer

STATIC = Path(__file__).parents[1] / "static"

_POLICY = (
    "default-src 'none'; script-src 'sha256-{digest}' blob: 'wasm-unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'"
)
"""Content security policy: this very script and the module it makes, no other, and no network at all."""
_SCRIPT = """
const text = (id) => document.getElementById(id).textContent;
const state = JSON.parse(text("state")), answers = JSON.parse(text("answers")), listeners = {};
const model = {
  get: (key) => state[key],
  set: (key, value) => { state[key] = value; for (const f of listeners["change:" + key] ?? []) f(); },
  save_changes: () => {},
  on: (event, f) => (listeners[event] ??= []).push(f),
};
const bytes = (data) => new DataView(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)).buffer);
const invoke = async (name, { source, index, step }) => {
  const [json, buffers] = answers[[source ?? 0, name, index ?? step ?? ""].join(":")];
  return [json, buffers.map(bytes)];
};
const source = new Blob([text("renderer")], { type: "text/javascript" });
const { default: renderer } = await import(URL.createObjectURL(source));
const el = document.querySelector("main");
window.workbench = { model, close: renderer.render({ model, el, experimental: { invoke } }) };
addEventListener("keydown", (event) => { // keys work before anything was clicked
  const { key, shiftKey, target } = event;
  const copy = new KeyboardEvent("keydown", { key, shiftKey, cancelable: true });
  if (target === document.body && !el.firstElementChild?.dispatchEvent(copy)) event.preventDefault();
});
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Dense features</title>
<meta http-equiv="Content-Security-Policy" content="%(policy)s">
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>body { margin: 0 } main > .dfw { min-height: 100dvh }</style><style>%(css)s</style></head><body><main></main>
<script type="application/json" id="provenance">%(provenance)s</script>
<script type="application/json" id="state">%(state)s</script>
<script type="application/json" id="answers">%(answers)s</script>
<script type="text/plain" id="renderer">%(esm)s</script>
<script type="module">%(script)s</script></body></html>
"""


def standalone_page(
    source: PayloadSource | Comparison,
    *,
    view: str = "run",
    dtype: Transport = "int8",
    provenance: Mapping[str, Any] | None = None,
    **state: Any,
) -> str:
    """An HTML document showing `source`; `state` goes to the renderer's model.

    A `view` is "run" with a timeline, "gram" (the same with Gram matrices) or "patches"; a `Comparison` has its own.
    Common state: language ("en", "zh"), theme ("light", "dark"), step, mode, selection. Its size is 4/3 of the
    features' bytes and the pictures'. `provenance` is kept in the file as JSON, in the element of that name. A content
    security policy forbids every script but the page's own and any connection.
    """
    sources = source.sources if isinstance(source, Comparison) else [source]
    answers = {
        f"{number}:{key}": reply for number, each in enumerate(sources) for key, reply in _answers(each, dtype).items()
    }
    if isinstance(source, Comparison):
        view, state = "compare", {"sources": source.names, **state}
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return _PAGE % {
        "policy": _POLICY.format(digest=digest),
        "script": _SCRIPT,
        "provenance": _json(dict(provenance or {})),
        "css": (STATIC / "renderer.css").read_text(encoding="utf-8"),
        "esm": (STATIC / "renderer.js").read_text(encoding="utf-8"),
        "state": _json({"view": view, "dtype": dtype, **state}),
        "answers": _json(answers),
    }


def _answers(source: PayloadSource, dtype: Transport) -> dict[str, list[Any]]:
    """Whatever the renderer may ask of one source: {"name:index or step": [json, [base64]]}."""
    summary = source.summary()
    questions: list[tuple[str, dict[str, Any], Any]] = [("summary", {}, ""), ("basis", {}, "")]
    questions += [
        ("image", {"index": index}, index) for index in range(summary["probes"]["count"] if summary["probes"] else 0)
    ]
    questions += [("probes", {"step": step, "dtype": dtype}, step) for step in summary["steps"]]
    answers = {}
    for name, message, key in questions:
        reply, buffers = answer(source, name, message)
        answers[f"{name}:{key}"] = [reply, [base64.b64encode(data).decode() for data in buffers]]
    return answers


def without_policy(page: str) -> str:
    """A page of `standalone_page` that allows `eval`, which tools that drive a browser wait with."""
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n', "", page, count=1)


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
