"""`python -m workbench features`: what is written is what the backbone gives, with where it comes from."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open

from workbench.__main__ import main
from workbench.extract import extract
from workbench.images import normalize, read_image
from workbench.loading import load_backbone
from workbench.origin import input_statistics


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two pictures, one of them not square."""
    generator = np.random.default_rng(0)
    paths = []
    for name, size in (("a.png", (64, 48)), ("odd name [b].png", (40, 40))):
        Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(tmp_path / name)
        paths.append(tmp_path / name)
    return paths


def read(out: Path) -> tuple[dict[str, torch.Tensor], dict]:
    if out.suffix == ".npz":
        with np.load(out, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "about"}
            return arrays, json.loads(str(file["about"]))
    if out.suffix == ".zarr":
        group = zarr.open_group(out, mode="r")
        names = [f"{image}/{kind}" for image in group for kind in group[image]]
        arrays = {name.replace("/", "."): torch.from_numpy(np.asarray(group[name][...])) for name in names}
        return arrays, json.loads(group.attrs["about"])
    if out.suffix == ".parquet":
        return read_table(out)
    with safe_open(out, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["about"])  # noqa: SIM118


def read_table(out: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """A table back as tensors, by pandas."""
    table = parquet.read_table(out)
    frame = table.to_pandas()
    tensors = {}
    for (image, kind), rows in frame.groupby(["image", "kind"], observed=True):
        values = torch.from_numpy(np.stack(rows["feature"].to_list()))
        if kind == "patch":
            assert rows[["row", "column"]].drop_duplicates().shape[0] == len(rows)
            shape = (int(rows["row"].max()) + 1, int(rows["column"].max()) + 1)
            order = (rows["row"] * shape[1] + rows["column"]).to_numpy().argsort()
            tensors[f"{image}.patches"] = values[order.copy()].reshape(*shape, -1)
        else:
            assert rows["column"].isna().all()
            tensors[f"{image}.{ {'register': 'registers'}.get(kind, kind) }"] = values[0] if kind == "cls" else values
    return tensors, json.loads(table.schema.metadata[b"about"])


@pytest.mark.parametrize("name", ["out.safetensors", "out.npz", "out.parquet", "out.zarr"])
def test_features_are_those_of_the_backbone(pictures, tmp_path, capsys, name):
    out = tmp_path / name
    assert main(["features", *map(str, pictures), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "odd name [b].png: 5 x 5 patches" in said
    assert "note:" not in said, "the demo backbone says what it wants"
    tensors, about = read(out)
    assert about["backbone"] == "demo"
    backbone = load_backbone("demo")
    mean, std, assumed = input_statistics("demo", backbone)
    assert not assumed
    for index, path in enumerate(pictures):
        image = read_image(path)
        with torch.inference_mode():
            found = backbone.features(normalize(image[None], mean, std))
        assert torch.equal(tensors[f"{index}.patches"], found.patches[0].half())
        assert torch.equal(tensors[f"{index}.cls"], found.cls[0].half())
        record = about["images"][index]
        assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert record["grid"] == list(found.grid)


def test_layers_sizes_and_windows(pictures, tmp_path):
    about = extract(pictures[:1], "synthetic", tmp_path / "a.npz", short_side=96, layer=0, tile=64, margin=16)
    assert about["images"][0]["size"] == [96, 128]
    assert about["normalisation_assumed"]
    tensors, _ = read(tmp_path / "a.npz")
    assert tensors["0.patches"].shape == (6, 8, 64)


def test_a_run_and_a_timm_model_bring_their_own_statistics(tmp_path):
    timm = load_backbone("timm:vit_tiny_patch16_224:random")
    mean, _, assumed = input_statistics("timm:vit_tiny_patch16_224:random", timm)
    assert (mean, assumed) == ((0.5, 0.5, 0.5), False)
    assert input_statistics("synthetic", load_backbone("synthetic"))[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x.csv"], "must end in .safetensors or .npz or .parquet or .zarr"),
        (["--out", "there.npz"], "is there already"),
        (["--out", "y.npz", "--backbone", "nothing"], "unknown backbone spec"),
        (["--out", "y.npz", "--layer", "99"], "layer"),
    ],
)
def test_mistakes_write_nothing(pictures, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    Path("there.npz").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["features", str(pictures[0]), *words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert Path("there.npz").read_text() == "mine"


def test_a_damaged_picture_is_told_and_nothing_written(pictures, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(pictures[0].read_bytes()[:200])
    assert main(["features", str(pictures[0]), str(tmp_path / "broken.png"), "--out", str(tmp_path / "z.npz")]) == 2
    assert "broken.png" in capsys.readouterr().err
    assert not (tmp_path / "z.npz").exists()


@pytest.mark.parametrize(("suffix", "library"), [(".parquet", "pyarrow"), (".zarr", "zarr")])
def test_a_missing_library_is_named_before_any_work(pictures, tmp_path, monkeypatch, capsys, suffix, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["features", str(pictures[0]), "--out", str(tmp_path / f"out{suffix}")]) == 2
    said = capsys.readouterr().err
    assert library in said
    assert "[tables]" in said
    assert "patches" not in said
    assert not (tmp_path / f"out{suffix}").exists()
