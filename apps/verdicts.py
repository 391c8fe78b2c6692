"""Which of the four diseases of dense features a probe image shows at a step of a run, with numbers and pictures."""

from __future__ import annotations

import math
from collections import OrderedDict
from threading import Lock
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from apps.feed import RunFeed
from workbench.analysis.diseases import Verdict, diagnose
from workbench.images import normalize
from workbench.runs import Run

NOISE_IMAGES = 8
LARGEST_WEIGHTS = 64 * 2**20
"""Bytes of a backbone's file up to which it is loaded to look at images of noise; larger ones are judged without."""
MOST_PATCHES = 4096
"""Patches of an image: its matrix of cosines is made in double precision."""
WAIT_SECONDS = 20
"""How long a question waits for those before it; one image is judged at a time, whoever asks."""
KEPT = 32
"""Noise features kept, each of one run and step."""
SCORE = "dense/patch_knn"


class VerdictCache:
    """Verdicts on demand; the features of noise images are kept, because a network must be loaded for them."""

    def __init__(self) -> None:
        self._turn = Lock()
        self._noise: OrderedDict[tuple[str, str, int], Tensor | None] = OrderedDict()

    def encoded(
        self, feed: RunFeed, step: int, image: int, query: tuple[int, int] | None
    ) -> tuple[bytes, dict[str, Any]]:
        """Pictures [H, W] by disease as safetensors, float32, and what belongs to them.

        The latter is {"step", "image", "reference", "noise", "verdicts": [{"disease", "state", "value", "threshold",
        "margin", "numbers", "range"}]}: `reference` is the step whose features count as healthy, or null, `noise`
        whether images of noise took part. A second picture to compare with is called "DISEASE.before". Raises
        LookupError for an image or patch that is not there, ValueError for a grid above MOST_PATCHES or bad features.
        """
        patches = feed.run.probe_features(step).patches
        count, height, width = patches.shape[:3]
        if not 0 <= image < count:
            raise LookupError(f"this run has no probe image {image}; it has {count}, from 0.")
        if height * width > MOST_PATCHES:
            raise ValueError(f"{height} x {width} patches an image are too many to judge; at most {MOST_PATCHES}.")
        if query is not None and not (0 <= query[0] < height and 0 <= query[1] < width):
            raise LookupError(f"there is no patch at row {query[0]}, column {query[1]} of {height} x {width}, from 0.")
        reference = healthy_step(feed)
        healthy = None if reference is None else feed.run.probe_features(reference).patches[image].float()
        if healthy is not None and healthy.shape[:2] != (height, width):
            reference = healthy = None
        if not self._turn.acquire(timeout=WAIT_SECONDS):
            raise ValueError("the server is busy judging other images; ask again in a while.")
        try:
            noise = self._noise_of(feed, step, patches.shape[1:])
            found = diagnose(patches[image].float(), healthy=healthy, noise=noise, query=query)
        finally:
            self._turn.release()
        about = {"step": step, "image": image, "reference": reference, "noise": noise is not None}
        return save(_pictures(found)), about | {"verdicts": [_told(verdict) for verdict in found.values()]}

    def _noise_of(self, feed: RunFeed, step: int, shape: torch.Size) -> Tensor | None:
        key = (feed.identity, feed.version, step)
        if key not in self._noise:
            self._noise[key] = noise_patches(feed.run, step)
            while len(self._noise) > KEPT:
                self._noise.popitem(last=False)
        self._noise.move_to_end(key)
        found = self._noise[key]
        return found if found is not None and found.shape[1:] == shape else None


def healthy_step(feed: RunFeed) -> int | None:
    """The step with probe features at which patch k-NN was highest; None in a run without labels."""
    known = set(feed.run.probe_steps())
    best = max(((value, -step) for step, value in feed.values(SCORE) if step in known), default=None)
    return None if best is None else -best[1]


@torch.inference_mode()
def noise_patches(run: Run, step: int) -> Tensor | None:
    """Patches [8, H, W, D] of images of random pixels, as large as the probes, from the network of that step.

    None where the run keeps no weights of that step, or too large ones, or such that cannot be loaded.
    """
    try:
        size = run.weights_bytes(step)
        if size is None or size > LARGEST_WEIGHTS:
            return None
        images = run.probe_images().images
        normal = run.info["input"]
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (NOISE_IMAGES, *images.shape[1:]), dtype=torch.uint8, generator=generator)
        backbone = run.backbone(step=step)
        return backbone.features(normalize(pixels, normal["mean"], normal["std"])).patches.float()
    except (ValueError, OSError, LookupError, TypeError, RuntimeError):
        return None


def _pictures(found: dict[str, Verdict]) -> dict[str, Tensor]:
    after = {key: verdict.picture for key, verdict in found.items()}
    before = {f"{key}.before": verdict.before for key, verdict in found.items() if verdict.before is not None}
    return {key: picture.float().contiguous() for key, picture in {**after, **before}.items()}


def _told(verdict: Verdict) -> dict[str, Any]:
    numbers = {name: number if math.isfinite(number) else None for name, number in verdict.numbers.items()}
    return {
        "disease": verdict.disease,
        "state": verdict.state,
        "value": verdict.value,
        "threshold": verdict.threshold if math.isfinite(verdict.threshold) else None,
        "margin": verdict.margin,
        "numbers": numbers,
        "range": list(verdict.range),
    }
