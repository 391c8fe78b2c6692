"""Several sources of the same images: places agree, colours are aligned, one click asks every row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Page
from scipy.linalg import orthogonal_procrustes
from skimage import data, io

from workbench.__main__ import main
from workbench.analysis.pca import align_to_coordinates, fit_pca, project
from workbench.analysis.similarity import similarity
from workbench.compare import comparison_page, features_by_backbone, features_by_layer
from workbench.features import Features
from workbench.loading import load_backbone
from workbench.views.comparison import Comparison
from workbench.views.page import standalone_page, without_policy
from workbench.widgets import CompareView


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """[2, 3, 96, 128] uint8."""
    return torch.stack(
        [torch.from_numpy(photo[:96, :128].copy()).permute(2, 0, 1) for photo in (data.astronaut(), data.coffee())]
    )


def random_features(height: int, width: int, channels: int, images: int = 2, seed: int = 0) -> Features:
    patches = torch.randn(images, height, width, channels, generator=torch.Generator().manual_seed(seed))
    return Features(patches, patches.mean(dim=(1, 2)), patches.new_zeros(images, 0, channels))


def two() -> dict[str, Features]:
    return {"fine": random_features(6, 8, 12), "coarse": random_features(3, 4, 20, seed=1)}


def test_alignment_is_scipys_and_undoes_a_rotation() -> None:
    tokens = random_features(5, 7, 16).patches.flatten(0, 2)
    basis = fit_pca(tokens)
    wanted = torch.randn(len(tokens), 3, generator=torch.Generator().manual_seed(3))
    ours = project(align_to_coordinates(basis, tokens, wanted), tokens).double().numpy()
    centred = wanted.double().numpy() - wanted.double().numpy().mean(0)
    before = project(basis, tokens).double().numpy()
    before -= before.mean(0)
    rotation, _ = orthogonal_procrustes(before, centred)
    np.testing.assert_allclose(ours - ours.mean(0), before @ rotation, atol=1e-5)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(4))).Q
    back = project(align_to_coordinates(basis, tokens, project(basis, tokens) @ turn), tokens)
    torch.testing.assert_close(back, project(basis, tokens) @ turn, rtol=0, atol=1e-4)


def test_alignment_keeps_the_variance_of_the_subspace_and_refuses_nonsense() -> None:
    tokens = random_features(5, 7, 16).patches.flatten(0, 2)
    basis = fit_pca(tokens)
    aligned = align_to_coordinates(basis, tokens, torch.randn(len(tokens), 3))
    assert aligned.variance.sum().item() == pytest.approx(basis.variance.sum().item(), rel=1e-5)
    torch.testing.assert_close(aligned.components @ aligned.components.T, torch.eye(3), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="coordinates are"):
        align_to_coordinates(basis, tokens, torch.randn(4, 3))
    with pytest.raises(ValueError, match="NaN"):
        align_to_coordinates(basis, tokens, torch.full((len(tokens), 3), torch.nan))


def test_a_rotated_feature_space_gets_the_same_colours(photos: torch.Tensor) -> None:
    """Turned, widened, shifted and resized features show the same picture: colours follow what is seen, not axes."""
    fine = random_features(6, 8, 12)
    widen = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(5))).Q[:12]
    other = fine._replace(patches=fine.patches @ widen + 3, cls=fine.cls @ widen)
    first, second = Comparison(photos, {"one": fine, "turned": other}).sources
    assert first._basis is not None
    assert second._basis is not None
    ours, theirs = (
        project(source._basis[0], found.patches) for source, found in ((first, fine), (second, other)) if source._basis
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    torch.testing.assert_close(first._basis[1], second._basis[1], rtol=0, atol=1e-3)


def test_places_agree_between_grids(photos: torch.Tensor) -> None:
    comparison = Comparison(photos, two())
    assert comparison.select({"image": 1, "row": 5, "col": 3}) == {
        "fine": {"image": 1, "row": 5, "col": 3},
        "coarse": {"image": 1, "row": 2, "col": 1},
    }
    assert comparison.select({"source": 1, "image": 0, "row": 0, "col": 3})["fine"] == {"image": 0, "row": 1, "col": 7}
    for bad in ({"image": 2, "row": 0, "col": 0}, {"image": 0, "row": 6, "col": 0}, {"image": 0, "row": 0, "col": -1}):
        with pytest.raises(ValueError, match="outside"):
            comparison.select(bad)
    with pytest.raises(ValueError, match="sources 0 to 1"):
        comparison.answer("summary", {"source": 2})
    with pytest.raises(ValueError, match="one source or more"):
        Comparison(photos, {})


def test_each_backbone_gets_whole_patches_and_its_own_normalisation(photos: torch.Tensor) -> None:
    found = features_by_backbone(
        photos, {"ours": "demo", "timm": "timm:vit_tiny_patch16_224:random", "clip": "openclip:ViT-B-32:random"}
    )
    assert {name: features.grid for name, features in found.items()} == {
        "ours": (12, 16),
        "timm": (6, 8),
        "clip": (3, 4),
    }
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    from workbench.images import normalize

    with torch.no_grad():
        torch.manual_seed(0)
        clip = load_backbone("openclip:ViT-B-32:random")
        expected = clip.features(normalize(photos, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
        torch.manual_seed(0)
        again = features_by_backbone(photos, ["openclip:ViT-B-32:random"])["openclip:ViT-B-32:random"]
    torch.testing.assert_close(again.patches, expected.patches)


def test_layers_are_the_backbones_own(photos: torch.Tensor) -> None:
    found = features_by_layer(photos, "demo")
    depth = load_backbone("demo").depth
    assert list(found)[-1] == f"layer {depth - 1}"
    assert list(features_by_layer(photos, "demo", [0, -1])) == ["layer 0", f"layer {depth - 1}"]
    whole = features_by_backbone(photos, ["demo"])["demo"]
    torch.testing.assert_close(found[f"layer {depth - 1}"].patches, whole.patches)
    assert not torch.allclose(found["layer 0"].patches, whole.patches)


def test_the_widget_tells_the_place_in_every_row(photos: torch.Tensor) -> None:
    view = CompareView(photos, two())
    assert view.sources == ["fine", "coarse"]
    assert view.select()["coarse"] == {"image": 0, "row": 1, "col": 2}
    reply, buffers = view._answer("probes", {"source": 1, "step": 0})
    assert reply == {"step": 0}
    assert len(buffers) == 1
    assert len(json.dumps(view.get_state(["sources", "selection", "view"]))) < 1000


def open_comparison(page: Page, folder: Path, comparison: Comparison, **state: object) -> None:
    path = folder / "compare.html"
    path.write_text(without_policy(standalone_page(comparison, **state)), encoding="utf-8")
    page.goto(path.as_uri())
    page.wait_for_function(
        "count => { const views = document.querySelector('.dfw')?.view?.views ?? [];"
        " return views.length === count && views.every((view) => view.matches && view.stage.bitmaps.size === 2); }",
        arg=len(comparison.names),
    )


VIEWS = "document.querySelector('.dfw').view.views"


@pytest.mark.browser
def test_a_click_asks_every_row_at_the_same_place(page: Page, tmp_path: Path, photos: torch.Tensor) -> None:
    found = two()
    open_comparison(page, tmp_path, Comparison(photos, found), selection={"source": 1, "image": 0, "row": 2, "col": 0})
    pinned = f"{VIEWS}.map((view) => view.pinned)"
    assert page.evaluate(pinned) == [{"image": 0, "row": 5, "col": 1}, {"image": 0, "row": 2, "col": 0}]
    photo = page.locator(".dfw-compared").first.locator('.dfw-probe[data-image="1"] .dfw-photo').last
    box = photo.bounding_box()
    assert box is not None
    at = (box["x"] + box["width"] * 6.5 / 8, box["y"] + box["height"] * 1.5 / 6)
    page.mouse.move(*at)
    assert page.evaluate(f"{VIEWS}.map((view) => view.hovered)") == [
        {"image": 1, "row": 1, "col": 6},
        {"image": 1, "row": 0, "col": 3},
    ]
    page.mouse.click(*at)
    assert page.evaluate(pinned) == [{"image": 1, "row": 1, "col": 6}, {"image": 1, "row": 0, "col": 3}]
    page.wait_for_function("workbench.model.get('selection').row === 1")
    assert page.evaluate("workbench.model.get('selection')") == {"source": 0, "image": 1, "row": 1, "col": 6}
    shown = page.evaluate(f"{VIEWS}[1].matches[0].value")
    assert shown == pytest.approx(similarity(found["coarse"].patches, (1, 0, 3))[0].max().item(), abs=1e-2)
    page.keyboard.press("ArrowDown")
    assert page.evaluate(f"{VIEWS}[0].pinned.row") == 2
    assert page.evaluate(f"{VIEWS}[1].pinned.row") == 1


@pytest.mark.browser
def test_one_set_of_controls_rules_all_rows(page: Page, tmp_path: Path, photos: torch.Tensor) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    found = dict(zip(("fine", hostile), two().values(), strict=True))
    open_comparison(page, tmp_path, Comparison(photos, found), theme="dark")
    assert page.locator(".dfw-controls").count() == 1
    assert page.locator(".dfw-compared h2").all_inner_texts() == ["fine", hostile]
    page.get_by_role("radio", name="PCA").check()
    page.get_by_label("Grid").select_option("smooth")
    page.wait_for_function(f"{VIEWS}.every((view) => view.mode === 'pca' && view.smooth)")
    assert page.evaluate("document.querySelectorAll('.dfw-compared .dfw-photo').length") == 4
    page.evaluate("workbench.model.set('language', 'zh')")
    page.wait_for_function(f"{VIEWS}.every((view) => view.matches)")
    assert "点击任意图像" in page.locator(".dfw-lead").inner_text()
    assert page.evaluate("[...document.querySelectorAll('.dfw')].every((root) => root.dataset.theme === 'dark')")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_the_command_writes_a_page_that_works_offline(
    page: Page, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = tmp_path / "cat.png", tmp_path / "out.html"
    io.imsave(image, data.chelsea())
    command = [
        "compare",
        str(image),
        "--backbone",
        "demo",
        "--backbone",
        "synthetic",
        "--side",
        "96",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    page.goto(out.as_uri())
    page.locator(".dfw-compared .dfw-layer").nth(1).wait_for()
    about = json.loads(page.locator("#provenance").inner_text())
    assert about["sources"] == ["demo", "synthetic"]
    assert about["images"][0]["name"] == "cat.png"
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["compare", str(image), "--backbone", "nonsense", "--out", str(tmp_path / "no.html")]) == 2
    assert not (tmp_path / "no.html").exists()


def test_layers_of_two_backbones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layers are compared of one backbone"):
        comparison_page([tmp_path / "x.png"], ["demo", "synthetic"], layers=[0])
    with pytest.raises(ValueError, match="one image and one backbone"):
        comparison_page([], ["demo"])
