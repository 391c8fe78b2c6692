"""Features of the same images at several steps, held in memory: a film for the renderer without a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.analysis.pca import Basis, color_range, explained, fit_pca, project
from workbench.features import Features
from workbench.views.encode import Transport, encode_basis, encode_features, encode_image
from workbench.views.payloads import Summary


class FeatureSteps:
    """A `PayloadSource` over features in memory, for an own training loop, a notebook, or two backbones in turn.

    One PCA basis is fitted on the images at all steps, so that colours mean the same throughout.

    Args:
        images: [I, 3, h, w], uint8 or float in [0, 1]. features: {step: Features of the I images}.
        captions: one text or {"en", "zh"} for each image. series: {name: {step: value}}, drawn on the timeline.
        events: {"step", "level", "kind", "text"}. run: {"name", "phase", "status", "steps"}, for the title.
        colours: a basis of three components and its limits [3, 2], in place of the one fitted here.
    """

    def __init__(
        self,
        images: Tensor,
        features: dict[int, Features],
        *,
        captions: Sequence[Any] | None = None,
        series: dict[str, dict[int, float]] | None = None,
        events: Sequence[dict[str, Any]] = (),
        run: dict[str, Any] | None = None,
        colours: tuple[Basis, Tensor] | None = None,
    ) -> None:
        _check(images, features, captions)
        self.images = images
        self.features = dict(sorted(features.items()))
        self.captions = None if captions is None else [_both_languages(caption) for caption in captions]
        self.series = series or {}
        self.events = sorted(events, key=lambda event: event["step"])
        self.run = run
        self._basis = colours

    def summary(self) -> Summary:
        first = next(iter(self.features.values()))
        return {
            "run": self.run,
            "probes": {
                "count": len(self.images),
                "grid": first.grid,
                "image": (self.images.shape[2], self.images.shape[3]),
                "dim": first.patches.shape[3],
                "captions": self.captions,
            },
            "steps": list(self.features),
            "series": {
                name: {"step": sorted(values), "value": [values[step] for step in sorted(values)]}
                for name, values in self.series.items()
            },
            "events": list(self.events),
        }

    def image(self, index: int) -> bytes:
        return encode_image(self.images[index])

    def probes(self, step: int, dtype: Transport) -> bytes:
        if step not in self.features:
            raise ValueError(f"no features of step {step}; there are steps {', '.join(map(str, self.features))}.")
        return encode_features(self.features[step], dtype)

    def basis(self) -> tuple[dict[str, Any], bytes | None]:
        if self._basis is None:
            tokens = torch.cat([features.patches.flatten(0, 2).float().cpu() for features in self.features.values()])
            basis = fit_pca(tokens)
            self._basis = basis, color_range(project(basis, tokens))
        basis, limits = self._basis
        return {"steps": list(self.features), "explained": explained(basis)}, encode_basis(basis, limits)


def _both_languages(caption: Any) -> dict[str, str]:
    return {"en": str(caption), "zh": str(caption)} if not isinstance(caption, dict) else dict(caption)


def _check(images: Tensor, features: dict[int, Features], captions: Sequence[Any] | None) -> None:
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images are [I, 3, h, w], got {tuple(images.shape)}.")
    shapes = {tuple(step.patches.shape) for step in features.values()}
    if len(shapes) != 1 or next(iter(shapes))[0] != len(images):
        raise ValueError(
            f"every step needs patches [I, H, W, D] of one shape for the {len(images)} images, got {sorted(shapes)}."
        )
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images; give one each or none.")
