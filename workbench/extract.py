"""Dense features of image files, written as one file: `python -m workbench features`."""

from __future__ import annotations

import hashlib
import importlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import workbench
from workbench.features import Backbone, Features
from workbench.images import normalize, read_image, resize_to_patches
from workbench.loading import load_backbone
from workbench.origin import input_statistics
from workbench.plain_files import check_new
from workbench.tiles import tiled_features

TABLES = {".parquet": "pyarrow", ".zarr": "zarr"}
FORMATS = (".safetensors", ".npz", ".parquet", ".zarr")


def extract(
    images: Sequence[Path],
    spec: str,
    out: Path,
    *,
    short_side: int | None = None,
    layer: int = -1,
    tile: int = 512,
    margin: int = 64,
    device: str = "cpu",
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write features of `images` by the backbone `spec` to the new file `out`; returns what was recorded beside them.

    For image number i there are `i.patches` [H, W, D], `i.cls` [D], `i.registers` [R, D], in float16; in .zarr they are
    arrays of a group `i`, in .parquet rows of one table (`image`, `kind`, `row`, `column`, `feature`; only patches have
    a column). In the file's metadata (of an .npz an entry `about`) is a JSON text: code version, backbone, layer,
    normalisation, and of each image its name, SHA-256 and grid. `short_side` in pixels resizes before (both sides go to
    whole patches in any case); images larger than `tile` pixels go through window by window (`tiled_features`). Raises
    ValueError or OSError for a bad image, an unknown format, or an `out` that is there already: then nothing is
    written.
    """
    check_new(out, FORMATS)
    if not images:
        raise ValueError("no images were named; give one file or more.")
    if out.suffix in TABLES:
        _library(out.suffix)
    backbone = load_backbone(spec, device=device)
    mean, std, assumed = input_statistics(spec, backbone)
    tensors: dict[str, torch.Tensor] = {}
    records = []
    for index, path in enumerate(images):
        pixels = resize_to_patches(read_image(path), backbone.patch_size, short_side=short_side)
        found = _features(backbone, normalize(pixels[None], mean, std)[0].to(device), layer, tile, margin)
        tensors |= {f"{index}.patches": found.patches[0], f"{index}.cls": found.cls[0]}
        tensors[f"{index}.registers"] = found.registers[0]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        records.append({"name": path.name, "sha256": digest, "size": list(pixels.shape[1:]), "grid": list(found.grid)})
        told(f"{path}: {found.grid[0]} x {found.grid[1]} patches")
    about = {
        "backbone": spec,
        "layer": layer,
        "mean": list(mean),
        "std": list(std),
        "normalisation_assumed": assumed,
        "code_version": workbench.__version__,
        "images": records,
    }
    _write(out, {name: _half(name, tensor) for name, tensor in tensors.items()}, about)
    return about


def _features(backbone: Backbone, image: torch.Tensor, layer: int, tile: int, margin: int) -> Features:
    """Of one normalised image [3, h, w]; the tile goes to whole patches."""
    size = backbone.patch_size
    return tiled_features(backbone, image, tile=max(size, tile // size * size), margin=margin, layer=layer)


def _half(name: str, tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half().contiguous()
    if not torch.isfinite(half).all():
        raise ValueError(f"{name} holds NaN, infinity or values beyond 65504, which float16 cannot carry.")
    return half


def _write(out: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    text = json.dumps(about)
    if out.suffix == ".safetensors":
        save_file(tensors, out, {"about": text})
        return
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    if out.suffix == ".npz":
        np.savez(out, about=np.array(text), **arrays)
    elif out.suffix == ".parquet":
        _write_parquet(out, arrays, text)
    else:
        _write_zarr(out, arrays, text)


def _library(suffix: str) -> Any:
    """pyarrow or zarr; ImportError with the way to get it."""
    try:
        return importlib.import_module(TABLES[suffix])
    except ImportError:
        raise ImportError(
            f"a {suffix} file is written by {TABLES[suffix]}, which is not here. Install it (pip install "
            f"'dense-feature-workbench[tables]'), or choose .safetensors or .npz."
        ) from None


def _write_parquet(out: Path, arrays: dict[str, np.ndarray], text: str) -> None:
    """One row a token; `feature` is a list of float16 of the width of the backbone."""
    pa = _library(".parquet")
    parquet = importlib.import_module("pyarrow.parquet")
    columns: dict[str, list[Any]] = {name: [] for name in ("image", "kind", "row", "column")}
    features = []
    for name, array in arrays.items():
        image, _, kind = name.partition(".")
        rows, width = array.reshape(-1, array.shape[-1]), array.shape[1] if array.ndim == 3 else None
        for place in range(len(rows)):
            columns["image"].append(int(image))
            columns["kind"].append({"patches": "patch", "registers": "register"}.get(kind, kind))
            columns["row"].append(place if width is None else place // width)
            columns["column"].append(None if width is None else place % width)
        features.append(rows)
    values = np.concatenate(features)
    table = pa.table(
        {
            "image": pa.array(columns["image"], pa.int32()),
            "kind": pa.array(columns["kind"], pa.string()).dictionary_encode(),
            "row": pa.array(columns["row"], pa.int32()),
            "column": pa.array(columns["column"], pa.int32()),
            "feature": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float16()), values.shape[1]),
        }
    )
    parquet.write_table(table.replace_schema_metadata({"about": text}), out, compression="zstd")


def _write_zarr(out: Path, arrays: dict[str, np.ndarray], text: str) -> None:
    """A folder; written beside and renamed, so that a half one never bears the name."""
    zarr = _library(".zarr")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        made = Path(folder) / "store"
        root = zarr.open_group(made, mode="w")
        root.attrs["about"] = text
        for name, array in arrays.items():
            root.create_array(name.replace(".", "/"), data=array)
        made.rename(out)
