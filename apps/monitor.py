"""The monitor page: a Gradio shell around one component that our own modules draw into."""

from __future__ import annotations

import gradio as gr

from apps.host import hosted, module_text
from apps.language import strings

STYLE_SHEETS = (("workbench", "renderer.css"), ("apps", "uplot/uPlot.min.css"), ("apps", "monitor.css"))
OWN_MODULES = (
    "dom",
    "live",
    "rail",
    "marks",
    "card",
    "curves",
    "side",
    "pair",
    "compare",
    "compareBar",
    "recorded",
    "verdicts",
    "monitor",
)
HEAD = f"<style>{module_text('apps', 'static/shell.css')}</style>"
"""Goes into the page's head: our component fills the window, Gradio's own frame stays out of sight."""


def modules() -> dict[str, str]:
    """{name: text} of the JavaScript modules of this page; `renderer` is the file that notebooks use, byte for byte."""
    return {
        "renderer": module_text("workbench", "static/renderer.js"),
        "uPlot": module_text("apps", "static/uplot/uPlot.esm.js"),
        **{name: module_text("apps", f"static/{name}.js") for name in OWN_MODULES},
    }


def build_page() -> gr.Blocks:
    """The page as Gradio blocks; it has no Gradio events, its data come from the routes in apps/api.py."""
    words = strings()
    css = "\n".join(module_text(package, f"static/{name}") for package, name in STYLE_SHEETS)
    with gr.Blocks(title=words["en"]["page.title"], analytics_enabled=False, fill_width=True) as page:
        hosted(modules(), "monitor", {"strings": words, "css": css})
    return page


def theme() -> gr.themes.Base:
    """Fonts of the system only, so that nothing is fetched."""
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "Noto Sans", "Noto Sans CJK SC", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size="sm",
    )
