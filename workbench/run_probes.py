"""The fixed probe images of a run as PNG files, with masks, captions and class names when they are known."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workbench.plain_files import read_plain
from workbench.run_files import sync_folder, temporary_path
from workbench.run_layout import parse_json

PROBES_FILE = "probes.json"
LARGEST_SIDE = 8192
"""Pixels; a longer side in probes.json is refused before anything is decoded."""


class ProbeSet(NamedTuple):
    """The probe images of a run, exactly as the backbone sees them (before normalisation)."""

    images: Tensor
    """uint8 [I, 3, h, w] RGB; row 0 is the top; h and w are multiples of patch_size."""
    masks: Tensor | None
    """int64 [I, h, w], class index of each pixel, 0 is background; None when unknown."""
    captions: list[dict[str, str]] | None
    """One {"en": ..., "zh": ...} an image, or None."""
    classes: list[dict[str, str]] | None
    """Name of each class index, {"en": ..., "zh": ...}; None when there are no masks or no names."""
    patch_size: int
    """Pixels."""


def check_probes(probes: ProbeSet) -> None:
    """Raise ValueError unless shapes, types and counts of `probes` fit the run format."""
    images, masks, captions, classes, patch_size = probes
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(
            f"probe images must be uint8 [I, 3, h, w] with I > 0, got {images.dtype} {tuple(images.shape)}."
        )
    height, width = images.shape[2:]
    if patch_size < 1 or height % patch_size or width % patch_size or max(height, width) > LARGEST_SIDE:
        raise ValueError(
            f"probe images are {height} x {width} pixels; sides must be multiples of the patch size {patch_size}, "
            f"at most {LARGEST_SIDE}."
        )
    if masks is not None:
        if masks.shape != (len(images), height, width):
            raise ValueError(f"probe masks must be {(len(images), height, width)}, got {tuple(masks.shape)}.")
        if masks.min() < 0 or masks.max() > 255:
            raise ValueError(f"class indices must lie in 0..255, got {masks.min().item()}..{masks.max().item()}.")
        if classes is not None and masks.max() >= len(classes):
            raise ValueError(f"class {masks.max().item()} has no name: only {len(classes)} classes are named.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} probe images but {len(captions)} captions.")


def write_probes(folder: Path, probes: ProbeSet) -> None:
    """Write `probes` as the new folder `folder`, whole or not at all; its parent must exist."""
    check_probes(probes)
    temporary = temporary_path(folder.parent)
    temporary.mkdir()
    try:
        for index, image in enumerate(probes.images):
            _write_synced(temporary / f"{index:03d}.png", _png(image.permute(1, 2, 0)))
        for index, mask in enumerate(probes.masks if probes.masks is not None else ()):
            _write_synced(temporary / f"{index:03d}.mask.png", _png(mask.to(torch.uint8)))
        _write_synced(temporary / PROBES_FILE, json.dumps(_description(probes), ensure_ascii=False).encode())
        sync_folder(temporary)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_probes(folder: Path) -> ProbeSet:
    """Read the folder that `write_probes` wrote. Raises ValueError naming the file that is missing or wrong."""
    if not folder.is_dir():
        raise ValueError(f"no probe images at {folder}; the run has not written them (yet).")
    about = _read_description(folder / PROBES_FILE)
    count, height, width = about["count"], about["height"], about["width"]
    images = np.stack([_read_png(folder / f"{index:03d}.png", "RGB", height, width) for index in range(count)])
    masks = None
    if (folder / "000.mask.png").exists():
        planes = [_read_png(folder / f"{index:03d}.mask.png", "L", height, width) for index in range(count)]
        masks = torch.from_numpy(np.stack(planes)).long()
    probes = ProbeSet(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        masks=masks,
        captions=about.get("captions"),
        classes=about.get("classes"),
        patch_size=about["patch_size"],
    )
    check_probes(probes)
    return probes


def same_probes(a: ProbeSet, b: ProbeSet) -> bool:
    """Whether two probe sets hold the same pixels, masks and names."""
    masks_equal = a.masks is b.masks if a.masks is None or b.masks is None else torch.equal(a.masks, b.masks)
    return masks_equal and a[2:] == b[2:] and torch.equal(a.images, b.images)


def _description(probes: ProbeSet) -> dict[str, Any]:
    count, _, height, width = probes.images.shape
    sizes = {"count": count, "height": height, "width": width, "patch_size": probes.patch_size}
    return {**sizes, "captions": probes.captions, "classes": probes.classes}


def _read_description(path: Path) -> dict[str, Any]:
    try:
        about = parse_json(read_plain(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    whole = ("count", "height", "width", "patch_size")
    if not isinstance(about, dict) or not all(type(about.get(key)) is int and about[key] > 0 for key in whole):
        raise ValueError(f"{path} must give whole numbers above 0 for {', '.join(whole)}.")
    for key in ("captions", "classes"):
        names = about.get(key)
        if names is not None and not (isinstance(names, list) and all(isinstance(name, dict) for name in names)):
            raise ValueError(f"{path}: {key} must be null or a list of objects with text under en and zh.")
    return about


def _png(pixels: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.cpu().contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_png(path: Path, mode: str, height: int, width: int) -> np.ndarray:
    if max(height, width) > LARGEST_SIDE:
        raise ValueError(f"{path.parent / PROBES_FILE} says {height} x {width} pixels; at most {LARGEST_SIDE} a side.")
    try:
        with Image.open(io.BytesIO(read_plain(path)), formats=["PNG"]) as image:
            if image.size != (width, height) or image.mode != mode:
                raise ValueError(f"it is {image.mode} {image.size}, expected {mode} {(width, height)}")
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"cannot read probe image {path}: {error}") from None
