"""Views without a browser: what is encoded comes back, and the numbers are those of `workbench.analysis`."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from workbench.analysis.pca import color_range, fit_pca, project
from workbench.analysis.similarity import similarity
from workbench.backbones import VisionTransformer, ViTConfig
from workbench.features import Features
from workbench.views.encode import decode_features, encode_basis, encode_features, encode_image
from workbench.views.page import STATIC, standalone_page
from workbench.views.payloads import answer
from workbench.views.similarity import SimilarityView, best_matches
from workbench.views.steps import FeatureSteps
from workbench.widgets import PatchView


def features(images: int = 3, height: int = 4, width: int = 6, channels: int = 20) -> Features:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(images, height, width, channels, generator=generator)
    return Features(patches, patches.mean(dim=(1, 2)), patches.new_zeros(images, 0, channels))


def pictures(images: int = 3) -> torch.Tensor:
    return torch.rand(images, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("dtype", "tolerance"), [("int8", 0.02), ("float16", 2e-3)])
def test_features_come_back(dtype: str, tolerance: float) -> None:
    given = features()
    patches, cls = decode_features(encode_features(given, dtype))  # type: ignore[arg-type]
    torch.testing.assert_close(patches, given.patches, rtol=0, atol=tolerance)
    torch.testing.assert_close(cls, given.cls, rtol=0, atol=2e-3)


def test_int8_keeps_cosines_and_takes_a_quarter_of_the_bytes() -> None:
    given = features(channels=384)
    data = encode_features(given, "int8")
    patches, _ = decode_features(data)
    expected = similarity(given.patches, (1, 2, 3))
    torch.testing.assert_close(similarity(patches, (1, 2, 3)), expected, rtol=0, atol=1e-2)
    assert len(data) < 0.28 * 4 * given.patches.numel()


def test_what_float16_cannot_carry_is_refused() -> None:
    given = features()
    with pytest.raises(ValueError, match="65504"):
        encode_features(given._replace(patches=given.patches * 1e5), "float16")
    with pytest.raises(ValueError, match="int8 or float16"):
        encode_features(given, "float64")  # type: ignore[arg-type]


def test_a_basis_travels_with_its_range() -> None:
    tokens = features().patches.flatten(0, 2)
    basis = fit_pca(tokens)
    limits = color_range(project(basis, tokens))
    tensors = load(encode_basis(basis, limits))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "mean": (20,),
        "components": (3, 20),
        "range": (3, 2),
    }
    torch.testing.assert_close(tensors["range"], limits)
    with pytest.raises(ValueError, match="3 components"):
        encode_basis(fit_pca(tokens, 2), limits)


def test_pictures_are_png() -> None:
    image = pictures()[0]
    decoded = np.asarray(Image.open(io.BytesIO(encode_image(image))))
    np.testing.assert_allclose(decoded, image.permute(1, 2, 0).numpy() * 255, atol=0.51)


def test_best_matches_are_the_maxima_outside_the_neighbourhood() -> None:
    given, query = features(), (1, 2, 3)
    maps = similarity(given.patches, query)
    for match in best_matches(given.patches, query):
        assert match is not None
        allowed = maps[match["image"]].clone()
        if match["image"] == 1:
            assert max(abs(match["row"] - 2), abs(match["col"] - 3)) > 1
            allowed[1:4, 2:5] = -2
        assert match["similarity"] == pytest.approx(allowed.max().item())
        assert allowed[match["row"], match["col"]] == allowed.max()


def test_a_grid_that_is_all_neighbourhood_has_no_match_of_its_own() -> None:
    assert best_matches(features(2, 2, 2).patches, (0, 0, 0))[0] is None


def test_selecting_tells_the_patch_and_moves_the_state() -> None:
    given = features()
    view = SimilarityView(given, pictures())
    told = view.select({"image": 2, "row": 1, "col": 5})
    assert view.state()["selection"] == {"image": 2, "row": 1, "col": 5}
    assert told["norm"] == pytest.approx(given.patches[2, 1, 5].norm().item(), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(given.patches[2, 1, 5], given.cls[2], dim=0)
    assert told["cls"] == pytest.approx(cosine.item(), abs=1e-5)
    with pytest.raises(ValueError, match="is not a patch"):
        view.select({"image": 2, "row": 9, "col": 5})
    assert view.selection["row"] == 1


def test_all_steps_share_one_basis_and_answers_are_plain_json() -> None:
    steps = {200: features(), 0: features(), 100: features()}
    captions = ["a", "b", {"en": "c", "zh": "丙"}]
    source = FeatureSteps(pictures(), steps, captions=captions, series={"x": {5: 1.0, 1: 0.0}})
    summary, _ = answer(source, "summary", {})
    assert summary["steps"] == [0, 100, 200]
    assert summary["series"]["x"] == {"step": [1, 5], "value": [0.0, 1.0]}
    assert summary["probes"]["captions"][2]["zh"] == "丙"
    json.dumps(summary)
    info, [data] = answer(source, "basis", {})
    assert len(info["explained"]) == 3
    assert load(data)["components"].shape == (3, 20)
    assert answer(source, "probes", {"step": 100})[0] == {"step": 100}
    with pytest.raises(ValueError, match="no features of step 7"):
        answer(source, "probes", {"step": 7})
    with pytest.raises(ValueError, match="not 'weights'"):
        answer(source, "weights", {})


def test_images_and_features_must_fit() -> None:
    with pytest.raises(ValueError, match="2 images"):
        FeatureSteps(pictures(2), {0: features(3)})
    with pytest.raises(ValueError, match="captions"):
        FeatureSteps(pictures(), {0: features()}, captions=["one"])


def test_a_page_cannot_be_broken_out_of() -> None:
    evil = "</script><script>alert(1)</script>"
    page = standalone_page(FeatureSteps(pictures(), {0: features()}, captions=[evil] * 3), view="patches")
    assert "alert(1)</script>" not in page
    assert page.count("</script>") == 5
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_patch_view_of_a_trainable_backbone_keeps_no_graph() -> None:
    network = VisionTransformer(ViTConfig(patch_size=16, embed_dim=24, depth=1, num_heads=2))
    assert network.features(pictures(1)).patches.requires_grad
    shown = PatchView(pictures(1), backbone=network).similarity.features
    assert not shown.patches.requires_grad
    assert not shown.cls.requires_grad


def test_a_page_and_a_notebook_show_the_one_renderer_file() -> None:
    """Gradio's copy: tests/apps/test_monitor_page.py, over HTTP."""
    renderer = (STATIC / "renderer.js").read_bytes()
    features = Features(torch.ones(1, 2, 3, 4), torch.ones(1, 4), torch.ones(1, 0, 4))
    images = torch.zeros(1, 3, 16, 24, dtype=torch.uint8)
    page = standalone_page(FeatureSteps(images, {0: features}))
    inside = page.partition('<script type="text/plain" id="renderer">')[2].partition("</script>")[0]
    assert inside.encode() == renderer
    _, buffers = PatchView(images, features).module(None, [])
    assert buffers[0] == renderer
    assert buffers[1] == (STATIC / "renderer.css").read_bytes()
    found = [path for folder in ("workbench", "apps") for path in (STATIC.parents[1] / folder).rglob("renderer*.js")]
    assert found == [STATIC / "renderer.js"]
