"""Where things stand in a scene: positions, order and light, drawn from one random generator; no pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from workbench.scenes.pyramid import Affine, similarity, translation
from workbench.scenes.scene import SceneConfig

_PLACEMENT_TRIES = 12
_SLACK = 0.15  # share of an object's extent that may leave the picture on each side
_LONGEST = 0.95  # of the picture's short side
_CROWDING = -0.2  # n objects are drawn n ** -0.2 times as large as one

Size = tuple[float, float]
"""(w, h) in pixels."""


@dataclass(frozen=True)
class Placement:
    """One object of a layout."""

    cutout: int
    centre: np.ndarray
    """[2], (x, y) in frame pixels."""
    matrix: Affine
    """Maps cut-out pixels to frame pixels."""
    gain: np.ndarray
    """[3], multiplies its colours."""


@dataclass(frozen=True)
class Layout:
    """A whole scene before any pixel. `placements` run from front to back."""

    background: int
    background_matrix: Affine
    background_contrast: float
    placements: tuple[Placement, ...]
    gain: np.ndarray
    """[3], multiplies the finished picture."""
    offset: np.ndarray
    """[3], added after `gain`, in grey levels (0 to 255)."""
    wording: int
    """Picks the caption's wording."""


def draw_layout(
    rng: np.random.Generator,
    config: SceneConfig,
    groups: list[list[int]],
    backgrounds: int,
    cutout_size: Callable[[int], Size],
    background_size: Callable[[int], Size],
    *,
    single: bool = False,
) -> Layout:
    """Draw a layout. `groups` lists the cut-out numbers of each class that has any; sizes are asked for by number."""
    background = int(rng.integers(backgrounds))
    background_matrix = _draw_background(rng, config, background_size(background))
    contrast = float(rng.uniform(*config.background_contrast))
    gain, offset = _draw_light(rng, config.light)
    fewest, most = (1, 1) if single else config.objects
    count = int(rng.integers(fewest, most + 1))
    crowding = count**_CROWDING
    placements: list[Placement] = []
    boxes: list[np.ndarray] = []
    for number in range(count):
        cutout = _draw_cutout(rng, config, groups)
        share = float(rng.uniform(*(config.single_scale if single else config.object_scale))) * crowding
        turned, extent = _draw_pose(rng, config, cutout_size(cutout), share)
        box, overlap = _draw_box(rng, config, extent, boxes)
        own_gain, _ = _draw_light(rng, config.light / 2)
        if overlap > config.max_overlap and number >= fewest:
            continue
        boxes.append(box)
        centre = (box[:2] + box[2:]) / 2
        placements.append(Placement(cutout, centre, translation(*centre) @ turned, own_gain))
    return Layout(
        background, background_matrix, contrast, tuple(placements), gain, offset, wording=int(rng.integers(1 << 16))
    )


def move(rng: np.random.Generator, config: SceneConfig, layout: Layout) -> tuple[Layout, list[Affine], Affine]:
    """The layout after motion, the map (frame to frame) of every object in order, and that of the background."""
    height, width = config.size
    middle = (width / 2, height / 2)
    camera = _draw_motion(rng, config.camera, config, middle)
    motions = [
        camera @ _draw_motion(rng, config.motion, config, (placement.centre[0], placement.centre[1]))
        for placement in layout.placements
    ]
    moved = tuple(
        replace(placement, matrix=motion @ placement.matrix, centre=(motion @ [*placement.centre, 1.0])[:2])
        for placement, motion in zip(layout.placements, motions, strict=True)
    )
    second = replace(layout, placements=moved, background_matrix=camera @ layout.background_matrix)
    return second, motions, camera


def _draw_cutout(rng: np.random.Generator, config: SceneConfig, groups: list[list[int]]) -> int:
    if config.balance == "class":
        group = groups[int(rng.integers(len(groups)))]
    else:
        group = [cutout for members in groups for cutout in members]
    return group[int(rng.integers(len(group)))]


def _draw_pose(rng: np.random.Generator, config: SceneConfig, size: Size, share: float) -> tuple[Affine, np.ndarray]:
    """Map from cut-out pixels to a frame centred on the object, and the turned object's extent [2] (w, h).

    The geometric mean of the cut-out's sides becomes `share` of the picture's short side.
    """
    width, height = size
    short = min(config.size)
    scale = share * short / math.sqrt(width * height)
    scale = min(scale, _LONGEST * short / max(width, height))
    degrees = float(rng.uniform(-1, 1)) * config.rotation_degrees
    flip = bool(rng.random() < 0.5) and config.flip
    matrix = similarity(scale, degrees, flip=flip) @ translation(-width / 2, -height / 2)
    extent = np.abs(matrix[:2, :2]) @ np.array([width, height])
    return matrix, extent


def _draw_box(
    rng: np.random.Generator, config: SceneConfig, extent: np.ndarray, others: list[np.ndarray]
) -> tuple[np.ndarray, float]:
    """The first box [4] that overlaps the others little enough, or the best of a few; and its overlap."""
    frame = np.array([config.size[1], config.size[0]], dtype=float)
    low = np.minimum(extent * (0.5 - _SLACK), frame / 2)
    best: tuple[np.ndarray, float] | None = None
    for _ in range(_PLACEMENT_TRIES):
        centre = rng.uniform(low, frame - low)
        box = np.concatenate([centre - extent / 2, centre + extent / 2])
        overlap = max((_overlap(box, other) for other in others), default=0.0)
        if best is None or overlap < best[1]:
            best = (box, overlap)
        if overlap <= config.max_overlap:
            break
    assert best is not None
    return best


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Shared area of two boxes [4] as a share of the smaller one."""
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _draw_background(rng: np.random.Generator, config: SceneConfig, size: Size) -> Affine:
    """Map from photograph to frame, zoomed so that the frame and what the camera may uncover lie inside."""
    height, width = config.size
    margin = _camera_reach(config)
    fit = min(size[0] / (width + 2 * margin), size[1] / (height + 2 * margin))  # photo pixels a frame pixel
    step = fit * float(rng.uniform(0.6, 1.0))
    spare = np.array([size[0] - step * (width + 2 * margin), size[1] - step * (height + 2 * margin)])
    corner = rng.uniform(0, 1, 2) * np.maximum(spare, 0) + step * margin
    flip = bool(rng.random() < 0.5) and config.flip
    matrix = np.diag([1 / step, 1 / step, 1.0]) @ translation(-corner[0], -corner[1])
    return translation(width, 0) @ np.diag([-1.0, 1.0, 1.0]) @ matrix if flip else matrix


def _camera_reach(config: SceneConfig) -> float:
    """Pixels by which the camera's motion can look beyond the frame."""
    height, width = config.size
    turn = math.radians(100 * config.camera)
    return math.hypot(height, width) / 2 * (turn + config.camera) * 1.1 + 2 * config.camera * min(height, width)


def _draw_light(rng: np.random.Generator, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Gain [3] and offset [3] (grey levels) of a change of brightness, contrast about mid-grey, and colour cast."""
    brightness, contrast = 1 + strength * rng.uniform(-1, 1, 2)
    cast = 1 + strength / 2 * rng.uniform(-1, 1, 3)
    return brightness * contrast * cast, np.full(3, 127.5 * (1 - contrast))


def _draw_motion(rng: np.random.Generator, amount: float, config: SceneConfig, pivot: tuple[float, float]) -> Affine:
    """A similarity of the frame about `pivot`: shift, growth and turn in proportion to `amount`."""
    shift = rng.uniform(-1, 1, 2) * amount * min(config.size)
    growth = (1 + amount) ** float(rng.uniform(-1, 1))
    degrees = 100 * amount * float(rng.uniform(-1, 1))
    about = translation(*pivot) @ similarity(growth, degrees) @ translation(-pivot[0], -pivot[1])
    return translation(*shift) @ about
