"""What scenes are made of: labelled cut-outs, backgrounds, class names; split and reduced by identity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor


class ClassName(NamedTuple):
    """A class in two languages."""

    en: str
    zh: str


Item = TypeVar("Item", "Cutout", "Background")
BACKGROUND = ClassName("background", "背景")


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """One object with transparency. Holds no pixels: `rgba` reads or draws them at every call."""

    load: Callable[[], Tensor]
    """Returns uint8 [4, h, w], straight alpha. Picklable."""
    name: str
    """File name or drawing name, unique in its library."""
    class_index: int
    label: str
    label_zh: str
    category: str
    identity: str
    """Joins pictures that show the same thing; an identity never crosses a split."""
    licence: str = ""

    @property
    def rgba(self) -> Tensor:
        """uint8 [4, h, w]: RGB and straight alpha; row 0 is the top."""
        return self.load()


@dataclass(frozen=True, kw_only=True)
class Background:
    """One photograph to paste on. Holds no pixels: `rgb` reads them at every call."""

    load: Callable[[], Tensor]
    """Returns uint8 [3, h, w]. Picklable."""
    name: str
    label: str
    label_zh: str
    category: str
    identity: str
    licence: str = ""

    @property
    def rgb(self) -> Tensor:
        """uint8 [3, h, w]; row 0 is the top."""
        return self.load()


@dataclass(frozen=True, kw_only=True)
class Library:
    """Cut-outs and backgrounds with one list of classes.

    `classes[0]` is the background. Class indices do not change in `split` and `reduced`: both keep the whole list,
    so some classes may have no cut-out left; `present` names those that have.
    """

    name: str
    classes: tuple[ClassName, ...]
    cutouts: tuple[Cutout, ...]
    backgrounds: tuple[Background, ...]
    bad: tuple[tuple[str, str], ...] = ()
    """(path, reason) of every file that was skipped."""

    def __post_init__(self) -> None:
        if not self.cutouts or not self.backgrounds:
            raise ValueError(
                f"Library {self.name!r} has {len(self.cutouts)} cut-outs and {len(self.backgrounds)} backgrounds; "
                "at least one of each is needed. Add files, or select less strictly."
            )

    @property
    def present(self) -> tuple[int, ...]:
        """Class indices that have at least one cut-out, ascending; never 0."""
        return tuple(sorted({cutout.class_index for cutout in self.cutouts}))

    def split(
        self, held_out: float = 0.25, seed: int = 0, *, split_backgrounds: bool = True
    ) -> tuple[Library, Library]:
        """(known, held_out), disjoint by identity, per class.

        Of the n identities of a class round(n * held_out) are held out, at least one if n >= 3; a class of one or two
        identities stays known. Backgrounds are split the same way as one more class, unless `split_backgrounds` is
        false (both sides then share them).
        """
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie strictly between 0 and 1, got {held_out}.")
        groups: dict[int, dict[str, None]] = defaultdict(dict)
        owner: dict[str, int] = {}
        for cutout in self.cutouts:
            groups[owner.setdefault(cutout.identity, cutout.class_index)][cutout.identity] = None
        for background in self.backgrounds if split_backgrounds else ():
            groups[owner.setdefault(background.identity, 0)][background.identity] = None
        out = {i for index, names in groups.items() for i in _held_out_identities(names, held_out, seed, index)}
        if not any(cutout.identity in out for cutout in self.cutouts):
            raise ValueError(
                f"Library {self.name!r}: no class has three identities, so nothing can be held out. "
                "Use more cut-outs, or split before reducing."
            )
        return self._side("known", out, False, split_backgrounds), self._side("held out", out, True, split_backgrounds)

    def reduced(
        self,
        classes: int | Sequence[str] | None = None,
        per_class: int | None = None,
        seed: int = 0,
        *,
        backgrounds: int | None = None,
    ) -> Library:
        """A smaller library, to match the data to a small training budget.

        `classes`: English names to keep, or how many (those with most identities first), or None for all.
        `per_class`: cut-outs to keep in each class, of different identities as far as there are enough.
        `backgrounds`: how many backgrounds to keep, of different identities as far as there are enough.
        """
        for name, value in (("per_class", per_class), ("backgrounds", backgrounds)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        kept: set[str] = set()
        for index in self._selected(classes):
            members = [cutout for cutout in self.cutouts if cutout.class_index == index]
            kept.update(item.name for item in _spread(members, per_class, [seed, index]))
        chosen = {item.name for item in _spread(self.backgrounds, backgrounds, [seed, 0])}
        return replace(
            self,
            cutouts=tuple(cutout for cutout in self.cutouts if cutout.name in kept),
            backgrounds=tuple(background for background in self.backgrounds if background.name in chosen),
        )

    def _side(self, side: str, out: set[str], held: bool, split_backgrounds: bool) -> Library:
        own = tuple(item for item in self.backgrounds if (item.identity in out) == held)
        return replace(
            self,
            name=f"{self.name} ({side})",
            cutouts=tuple(cutout for cutout in self.cutouts if (cutout.identity in out) == held),
            # too few backgrounds to hold one out: share them
            backgrounds=own if own and split_backgrounds else self.backgrounds,
        )

    def _selected(self, classes: int | Sequence[str] | None) -> list[int]:
        """Class indices to keep."""
        if classes is None:
            return list(self.present)
        if isinstance(classes, int):
            if not 1 <= classes <= len(self.present):
                raise ValueError(f"classes must lie in [1, {len(self.present)}] for {self.name!r}, got {classes}.")
            count = {i: len({c.identity for c in self.cutouts if c.class_index == i}) for i in self.present}
            return sorted(sorted(self.present, key=lambda i: (-count[i], i))[:classes])
        names = {self.classes[index].en: index for index in self.present}
        unknown = [name for name in classes if name not in names]
        if unknown or not classes:
            raise ValueError(f"No class {unknown} with cut-outs in {self.name!r}. Classes: {', '.join(names)}.")
        return sorted({names[name] for name in classes})


def _held_out_identities(names: Iterable[str], fraction: float, seed: int, group: int) -> list[str]:
    ordered = sorted(names)
    if len(ordered) < 3:
        return []
    count = min(max(1, round(len(ordered) * fraction)), len(ordered) - 1)
    chosen = np.random.default_rng([seed, group]).permutation(len(ordered))[:count]
    return [ordered[i] for i in chosen]


def _spread(items: Sequence[Item], count: int | None, seed: list[int]) -> list[Item]:
    """`count` items in a seeded order that takes a second one of an identity only after one of each."""
    if count is None:
        return list(items)
    shuffled = [items[i] for i in np.random.default_rng(seed).permutation(len(items))]
    seen: dict[str, int] = defaultdict(int)
    rank: dict[str, int] = {}
    for item in shuffled:
        rank[item.name] = seen[item.identity]
        seen[item.identity] += 1
    return sorted(shuffled, key=lambda item: rank[item.name])[:count]
