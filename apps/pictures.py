"""The fixed probe images of a run as small PNG files, and what a page must know before it draws them."""

from __future__ import annotations

import hashlib
from threading import Lock
from typing import Any

from workbench.runs import ProbeSet, Run
from workbench.views.encode import encode_image


class Pictures:
    """Probe images of one run, read once: they stay the same for the whole run."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._set: ProbeSet | None = None
        self._about: dict[str, Any] | None = None
        self._encoded: dict[int, bytes] = {}

    def about(self, run: Run, steps: list[int]) -> dict[str, Any] | None:
        """{"count", "grid": [H, W] patches, "image": [h, w] pixels, "dim", "captions", "same"}; None before any step.

        `same` is equal for two runs whose probe images are equal, pixel for pixel.
        """
        with self._lock:
            if self._about is None and steps:
                images = self._images(run)
                patches = run.probe_features(steps[-1]).patches
                self._about = {
                    "count": len(images.images),
                    "grid": list(patches.shape[1:3]),
                    "image": list(images.images.shape[2:]),
                    "dim": patches.shape[3],
                    "captions": images.captions,
                    "same": hashlib.sha256(images.images.contiguous().numpy().tobytes()).hexdigest()[:16],
                }
            return self._about

    def png(self, run: Run, index: int) -> bytes | None:
        """Probe image `index` as PNG, or None when there is no such image."""
        with self._lock:
            images = self._images(run).images
            if not 0 <= index < len(images):
                return None
            if index not in self._encoded:
                self._encoded[index] = encode_image(images[index])
            return self._encoded[index]

    def _images(self, run: Run) -> ProbeSet:
        if self._set is None:
            self._set = run.probe_images()
        return self._set
