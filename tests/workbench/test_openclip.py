"""The image towers of open_clip: against open_clip's own output, on other grids, with weights from a file."""

from __future__ import annotations

from types import SimpleNamespace

import open_clip
import pytest
import torch
from open_clip.model import resize_pos_embed
from safetensors.torch import save_file

from workbench.backbones.openclip import OpenClipBackbone, resized_positions
from workbench.loading import load_backbone
from workbench.origin import input_statistics

NAME = "ViT-S-32-alt"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return open_clip.create_model(NAME, pretrained=None).eval()


@pytest.fixture(scope="module")
def backbone(model):
    made = OpenClipBackbone(NAME)
    made.visual.load_state_dict(model.visual.state_dict())
    return made.eval().requires_grad_(False)


def images(height: int = 224, width: int = 224, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_the_class_token_projected_is_the_image_embedding(model, backbone):
    features = backbone.features(images())
    torch.testing.assert_close(features.cls @ model.visual.proj, model.encode_image(images()), atol=1e-5, rtol=1e-5)
    assert features.patches.shape == (2, 7, 7, backbone.embed_dim)
    assert features.registers.shape == (2, 0, backbone.embed_dim)


@torch.inference_mode()
def test_patches_of_every_layer_are_open_clips(model, backbone):
    for layer in (0, backbone.depth // 2, -1):
        theirs = model.visual.forward_intermediates(
            images(), indices=[layer % backbone.depth], normalize_intermediates=True, output_fmt="NCHW"
        )["image_intermediates"][0]
        ours = backbone.features(images(), layer=layer).patches
        torch.testing.assert_close(ours.permute(0, 3, 1, 2), theirs, atol=1e-5, rtol=1e-5)


def test_positions_of_another_grid_are_resized_as_open_clip_does():
    table = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    assert resized_positions(table, (7, 7)) is table
    state = {"visual.positional_embedding": table}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(5, 5))))
    torch.testing.assert_close(resized_positions(table, (5, 5)), state["visual.positional_embedding"])
    assert resized_positions(table, (3, 9)).shape == (28, 24)


@torch.inference_mode()
def test_other_sizes_one_image_and_attention(backbone):
    found = backbone.features(images(96, 160, 1), attention=True)
    assert found.grid == (3, 5)
    assert found.attention.shape[2:] == (16, 16)
    torch.testing.assert_close(found.attention.sum(dim=-1), torch.ones(found.attention.shape[:3]))
    torch.testing.assert_close(found.patches, backbone.features(images(96, 160, 1)).patches)
    with pytest.raises(ValueError, match="100"):
        backbone.features(images(100, 160, 1))


@pytest.mark.parametrize("part", ["model", "visual"])
def test_weights_come_from_a_file_whole_or_the_tower(model, backbone, tmp_path, part):
    state = (model if part == "model" else model.visual).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "w.safetensors")
    loaded = load_backbone(f"openclip:{NAME}:{tmp_path / 'w.safetensors'}")
    with torch.inference_mode():
        assert torch.equal(loaded.features(images()).patches, backbone.features(images()).patches)
    mean, _, assumed = input_statistics(f"openclip:{NAME}:x", loaded)
    assert mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert not assumed


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        (f"openclip:{NAME}", ValueError, "nothing is downloaded"),
        (f"openclip:{NAME}:/no/such.safetensors", FileNotFoundError, "Two ways to get one"),
        ("openclip:ViT-S-3:random", ValueError, "Similar: ViT-S-32"),
        ("openclip:RN50:random", ValueError, "no plain vision transformer"),
        ("openclip:ViT-B-16-SigLIP:random", ValueError, "timm's vit_base_patch16_siglip_224"),
    ],
)
def test_mistakes_are_told(spec, kind, words):
    with pytest.raises(kind, match=words):
        load_backbone(spec)


def test_weights_of_another_model_are_refused(tmp_path):
    save_file({"visual.conv1.weight": torch.zeros(3, 3, 1, 1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        load_backbone(f"openclip:{NAME}:{tmp_path / 'w.safetensors'}")
