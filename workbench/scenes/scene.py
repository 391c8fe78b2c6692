"""What a scene is, and what it is drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Scene(NamedTuple):
    """One labelled picture of n objects. Instances are numbered 1..n from front to back; 0 is the background."""

    image: Tensor
    """uint8 [3, h, w], RGB; row 0 is the top."""
    classes: Tensor
    """int64 [h, w], index into `Library.classes`; 0 is the background."""
    instances: Tensor
    """int64 [h, w], 0 or the number of the front-most object whose coverage of the pixel is at least one half."""
    labels: tuple[int, ...]
    """Class index of instance 1, …, n."""
    depth_order: tuple[int, ...]
    """Instance numbers from the nearest to the farthest: (1, …, n); the background lies behind all."""
    caption_en: str
    caption_zh: str
    identities: tuple[str, ...]
    """Identity of instance 1, …, n."""


class ScenePair(NamedTuple):
    """The same objects before and after a known motion; instance k of `first` is instance k of `second`."""

    first: Scene
    second: Scene
    flow: Tensor
    """float32 [h, w, 2], (dx, dy) in pixels: what is at (x, y) of `first` is at (x + dx, y + dy) of `second`."""
    valid: Tensor
    """bool [h, w]: that place lies inside `second` and the same surface is visible there."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How scenes are drawn. Ranges are (low, high), drawn from uniformly."""

    size: tuple[int, int] = (112, 112)
    """(h, w) in pixels, each at least 16."""
    objects: tuple[int, int] = (1, 4)
    """Fewest and most objects; crowding or hiding may leave fewer than drawn, never none."""
    object_scale: tuple[float, float] = (0.3, 0.65)
    """Geometric mean of an object's sides, as a share of the picture's short side, times n ** -0.2 for n objects."""
    single_scale: tuple[float, float] = (0.55, 0.85)
    """The same for `Scenes.single`."""
    rotation_degrees: float = 30.0
    """Objects are turned by up to this much either way."""
    flip: bool = True
    """Mirror objects and backgrounds left to right, half of the time."""
    light: float = 0.2
    """Strength in [0, 1) of brightness, contrast and colour-cast changes, of the scene and of each object; 0 is off."""
    background_contrast: tuple[float, float] = (0.15, 0.5)
    """Backgrounds are faded towards their mean colour: 1 keeps them, 0 leaves one colour."""
    max_overlap: float = 0.35
    """Largest share of the smaller of two bounding boxes that may be shared."""
    balance: str = "class"
    """"class": every class equally often. "cutout": every cut-out equally often."""
    motion: float = 0.12
    """Pairs: each object moves up to this share of the short side each way, grows by up to this factor, and turns by up
    to 100 times as many degrees."""
    camera: float = 0.04
    """Pairs: the same for the whole picture, on top."""

    def __post_init__(self) -> None:
        _check(min(self.size) >= 16 and len(self.size) == 2, "size", self.size, "(h, w), each at least 16 pixels")
        _check(1 <= self.objects[0] <= self.objects[1] <= 64, "objects", self.objects, "1 <= fewest <= most <= 64")
        for name in ("object_scale", "single_scale"):
            low, high = getattr(self, name)
            _check(0.05 <= low <= high <= 1, name, (low, high), "0.05 <= low <= high <= 1")
        low, high = self.background_contrast
        _check(0 <= low <= high <= 2, "background_contrast", (low, high), "0 <= low <= high <= 2")
        _check(0 <= self.rotation_degrees <= 180, "rotation_degrees", self.rotation_degrees, "[0, 180]")
        _check(0 <= self.light < 1, "light", self.light, "[0, 1)")
        _check(0 <= self.max_overlap <= 1, "max_overlap", self.max_overlap, "[0, 1]")
        _check(0 <= self.motion <= 0.5, "motion", self.motion, "[0, 0.5]")
        _check(0 <= self.camera <= 0.2, "camera", self.camera, "[0, 0.2]")
        _check(self.balance in ("class", "cutout"), "balance", self.balance, "'class' or 'cutout'")


def _check(good: bool, name: str, value: object, allowed: str) -> None:
    if not good:
        raise ValueError(f"SceneConfig.{name} is {value!r}; allowed: {allowed}.")
