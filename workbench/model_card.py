"""The model card of an export: what the network is, where it comes from, how to feed and load it.

Names of runs, recipes and scores are other people's text. They reach the card as plain words only: never in its YAML
head, and in the Markdown with every punctuation mark escaped.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.images import IMAGENET_MEAN, IMAGENET_STD

LIBRARIES = ("transformers", "timm")
Library = Literal["transformers", "timm"]
EXPORTED_BY = "by the Dense Feature Workbench"
"""What every card says, and by what an earlier export is known."""
LONGEST_TEXT = 200
"""Characters of foreign text shown at most."""

DINOV3_TERMS = (
    "These are weights published as DINOv3 under another name for each tensor. They are under the *DINOv3 License* of "
    "their authors, which asks that its text goes with them."
)
RUN_TERMS = (
    "The code that trained these weights is under the Apache License 2.0. The weights are under the terms that their "
    "trainer chooses, within those of the training images and of the weights that training started from, if any; this "
    "card sets none. Write them here before you publish."
)
STARTED_FROM_DINOV3_TERMS = (
    "Training started from weights published as DINOv3: the *DINOv3 License* of their authors goes with what is made "
    "of them, and asks that its text does too."
)
OTHER_TERMS = "The terms of the weights that were converted apply; this card sets none of its own."


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an exported network comes from, and what its input is normalised with."""

    facts: Mapping[str, object]
    """What the card's table says: spec, run, step, recipe, seed, parent, …"""
    scores: Mapping[str, object] = field(default_factory=dict)
    """Scores of the last evaluation up to the exported step."""
    scores_step: int | None = None
    mean: Sequence[float] = IMAGENET_MEAN
    """Of the channels red, green, blue, for pixels in [0, 1]."""
    std: Sequence[float] = IMAGENET_STD
    terms: str = OTHER_TERMS
    """Markdown about the licence; ours, not the run's."""
    notes: Sequence[str] = ()
    """Assumptions made; ours as well."""


def plain(text: object) -> str:
    """`text` on one line in which Markdown, HTML and tables see no markup, cut at LONGEST_TEXT characters."""
    shown = str(text)
    shown = shown if len(shown) <= LONGEST_TEXT else shown[: LONGEST_TEXT - 1] + "…"
    return "".join(_escaped(character) for character in shown)


def _escaped(character: str) -> str:
    if character in string.punctuation:
        return "\\" + character
    return character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"


def model_card(
    *,
    library: Library,
    title: str,
    architecture: Mapping[str, object],
    origin: Origin,
    code: str,
    left_out: Sequence[str],
) -> str:
    """The card as Markdown with a YAML head.

    Args:
        title: foreign text, such as the run's name. architecture: class and fields, ours.
        code: Python that loads the folder and computes features. left_out: what the library cannot hold.
    """
    parts = [
        _head(library),
        f"# {plain(title)}\n\nDense features of images, exported for {library} {EXPORTED_BY}.",
        "## Architecture\n\n" + _table(("field", "value"), architecture.items()),
        "## Where it comes from\n\n" + _table(("what", "value"), origin.facts.items()),
        _input_section(origin),
        _scores_section(origin),
        f"## How to load it\n\nIn this folder:\n\n```python\n{code}\n```",
        "## What is different here\n\n" + _list([*left_out, *origin.notes]) if left_out or origin.notes else "",
        f"## Licence\n\n{origin.terms}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(library: Library) -> str:
    lines = [f"library_name: {library}", "pipeline_tag: image-feature-extraction"]
    return "\n".join(("---", *lines, "tags:", "- dense-features", "- self-supervised-learning", "---"))


def _input_section(origin: Origin) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (origin.mean, origin.std))
    return (
        "## Input\n\nRGB images in [0, 1], sides that are whole multiples of the patch size, then minus the mean and "
        f"divided by the standard deviation of each channel:\n\n- mean: {mean}\n- standard deviation: {std}"
    )


def _scores_section(origin: Origin) -> str:
    if not origin.scores:
        return "## Scores\n\nThis network was not evaluated where it comes from."
    rows = [(name, _number(value)) for name, value in origin.scores.items()]
    step = "" if origin.scores_step is None else f" (step {origin.scores_step})"
    return f"## Scores\n\nOf the last evaluation{step}, on the data of that run:\n\n" + _table(("score", "value"), rows)


def _number(value: Any) -> object:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else value


def _table(header: tuple[str, str], rows: Iterable[tuple[str, object]]) -> str:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {plain(name)} | {plain(value)} |" for name, value in rows)])


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
