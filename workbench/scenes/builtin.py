"""The library that is always there: photographs inside the scikit-image and scikit-learn packages, cut into shapes.

Only files that lie in the installed packages are read; nothing is ever downloaded. No file of theirs is copied here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workbench.images import read_image
from workbench.scenes.library import BACKGROUND, Background, ClassName, Cutout, Library
from workbench.scenes.shapes import SHAPES, shape_alpha

_CUTOUT_SIDE = 160  # pixels
_TEXTURES_PER_SHAPE = 6


@dataclass(frozen=True)
class _Crop:
    """A labelled rectangle of a shipped photograph; box = (left, top, right, bottom) as fractions of its sides."""

    file: str
    box: tuple[float, float, float, float]
    en: str
    zh: str

    @property
    def identity(self) -> str:
        return f"{self.file}@{'-'.join(f'{100 * side:.0f}' for side in self.box)}"


_TEXTURES = (
    _Crop("astronaut.png", (0.22, 0.58, 0.52, 0.98), "space suit", "宇航服"),
    _Crop("astronaut.png", (0.00, 0.00, 0.20, 0.45), "flag", "旗帜"),
    _Crop("brick.png", (0.00, 0.00, 0.50, 0.50), "brick", "砖纹"),
    _Crop("chelsea.png", (0.25, 0.10, 0.72, 0.85), "cat face", "猫脸"),
    _Crop("china.jpg", (0.10, 0.32, 0.50, 0.80), "pagoda", "宝塔"),
    _Crop("china.jpg", (0.58, 0.75, 1.00, 1.00), "shrub", "灌木"),
    _Crop("coffee.png", (0.28, 0.08, 0.62, 0.50), "coffee", "咖啡"),
    _Crop("coffee.png", (0.15, 0.62, 0.55, 0.98), "saucer", "茶碟"),
    _Crop("coins.png", (0.05, 0.05, 0.60, 0.75), "coins", "钱币"),
    _Crop("flower.jpg", (0.37, 0.20, 0.66, 0.72), "dahlia", "大丽花"),
    _Crop("grass.png", (0.00, 0.00, 0.50, 0.50), "straw", "枯草"),
    _Crop("gravel.png", (0.00, 0.00, 0.40, 0.40), "gravel", "碎石"),
    _Crop("hubble_deep_field.jpg", (0.30, 0.30, 0.60, 0.60), "galaxies", "星系"),
    _Crop("ihc.png", (0.00, 0.00, 0.45, 0.45), "tissue", "组织切片"),
    _Crop("motorcycle_left.png", (0.22, 0.35, 0.75, 0.85), "motorcycle", "摩托车"),
    _Crop("retina.jpg", (0.20, 0.20, 0.80, 0.80), "retina", "视网膜"),
    _Crop("rocket.jpg", (0.30, 0.50, 0.75, 1.00), "launch pad", "发射台"),
    _Crop("color.png", (0.18, 0.18, 0.82, 0.82), "rainbow", "彩虹"),
)
_BACKGROUNDS = (
    _Crop("brick.png", (0.50, 0.00, 1.00, 1.00), "a brick wall", "砖墙"),
    _Crop("camera.png", (0.55, 0.50, 1.00, 1.00), "a lawn", "草坪"),
    _Crop("china.jpg", (0.55, 0.00, 1.00, 0.62), "a lake", "湖面"),
    _Crop("coffee.png", (0.00, 0.00, 0.30, 0.45), "a wooden table", "木桌"),
    _Crop("chelsea.png", (0.72, 0.00, 1.00, 0.60), "soft cloth", "软布"),
    _Crop("flower.jpg", (0.00, 0.00, 0.38, 1.00), "dark leaves", "深色叶子"),
    _Crop("grass.png", (0.50, 0.00, 1.00, 1.00), "dry grass", "干草地"),
    _Crop("gravel.png", (0.45, 0.00, 1.00, 1.00), "stones", "石子"),
    _Crop("ihc.png", (0.50, 0.50, 1.00, 1.00), "a stained slide", "染色切片"),
    _Crop("moon.png", (0.00, 0.00, 1.00, 1.00), "the moon", "月球表面"),
    _Crop("motorcycle_right.png", (0.00, 0.00, 0.45, 0.40), "a workshop", "车间"),
    _Crop("rocket.jpg", (0.00, 0.00, 1.00, 0.55), "a night sky", "夜空"),
    _Crop("hubble_deep_field.jpg", (0.62, 0.00, 1.00, 1.00), "deep space", "深空"),
)


@dataclass(frozen=True)
class _CropLoader:
    """Reads one crop of a shipped photograph: uint8 [3, h, w]."""

    path: Path
    box: tuple[float, float, float, float]

    def __call__(self) -> Tensor:
        image = read_image(self.path)
        height, width = image.shape[-2:]
        left, top, right, bottom = self.box
        rows = slice(int(top * height), int(bottom * height))
        return image[:, rows, int(left * width) : int(right * width)].contiguous()


@dataclass(frozen=True)
class _ShapeLoader:
    """Cuts a shape out of a texture: uint8 [4, side, side]."""

    texture: _CropLoader
    shape: str
    variant: int

    def __call__(self) -> Tensor:
        alpha = shape_alpha(self.shape, _CUTOUT_SIDE, self.variant)
        return torch.from_numpy(np.dstack([_square(self.texture), alpha])).permute(2, 0, 1).contiguous()


@lru_cache(maxsize=32)
def _square(texture: _CropLoader) -> np.ndarray:
    """uint8 [side, side, 3]. Held, because several shapes are cut from each texture (80 kB each)."""
    pixels = Image.fromarray(texture().permute(1, 2, 0).numpy())
    return np.asarray(pixels.resize((_CUTOUT_SIDE, _CUTOUT_SIDE), Image.Resampling.BICUBIC))


def builtin_library(*, by: str = "category") -> Library:
    """Ten shapes cut from photographs, with photographs as backgrounds; identity = (shape, texture).

    `by="category"`: class = shape ("star"). `by="label"`: class = texture and shape ("coffee star"). Each shape gets
    six of the textures and each texture serves three or four shapes, so texture alone does not tell the shape.

    Errors: `ValueError` for an unknown `by`, or if the two packages are installed without their photographs.
    """
    if by not in ("category", "label"):
        raise ValueError(f"by={by!r} is not known. Values: 'category' (shape), 'label' (texture and shape).")
    files = _shipped_files()
    textures = [crop for crop in _TEXTURES if crop.file in files]
    backgrounds = [crop for crop in _BACKGROUNDS if crop.file in files]
    if len(textures) < _TEXTURES_PER_SHAPE or not backgrounds:
        raise ValueError(
            "The photographs of scikit-image and scikit-learn were not found in the installed packages "
            f"({len(textures)} textures, {len(backgrounds)} backgrounds). Reinstall both from their wheels, "
            "or use a folder library."
        )
    drawn = [
        (shape, textures[(2 * row + 3 * column) % len(textures)], row * _TEXTURES_PER_SHAPE + column)
        for row, shape in enumerate(SHAPES)
        for column in range(_TEXTURES_PER_SHAPE)
    ]
    names = _class_names(drawn, by)
    index = {name.en: i for i, name in enumerate(names)}
    return Library(
        name="built-in",
        classes=names,
        cutouts=tuple(_cutout(*item, files, index, by) for item in drawn),
        backgrounds=tuple(_background(crop, files) for crop in backgrounds),
    )


def _shipped_files() -> dict[str, Path]:
    """File name -> path of every picture inside the two packages, without importing them."""
    found: dict[str, Path] = {}
    for package, folder in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            found.update({path.name: path for path in sorted((Path(root) / folder).glob("*.*"))})
    return found


def _label(shape: str, texture: _Crop) -> ClassName:
    return ClassName(f"{texture.en} {shape}", f"{texture.zh}{SHAPES[shape][0]}")


def _class_names(drawn: list[tuple[str, _Crop, int]], by: str) -> tuple[ClassName, ...]:
    if by == "category":
        return (BACKGROUND, *(ClassName(shape, entry[0]) for shape, entry in SHAPES.items()))
    return (BACKGROUND, *(_label(shape, texture) for shape, texture, _ in drawn))


def _cutout(shape: str, texture: _Crop, number: int, files: dict[str, Path], index: dict[str, int], by: str) -> Cutout:
    label = _label(shape, texture)
    identity = f"{shape}/{texture.identity}"
    return Cutout(
        load=_ShapeLoader(_CropLoader(files[texture.file], texture.box), shape, number),
        name=identity,
        class_index=index[shape if by == "category" else label.en],
        label=label.en,
        label_zh=label.zh,
        category=shape,
        identity=identity,
    )


def _background(crop: _Crop, files: dict[str, Path]) -> Background:
    return Background(
        load=_CropLoader(files[crop.file], crop.box),
        name=crop.identity,
        label=crop.en,
        label_zh=crop.zh,
        category="photo",
        identity=crop.identity,
    )
