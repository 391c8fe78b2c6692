"""What a run looks at: fixed probe images, and labelled scenes that training never draws."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.sources import FolderConfig, ImageSource, ScenesConfig
from training.evaluation.suite import Suite, SuiteConfig
from workbench.run_probes import ProbeSet, check_probes
from workbench.runs import RunWriter
from workbench.scenes import Library, SceneConfig, Scenes

Split = Literal["known", "held-out"]
_TRAIN, _TEST, _PROBES = 101, 102, 103
"""Scene seeds are the data's seed plus these: no scene of training is drawn again."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Which pictures are looked at, and how much is measured."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)
    scenes: ScenesConfig | None = None
    """Where labels come from; None takes the training data's cut-outs, or the built-in ones for a plain folder."""
    scene: SceneConfig = field(default_factory=SceneConfig)
    """How evaluation scenes and probes are drawn, whatever training scenes look like; sizes are set here below."""
    probes: int = 8
    """Number of probe images."""
    probe_size: tuple[int, int] = (112, 112)
    """(h, w) in pixels, multiples of the patch size."""

    def __post_init__(self) -> None:
        if self.probes < 1 or min(self.probe_size) < 1:
            raise ValueError(
                f"EvaluationConfig has {self.probes} probes of {self.probe_size} pixels; at least 1 of each is needed."
            )

    @classmethod
    def quick(cls, **fields) -> EvaluationConfig:
        """Small enough to run every few seconds of a CPU training; standard errors are about 3 points."""
        suite = SuiteConfig(train_scenes=80, test_scenes=60, bank=240, queries=120, probe_iterations=25, lidar_images=0)
        return cls(suite=suite, **fields)


class EvaluationPlan:
    """Scenes and probe images of a run, drawn once."""

    def __init__(
        self,
        config: EvaluationConfig,
        data: ScenesConfig | FolderConfig,
        *,
        patch_size: int,
        source: ImageSource | None = None,
    ):
        """`source` is what `data` built, when that was done already: a large folder takes long to list."""
        self.config, self.patch_size = config, patch_size
        self.scenes = config.scenes or (data if isinstance(data, ScenesConfig) else ScenesConfig())
        self.known, self.held_out = self.scenes.libraries()
        if isinstance(data, FolderConfig):
            self.probes = self._folder_probes(source if source is not None else data.build())
        else:
            self.probes = self._scene_probes()
        check_probes(self.probes)

    def suite(
        self, mean: tuple[float, ...], std: tuple[float, ...], split: Split = "known", *, offset: int = 0
    ) -> Suite:
        """The evaluations on new scenes; `split` chooses the identities they are *tested* on.

        Another `offset` draws other scenes: 0 is what a run looks at while it trains, and what people choose recipes
        by, so a report takes another one. The linear probe and the banks of neighbours always learn from known
        identities. Raises ValueError when the library holds nothing out.
        """
        sizes = self.config.suite
        tested = self.known if split == "known" else self.held_out
        if tested is None:
            raise ValueError(f"library {self.known.name!r} holds no identities out; set --data.held-out above 0")
        learn, test = self._draw(self.known, _TRAIN + offset), self._draw(tested, _TEST + offset)
        return Suite(
            train=[learn[index] for index in range(sizes.train_scenes)],
            test=[test[index] for index in range(sizes.test_scenes)],
            bank=[learn.single(index) for index in range(sizes.bank)],
            queries=[test.single(index) for index in range(sizes.queries)],
            classes=len(self.known.classes),
            patch_size=self.patch_size,
            mean=mean,
            std=std,
            config=sizes,
        )

    def publish(self, writer: RunWriter) -> None:
        """Write the probe images into the run directory."""
        probes = self.probes
        writer.probe_images(
            probes.images,
            patch_size=self.patch_size,
            masks=probes.masks,
            captions=probes.captions,
            classes=probes.classes,
        )

    def _draw(self, library: Library, stream: int) -> Scenes:
        side = self.config.suite.size
        return Scenes(library, replace(self.config.scene, size=(side, side)), self.scenes.seed + stream)

    def _scene_probes(self) -> ProbeSet:
        scenes = Scenes(self.known, replace(self.config.scene, size=self.config.probe_size), self.scenes.seed + _PROBES)
        drawn = [scenes[index] for index in range(self.config.probes)]
        return ProbeSet(
            images=torch.stack([scene.image for scene in drawn]),
            masks=torch.stack([scene.classes for scene in drawn]),
            captions=[{"en": scene.caption_en, "zh": scene.caption_zh} for scene in drawn],
            classes=[{"en": name.en, "zh": name.zh} for name in self.known.classes],
            patch_size=self.patch_size,
        )

    def _folder_probes(self, source: ImageSource) -> ProbeSet:
        count = min(self.config.probes, len(source))
        images = torch.stack(
            [_fill(source[index * len(source) // count], self.config.probe_size) for index in range(count)]
        )
        return ProbeSet(images=images, masks=None, captions=None, classes=None, patch_size=self.patch_size)


def _fill(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, h, w] resized (antialiased bicubic) and centre-cropped to exactly `size` (h, w)."""
    height, width = size
    scale = max(height / image.shape[1], width / image.shape[2])
    sides = (max(height, round(image.shape[1] * scale)), max(width, round(image.shape[2] * scale)))
    resized = F.interpolate(image[None], sides, mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
    return resized[:, top : top + height, left : left + width].contiguous()
