"""Where training images come from: drawn scenes or a folder of files. A source maps an index to one uint8 image.

The same index gives the same pixels at every call, in every process; order and repetition are batch.py's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from workbench.scenes import FolderImages, Library, SceneConfig, Scenes, builtin_library, folder_library

BUILTIN = "builtin"
_MIB = 1 << 20


class ImageSource(Protocol):
    """A finite set of images, known by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        """uint8 [3, h, w], RGB, row 0 at the top; h and w may differ from image to image."""
        ...

    @property
    def bad(self) -> tuple[tuple[str, str], ...]:
        """(path, reason) of every file found unusable so far."""
        ...


class SceneImages:
    """The pictures of scenes 0 to count - 1, drawn at every call."""

    def __init__(self, scenes: Scenes, count: int) -> None:
        if count < 1:
            raise ValueError(f"ScenesConfig.count is {count} scenes; at least 1 is needed.")
        self.scenes = scenes
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.scenes[_checked(index, self.count)].image

    @property
    def bad(self) -> tuple[tuple[str, str], ...]:
        return self.scenes.library.bad


class FolderSource:
    """The images of a folder, made smaller if asked: the shorter side becomes at most `short_side` pixels.

    A file that cannot be read is replaced by another one, always the same, and listed in `bad`.
    """

    def __init__(self, images: FolderImages, short_side: int | None = None) -> None:
        if short_side is not None and short_side < 1:
            raise ValueError(
                f"FolderConfig.short_side is {short_side} pixels; choose 1 or more, or None for full size."
            )
        self.images = images
        self.short_side = short_side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return _shrunk(self.images[_checked(index, len(self))], self.short_side)

    @property
    def bad(self) -> tuple[tuple[str, str], ...]:
        return tuple((str(path), reason) for path, reason in self.images.bad)


class Cached:
    """Keeps images of a slower source in memory until `budget` bytes are full; what comes later is made anew.

    Every process (loader workers too) has a cache and a budget of its own. Never changes an image.
    """

    def __init__(self, source: ImageSource, budget: int) -> None:
        if budget < 0:
            raise ValueError(f"The cache budget is {budget} bytes; choose 0 (no cache) or more.")
        self.source = source
        self.budget = budget
        self.used = 0
        self._images: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        kept = self._images.get(index)
        if kept is not None:
            return kept
        image = self.source[index]
        if self.used + image.nbytes <= self.budget:
            self.used += image.nbytes
            self._images[index] = image
        return image

    @property
    def bad(self) -> tuple[tuple[str, str], ...]:
        return self.source.bad


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Training on drawn scenes: which cut-outs, how many scenes, what they look like."""

    library: str = BUILTIN
    """"builtin" for the cut-outs that ship with the workbench, or the path of a cut-out pack (docs/data.md)."""
    by: str = "category"
    """What a class is: "category", or "label" for finer ones."""
    skip_licences: tuple[str, ...] = ()
    """Leave out files of a pack whose licence begins with one of these, "RIGHTS UNCLEAR" say (docs/data.md)."""
    classes: int | None = None
    """Keep only this many classes, those with most identities first."""
    per_class: int | None = None
    """Keep only this many cut-outs a class, to match the data to a small budget."""
    backgrounds: int | None = None
    """Keep only this many backgrounds."""
    held_out: float = 0.25
    """Share of the identities of every class kept away from training; 0 trains on all."""
    count: int = 4096
    """How many different scenes."""
    scene: SceneConfig = field(default_factory=SceneConfig)
    """Size in pixels, objects, light, background contrast, …"""
    seed: int = 0
    """Fixes the split, the reduction and the scenes."""
    cache_mib: int = 512
    """Memory for finished scenes in every process that loads, in MiB."""

    def build(self) -> Cached:
        """The source of training images, from known identities only. Raises ValueError for an unusable library."""
        known, _ = self.libraries()
        return Cached(SceneImages(Scenes(known, self.scene, self.seed), self.count), self.cache_mib * _MIB)

    def libraries(self) -> tuple[Library, Library | None]:
        """(known, held out) cut-outs; the held-out ones are of the same classes, and None if there are none."""
        library = (
            builtin_library(by=self.by)
            if self.library == BUILTIN
            else folder_library(self.library, by=self.by, skip_licences=self.skip_licences)
        )
        known, held_out = library.split(self.held_out, self.seed) if self.held_out else (library, None)
        known = known.reduced(self.classes, self.per_class, self.seed, backgrounds=self.backgrounds)
        if held_out is None:
            return known, None
        shared = [known.classes[index].en for index in known.present if index in held_out.present]
        return known, held_out.reduced(shared) if shared else None


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Training on a folder of images of any kind and size, sub-folders included, without labels."""

    path: str
    short_side: int | None = 512
    """Shrink so that the shorter side has at most this many pixels; none keeps the full size."""
    cache_mib: int = 512
    """Memory for decoded images in every process that loads, in MiB."""

    def build(self) -> Cached:
        """The source of training images. Raises ValueError for a missing folder or one without images."""
        return Cached(FolderSource(FolderImages(self.path), self.short_side), self.cache_mib * _MIB)


def _shrunk(image: Tensor, short_side: int | None) -> Tensor:
    """uint8 [3, h, w] with min(h, w) <= short_side, aspect kept; antialiased bicubic."""
    height, width = image.shape[1:]
    if short_side is None or min(height, width) <= short_side:
        return image
    scale = short_side / min(height, width)
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    return F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0]


def _checked(index: int, count: int) -> int:
    if not 0 <= index < count:
        raise IndexError(f"Image {index} of a source of {count}; indices run from 0 to {count - 1}.")
    return index
