"""Captions of scenes, in English and Chinese."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from workbench.scenes.library import Background, Cutout

_EN = (
    "{objects} in front of {ground}",
    "a picture of {objects}, with {ground} behind",
    "{ground}, and in front of it {objects}",
)
_ZH = ("{ground}前的{objects}", "一张图片：{objects}，背景是{ground}", "以{ground}为背景的{objects}")


def captions(objects: Sequence[Cutout], ground: Background, wording: int) -> tuple[str, str]:
    """(English, Chinese) caption naming the objects from front to back, repeated ones once with their number."""
    english = _counted([item.label for item in objects], " ({})")
    chinese = _counted([item.label_zh for item in objects], "（{}个）")
    form = wording % len(_EN)
    return (
        _EN[form].format(objects=_joined(english, ", ", " and "), ground=ground.label),
        _ZH[form].format(objects=_joined(chinese, "、", "和"), ground=ground.label_zh),
    )


def _counted(labels: list[str], form: str) -> list[str]:
    return [label if count == 1 else label + form.format(count) for label, count in Counter(labels).items()]


def _joined(words: list[str], comma: str, last: str) -> str:
    return words[0] if len(words) == 1 else comma.join(words[:-1]) + last + words[-1]
