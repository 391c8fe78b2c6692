"""Pictures in rows and columns with a heading each, as one PNG or SVG that says where it comes from."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

CELL, GAP, TEXT = 224, 8, 22
"""Pixels: the width of a picture, between pictures, and of a line of text."""
_FONT = "Inter, 'Helvetica Neue', Arial, 'Noto Sans CJK SC', sans-serif"
_LONGEST = 200


@dataclass(frozen=True)
class Sheet:
    """Rows of pictures under common headings; every picture of a row has the same aspect, whatever its size."""

    headings: Sequence[str]
    """One a column."""
    rows: Sequence[tuple[str, Sequence[np.ndarray]]]
    """A label, and uint8 pictures [h, w, 3], one a column."""
    about: dict[str, Any]
    """Provenance, written into the file as JSON."""
    title: str = ""
    marks: Sequence[tuple[int, int, float, float]] = field(default_factory=tuple)
    """(row, column, x, y): a red ring on a picture, x and y in [0, 1] from its top left."""

    def __post_init__(self) -> None:
        if not self.rows or any(len(pictures) != len(self.headings) for _, pictures in self.rows):
            raise ValueError("a sheet needs a row or more, each with a picture for every heading.")

    def places(self) -> tuple[list[int], list[int], int, int]:
        """(top of each row's pictures, their height, width and height of the sheet), in pixels."""
        top, tops, heights = GAP + TEXT * (2 if self.title else 1), [], []
        for _, pictures in self.rows:
            tops.append(top)
            heights.append(max(1, round(CELL * pictures[0].shape[0] / pictures[0].shape[1])))
            top += heights[-1] + TEXT + GAP
        return tops, heights, GAP + len(self.headings) * (CELL + GAP), top


def sheet_image(sheet: Sheet, background: str = "#ffffff", ink: str = "#0f172a") -> Image.Image:
    """The sheet as a picture, patches as squares; letters beyond Latin need `sheet_svg`."""
    tops, heights, width, height = sheet.places()
    canvas = Image.new("RGB", (width, height), background)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13)
    if sheet.title:
        draw.text((GAP, GAP // 2), _short(sheet.title, draw, font, width - 2 * GAP), fill=ink, font=font)
    for column, heading in enumerate(sheet.headings):
        place = (GAP + column * (CELL + GAP), tops[0] - TEXT + 2)
        draw.text(place, _short(heading, draw, font, CELL), fill=ink, font=font)
    for (label, pictures), top, tall in zip(sheet.rows, tops, heights, strict=True):
        for column, picture in enumerate(pictures):
            enlarges = picture.shape[1] < CELL
            how = Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS
            resized = Image.fromarray(picture).resize((CELL, tall), how)
            canvas.paste(resized, (GAP + column * (CELL + GAP), top))
        draw.text((GAP, top + tall + 3), _short(label, draw, font, width - 2 * GAP), fill="#64748b", font=font)
    for row, column, x, y in sheet.marks:
        middle = (GAP + column * (CELL + GAP) + x * CELL, tops[row] + y * heights[row])
        draw.circle(middle, 7, outline="#ffffff", width=4)
        draw.circle(middle, 6, outline="#ef4444", width=2)
    return canvas


def sheet_png(sheet: Sheet) -> bytes:
    """The sheet as a PNG file; the provenance is its text entry `about`."""
    entries = PngImagePlugin.PngInfo()
    entries.add_itxt("about", json.dumps(sheet.about))
    buffer = io.BytesIO()
    sheet_image(sheet).save(buffer, "PNG", optimize=True, pnginfo=entries)
    return buffer.getvalue()


def sheet_svg(sheet: Sheet) -> str:
    """The sheet as an SVG: pictures at their own size as PNG inside, text as text, the provenance in <metadata>."""
    tops, heights, width, height = sheet.places()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{escape(_FONT)}" font-size="13">',
        f"<metadata>{escape(json.dumps(sheet.about))}</metadata>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    if sheet.title:
        parts.append(_svg_text(GAP, GAP + 10, sheet.title, "#0f172a"))
    for column, heading in enumerate(sheet.headings):
        parts.append(_svg_text(GAP + column * (CELL + GAP), tops[0] - 7, heading, "#0f172a"))
    for (label, pictures), top, tall in zip(sheet.rows, tops, heights, strict=True):
        for column, picture in enumerate(pictures):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG", optimize=True)
            data = base64.b64encode(buffer.getvalue()).decode()
            parts.append(
                f'<image x="{GAP + column * (CELL + GAP)}" y="{top}" width="{CELL}" height="{tall}" '
                f'preserveAspectRatio="none" image-rendering="{"pixelated" if picture.shape[1] < CELL else "auto"}" '
                f'href="data:image/png;base64,{data}"/>'
            )
        parts.append(_svg_text(GAP, top + tall + 15, label, "#64748b"))
    for row, column, x, y in sheet.marks:
        place = f'cx="{GAP + column * (CELL + GAP) + x * CELL:.1f}" cy="{tops[row] + y * heights[row]:.1f}" r="6"'
        for colour, thick in (("#ffffff", 4), ("#ef4444", 2)):
            parts.append(f'<circle {place} fill="none" stroke="{colour}" stroke-width="{thick}"/>')
    return "\n".join([*parts, "</svg>\n"])


def _svg_text(x: float, y: float, text: str, ink: str) -> str:
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:_LONGEST])
    return f'<text x="{x}" y="{y}" fill="{ink}">{escape(clean)}</text>'


def _short(text: str, draw: ImageDraw.ImageDraw, font: Any, width: float) -> str:
    """`text` in one line, cut with an ellipsis to `width` pixels."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST])
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."
