"""Maps of image files: PCA, foreground, similarity and norms, as a sheet (PNG, SVG) or as numbers (npz)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

import workbench
from workbench.analysis.foreground import foreground_by_pca
from workbench.analysis.pca import Basis, choose, color_range, explained, fit_pca, project, to_rgb
from workbench.analysis.similarity import unit
from workbench.images import normalize, read_image, resize_to_patches
from workbench.loading import load_backbone
from workbench.origin import input_statistics
from workbench.tiles import tiled_features
from workbench.views.colours import colour
from workbench.views.sheet import Sheet, sheet_png, sheet_svg

Kind = Literal["pca", "foreground", "similarity", "norm"]
FORMATS = (".png", ".svg", ".npz")


class Maps(NamedTuple):
    """The maps of I images, each at the grid of its own image."""

    images: list[Tensor]
    """uint8 [3, h, w], as the backbone saw them before normalisation."""
    maps: dict[Kind, list[np.ndarray]]
    """pca: colours uint8 [H, W, 3], one basis for all images; foreground: bool [H, W]; similarity: cosine to the
    queried patch of the first image, float32 [H, W]; norm: length of each patch, float32 [H, W]."""
    query: tuple[int, int]
    """(row, column) of the patch of the first image that similarity asks."""
    about: dict[str, Any]
    """Backbone, layer, components with their share of the variance, code version, images with their SHA-256."""


def make_maps(
    paths: Sequence[Path],
    spec: str,
    *,
    kinds: Sequence[Kind] = ("pca", "similarity", "norm"),
    at: tuple[float, float] = (0.5, 0.5),
    components: Sequence[int] = (0, 1, 2),
    short_side: int | None = None,
    layer: int = -1,
    device: str = "cpu",
) -> Maps:
    """Maps of the image files `paths` by the backbone `spec`; `at` is (x, y) in [0, 1] on the first image.

    One PCA basis over all images, `components` counted from 0. With "foreground" the basis is fitted on, and colours
    shown for, the patches in front only; the rest is black. Raises ValueError for a bad image or choice.
    """
    if not paths or not kinds or set(kinds) - set(get_args(Kind)):
        raise ValueError(f"maps need an image and a kind or more of {', '.join(get_args(Kind))}; got {list(kinds)}.")
    if not all(0 <= place <= 1 for place in at) or len(components) != 3 or min(components) < 0:
        raise ValueError(
            f"the patch lies at x and y in 0 to 1, and components are three from 0; got {at}, {components}."
        )
    backbone = load_backbone(spec, device=device)
    mean, std, _ = input_statistics(spec, backbone)
    images, grids, tile = [], [], max(1, 512 // backbone.patch_size) * backbone.patch_size
    for path in paths:
        pixels = resize_to_patches(read_image(path), backbone.patch_size, short_side=short_side)
        ready = normalize(pixels[None], mean, std)[0].to(device)
        grids.append(tiled_features(backbone, ready, tile=tile, margin=64, layer=layer).patches[0].float().cpu())
        images.append(pixels)
    height, width = grids[0].shape[:2]
    query = min(int(at[1] * height), height - 1), min(int(at[0] * width), width - 1)
    basis, inside = _basis(grids, components, masked="foreground" in kinds)
    maps: dict[Kind, list[np.ndarray]] = {}
    for kind in kinds:
        if kind == "pca":
            maps[kind] = _colours(grids, basis, inside)
        elif kind == "foreground":
            maps[kind] = [mask.numpy() for mask in inside]
        elif kind == "similarity":
            asked = unit(grids[0])[query]
            maps[kind] = [(unit(grid) @ asked).clamp(-1, 1).numpy() for grid in grids]
        else:
            maps[kind] = [grid.norm(dim=-1).numpy() for grid in grids]
    about = {
        "backbone": spec,
        "layer": layer,
        "components": list(components),
        "explained": explained(basis),
        "query": {"image": 0, "row": query[0], "column": query[1]},
        "code_version": workbench.__version__,
        "images": [_named(path, grid) for path, grid in zip(paths, grids, strict=True)],
    }
    return Maps(images, maps, query, about)


def write_maps(found: Maps, out: Path) -> None:
    """Write maps as a sheet (.png, .svg) or as numbers (.npz: `0.similarity` and so on, and `about`) to a new file."""
    if out.suffix == ".npz":
        arrays: dict[str, Any] = {
            f"{i}.{kind}": map_ for kind, maps in found.maps.items() for i, map_ in enumerate(maps)
        }
        with out.open("xb") as file:
            np.savez(file, about=np.array(json.dumps(found.about)), **arrays)
        return
    sheet = maps_sheet(found)
    content = sheet_png(sheet) if out.suffix == ".png" else sheet_svg(sheet).encode()
    with out.open("xb") as file:
        file.write(content)


def maps_sheet(found: Maps) -> Sheet:
    """A row an image, a column a map; headings state the range of the colours."""
    lengths = np.concatenate([map_.ravel() for map_ in found.maps.get("norm", [np.zeros(1)])])
    low, high = float(lengths.min()), max(float(lengths.max()), float(lengths.min()) + 1e-6)
    share = 100 * sum(found.about["explained"])
    names = ", ".join(str(component + 1) for component in found.about["components"])
    headings = {
        "pca": f"PCA {names}: {share:.0f} % of the variance",
        "foreground": "foreground (PCA 1, Otsu)",
        "similarity": "cosine to the red patch, 0 to 1",
        "norm": f"norm, {low:.1f} to {high:.1f}",
    }
    rows = []
    for i, image in enumerate(found.images):
        drawn = [np.ascontiguousarray(image.permute(1, 2, 0).numpy())]
        for kind, maps in found.maps.items():
            if kind == "similarity":
                drawn.append(colour(maps[i], 0, 1))
            elif kind == "norm":
                drawn.append(colour(maps[i], low, high))
            else:
                drawn.append(maps[i] if kind == "pca" else np.repeat(maps[i][..., None] * np.uint8(255), 3, axis=2))
        rows.append((found.about["images"][i]["name"], drawn))
    height, width = found.about["images"][0]["grid"]
    at = ((found.query[1] + 0.5) / width, (found.query[0] + 0.5) / height)
    marks = ((0, 0, *at),) if "similarity" in found.maps else ()
    title = f"{found.about['backbone']}, layer {found.about['layer']}"
    return Sheet(("image", *(headings[kind] for kind in found.maps)), rows, found.about, title, marks)


def _basis(grids: Sequence[Tensor], components: Sequence[int], *, masked: bool) -> tuple[Basis, list[Tensor]]:
    """The basis of the chosen components over all images, and where colours are shown: bool [H, W] each."""
    tokens = torch.cat([grid.flatten(0, 1) for grid in grids])
    inside = [torch.ones(grid.shape[:2], dtype=torch.bool) for grid in grids]
    if masked:
        inside = [foreground_by_pca(grid[None]).mask[0] for grid in grids]
        front = torch.cat([mask.flatten() for mask in inside])
        tokens = tokens[front] if front.sum() > max(components) + 1 else tokens
    return choose(fit_pca(tokens, max(components) + 1), components), inside


def _colours(grids: Sequence[Tensor], basis: Basis, inside: Sequence[Tensor]) -> list[np.ndarray]:
    shown = [project(basis, grid) for grid in grids]
    front = torch.cat([one[mask] for one, mask in zip(shown, inside, strict=True)])
    limits = color_range(front if len(front) else shown[0])
    colours = [to_rgb(one, limits) * mask[..., None] for one, mask in zip(shown, inside, strict=True)]
    return [(255 * one).round().to(torch.uint8).numpy() for one in colours]


def _named(path: Path, grid: Tensor) -> dict[str, Any]:
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "grid": list(grid.shape[:2])}
