"""An endless, stored-nowhere sequence of labelled scenes."""

from __future__ import annotations

import math
import operator

import numpy as np
import torch

from workbench.scenes.captions import captions
from workbench.scenes.compose import Layer, drop_hidden, flow_between, instance_mask, paint, warp_objects
from workbench.scenes.layout import Layout, draw_layout, move
from workbench.scenes.library import Library
from workbench.scenes.pyramid import Pyramid, PyramidCache, background_pyramid, cutout_pyramid
from workbench.scenes.scene import Scene, SceneConfig, ScenePair

_SCENE, _SINGLE, _MOTION = 0, 1, 2  # random streams


class Scenes:
    """`scenes[index]` draws scene number `index` (0, 1, 2, … without end) of a library.

    A scene depends on (library, config, seed, index) alone: not on the order of asking, the process, or the machine's
    load. Nothing is stored but a bounded cache of decoded pictures at reduced resolution; pickling leaves it behind.
    """

    def __init__(
        self, library: Library, config: SceneConfig | None = None, seed: int = 0, *, cache_bytes: int = 128 << 20
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}.")
        self.library = library
        self.config = config or SceneConfig()
        self.seed = seed
        self._cache = PyramidCache(cache_bytes)
        members: dict[int, list[int]] = {index: [] for index in library.present}
        for number, cutout in enumerate(library.cutouts):
            members[cutout.class_index].append(number)
        self._groups = list(members.values())

    def __getitem__(self, index: int) -> Scene:
        """Scene `index`; `config.objects` objects."""
        return self._finish(*self._drawn(_SCENE, index))

    def single(self, index: int) -> Scene:
        """Scene `index` of a second, independent sequence: one large object, whose class is `labels[0]`."""
        return self._finish(*self._drawn(_SINGLE, index))

    def pair(self, index: int) -> ScenePair:
        """Scene `index`, the same scene after a motion, and the dense correspondences between the two."""
        layout, layers = self._drawn(_SCENE, index)
        moved, motions, camera = move(self._generator(_MOTION, index), self.config, layout)
        first = self._finish(layout, layers)
        second = self._finish(moved, warp_objects(moved.placements, self.config.size, self._cutout))
        flow, valid = flow_between(first.instances.numpy(), second.instances.numpy(), motions, camera)
        return ScenePair(first, second, torch.from_numpy(flow), torch.from_numpy(valid))

    def _generator(self, stream: int, index: int) -> np.random.Generator:
        number = operator.index(index)
        if number < 0:
            raise IndexError(f"Scene numbers start at 0 and have no end; got {number}.")
        return np.random.default_rng([self.seed, stream, number])

    def _drawn(self, stream: int, index: int) -> tuple[Layout, list[Layer]]:
        """Layout and warped objects of a scene, without those that cannot be seen."""
        layout = draw_layout(
            self._generator(stream, index),
            self.config,
            self._groups,
            len(self.library.backgrounds),
            lambda number: self._cutout(number).size,
            lambda number: self._background(number).size,
            single=stream == _SINGLE,
        )
        return drop_hidden(layout, warp_objects(layout.placements, self.config.size, self._cutout), self.config.size)

    def _finish(self, layout: Layout, layers: list[Layer]) -> Scene:
        image = paint(layout, layers, self.config.size, self._background(layout.background))
        instances = instance_mask(layers, self.config.size)
        objects = [self.library.cutouts[placement.cutout] for placement in layout.placements]
        labels = tuple(item.class_index for item in objects)
        english, chinese = captions(objects, self.library.backgrounds[layout.background], layout.wording)
        return Scene(
            image=torch.from_numpy(image),
            classes=torch.from_numpy(np.array([0, *labels])[instances]),
            instances=torch.from_numpy(instances),
            labels=labels,
            depth_order=tuple(range(1, len(labels) + 1)),
            caption_en=english,
            caption_zh=chinese,
            identities=tuple(item.identity for item in objects),
        )

    def _cutout(self, number: int) -> Pyramid:
        longest = 2 * min(self.config.size)
        cutout = self.library.cutouts[number]
        return self._cache.get(
            f"object {number}", lambda: cutout_pyramid(cutout.rgba.permute(1, 2, 0).numpy(), longest)
        )

    def _background(self, number: int) -> Pyramid:
        background = self.library.backgrounds[number]
        short = math.ceil(1.7 * max(self.config.size))  # a frame pixel is then at least a picture pixel, zoom included
        return self._cache.get(
            f"background {number}", lambda: background_pyramid(background.rgb.permute(1, 2, 0).numpy(), short)
        )
