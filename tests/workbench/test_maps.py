"""Sheets of maps and films of runs: the numbers are the analyses', the files say where they come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from workbench.__main__ import main
from workbench.film import film
from workbench.images import normalize, read_image
from workbench.loading import load_backbone
from workbench.maps import make_maps
from workbench.origin import input_statistics
from workbench.runs import Run
from workbench.views.sheet import Sheet, sheet_png, sheet_svg

RUN = Path(__file__).resolve().parents[2] / "workbench/recorded/lab-stressed"


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two pictures, one wide, one with a name that is markup."""
    generator = np.random.default_rng(0)
    paths = []
    for name, size in (("wide.png", (96, 48)), ("<script>&.png", (40, 40))):
        Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(tmp_path / name)
        paths.append(tmp_path / name)
    return paths


def test_numbers_are_those_of_the_backbone_and_of_scikit_learn(pictures, tmp_path):
    out = tmp_path / "maps.npz"
    words = ["--kinds", "similarity", "norm", "foreground", "--at", "0.9", "0.1", "--out", str(out)]
    assert main(["maps", *map(str, pictures), *words]) == 0
    backbone = load_backbone("demo")
    mean, std, _ = input_statistics("demo", backbone)
    with torch.inference_mode():
        grids = [backbone.features(normalize(read_image(path)[None], mean, std)).patches[0] for path in pictures]
    units = [grid.double().numpy() / np.linalg.norm(grid.double().numpy(), axis=-1, keepdims=True) for grid in grids]
    with np.load(out, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        row, column = about["query"]["row"], about["query"]["column"]
        assert (row, column) == (0, 10), "of 6 x 12 patches"
        for i, grid in enumerate(grids):
            np.testing.assert_allclose(file[f"{i}.similarity"], units[i] @ units[0][row, column], atol=1e-4)
            np.testing.assert_allclose(file[f"{i}.norm"], np.linalg.norm(grid.numpy(), axis=-1), rtol=1e-4)
            assert file[f"{i}.foreground"].dtype == bool
    assert [image["grid"] for image in about["images"]] == [list(grid.shape[:2]) for grid in grids]


def test_any_components_over_all_images(pictures):
    found = make_maps(pictures, "demo", kinds=["pca"], components=(4, 2, 3))
    backbone = load_backbone("demo")
    mean, std, _ = input_statistics("demo", backbone)
    with torch.inference_mode():
        grids = [backbone.features(normalize(read_image(path)[None], mean, std)).patches[0] for path in pictures]
    reference = PCA(5, svd_solver="full").fit(torch.cat([grid.flatten(0, 1) for grid in grids]).double().numpy())
    np.testing.assert_allclose(found.about["explained"], reference.explained_variance_ratio_[[4, 2, 3]], rtol=1e-3)
    assert [map_.shape for map_ in found.maps["pca"]] == [(6, 12, 3), (5, 5, 3)]
    assert found.maps["pca"][0].dtype == np.uint8


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_sheet_carries_its_provenance_and_names_as_text(pictures, tmp_path, suffix):
    out = tmp_path / f"sheet.{suffix}"
    assert main(["maps", *map(str, pictures), "--kinds", "pca", "foreground", "--out", str(out)]) == 0
    if suffix == "png":
        with Image.open(out) as image:
            about = json.loads(image.text["about"])
            assert image.size[0] == 3 * 232 + 8
    else:
        root = ElementTree.fromstring(out.read_text())
        space = "{http://www.w3.org/2000/svg}"
        about = json.loads(root.findtext(f"{space}metadata") or "")
        assert "<script>&.png" in [text.text for text in root.iter(f"{space}text")]
        assert len(list(root.iter(f"{space}image"))) == 6
        assert not list(root.iter(f"{space}script"))
    assert about["backbone"] == "demo"
    assert about["images"][1]["name"] == "<script>&.png"


def test_control_characters_do_not_break_a_sheet():
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    sheet = Sheet(("a\x00b\nc",), [("l" * 500, [picture])], {"name": "\x01"}, "t", [(0, 0, 0.5, 0.5)])
    ElementTree.fromstring(sheet_svg(sheet))
    assert sheet_png(sheet)[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="every heading"):
        Sheet(("a", "b"), [("x", [picture])], {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x.jpg"], ".svg"),
        (["--out", "there.png"], "is there already"),
        (["--out", "x.png", "--at", "1.5", "0"], "0 to 1"),
        (["--out", "x.png", "--components", "0", "1", "2"], "from 0"),
        (["--out", "x.png", "--components", "1", "2", "999"], "components"),
        (["--out", "x.png", "--backbone", "nothing"], "unknown backbone spec"),
    ],
)
def test_mistakes_in_maps_write_nothing(pictures, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    Path("there.png").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["maps", str(pictures[0]), *words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert Path("there.png").read_text() == "mine"


@pytest.mark.parametrize("suffix", ["gif", "webp", "mp4"])
def test_a_film_has_a_frame_a_step_and_says_of_which_run(tmp_path, capsys, suffix):
    out = tmp_path / f"film.{suffix}"
    assert main(["film", str(RUN), "--out", str(out), "--images", "2", "--most-steps", "4"]) == 0
    assert "4 steps" in capsys.readouterr().out
    if suffix == "mp4":
        with av.open(str(out)) as container:
            about, stream = container.metadata["comment"], container.streams.video[0]
            frames = sum(1 for _ in container.decode(stream))
        assert frames == 3 * 4 + 20, "0.4 s at 10 frames a second, the last step five times as long"
    else:
        with Image.open(out) as image:
            assert image.n_frames == 4
            about = image.info["comment" if suffix == "gif" else "xmp"].decode()
            first = np.asarray(image.convert("RGB")).astype(int)
            image.seek(3)
            assert np.abs(np.asarray(image.convert("RGB")) - first).mean() > 1, "features moved"
    record = json.loads(about)
    assert record["name"] == Run(RUN).name
    assert len(record["config_sha256"]) == 64
    assert len(record["steps"]) == 4


def test_mistakes_in_films_write_nothing(tmp_path, monkeypatch):
    for name, options, said in (
        ("a.avi", {}, r"\.gif"),
        ("a.gif", {"images": 0}, "1 to 6"),
        ("a.gif", {"most_steps": 1}, "2 steps"),
        ("a.gif", {"at": (0.0, 2.0)}, "0 to 1"),
    ):
        with pytest.raises(ValueError, match=said):
            film(Run(RUN), tmp_path / name, **options)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"\[video\]"):
        film(Run(RUN), tmp_path / "a.mp4")
    (tmp_path / "there.gif").write_text("mine")
    with pytest.raises(FileExistsError, match="already"):
        film(Run(RUN), tmp_path / "there.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["there.gif"]
    assert (tmp_path / "there.gif").read_text() == "mine"
