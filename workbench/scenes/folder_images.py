"""A plain folder of images as a source."""

from __future__ import annotations

import operator
import os
from pathlib import Path

from torch import Tensor

from workbench.images import ImageError, list_images, read_image


class FolderImages:
    """Every image under a folder, recursively, in sorted order; no labels.

    `images[i]` is uint8 [3, h, w] at the file's own size. A bad file is found when it is first read: it is added to
    `bad` as (path, reason) and the next readable image of the list stands in for it, always the same one. With loader
    workers each worker keeps its own `bad`.

    Errors: `ImageError` for a missing folder, a folder without images, and when no image of it can be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_pixels: int = 50_000_000) -> None:
        self.root = Path(path)
        self.paths = list_images(path)
        self.max_pixels = max_pixels
        self.bad: list[tuple[Path, str]] = []
        self._bad_numbers: set[int] = set()

    def __len__(self) -> int:
        """Files found, bad ones included."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        start = operator.index(index)
        if not -len(self) <= start < len(self):
            raise IndexError(f"Image {start} of {len(self)} in {self.root}; allowed: 0 to {len(self) - 1}.")
        for number in (*range(start % len(self), len(self)), *range(start % len(self))):
            if number in self._bad_numbers:
                continue
            try:
                return read_image(self.paths[number], max_pixels=self.max_pixels)
            except ImageError as error:
                self._bad_numbers.add(number)
                self.bad.append((self.paths[number], str(error)))
        raise ImageError(
            f"None of the {len(self)} images in {self.root} can be read. First: {self.bad[0][1]} "
            "Copy the images again, or give another folder."
        )
