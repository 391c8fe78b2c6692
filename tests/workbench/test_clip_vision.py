"""CLIP, SigLIP and SigLIP 2 folders of transformers as backbones: the library's own tokens, any grid, any layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.backbones.clip_vision import ClipVisionBackbone
from workbench.features import Backbone
from workbench.loading import load_backbone
from workbench.origin import input_statistics

transformers = pytest.importorskip("transformers")
SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14}
NAMES = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}
WHOLE = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}


def write_model(kind: str, folder: Path, *, whole: bool = False) -> Any:
    """A small model with random weights in `folder`, the tower or the `whole` of it; returns its image tower."""
    name = NAMES[kind]
    size = {"num_patches": 25} if kind == "siglip2" else {"image_size": 70}
    if whole:
        config = getattr(transformers, f"{name}Config")(text_config=WHOLE, vision_config=SHAPE | size)
        network = getattr(transformers, f"{name}Model")(config).eval()
    else:
        network = getattr(transformers, f"{name}VisionModel")(
            getattr(transformers, f"{name}VisionConfig")(**SHAPE, **size)
        ).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    network.save_pretrained(folder)
    return network.vision_model if whole else network


def pictures(height: int = 42, width: int = 98, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(7))


def reference(kind: str, network: Any, images: torch.Tensor, **options: Any) -> Any:
    """The library's own forward; patches of NaFlex cut by its own image processor's function."""
    if kind != "siglip2":
        return network(images, interpolate_pos_encoding=True, **options)
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    try:
        patches = torch.stack([convert_image_to_patches(image, 14) for image in images])
    except Exception:  # the function for arrays wants channels last
        patches = torch.stack(
            [torch.from_numpy(convert_image_to_patches(image.permute(1, 2, 0).numpy(), 14)) for image in images]
        )
    grid = torch.tensor([[images.shape[2] // 14, images.shape[3] // 14]] * len(images))
    return network(patches, torch.ones(patches.shape[:2], dtype=torch.int32), grid, **options)


@pytest.mark.parametrize("whole", [False, True], ids=["tower", "with text"])
@pytest.mark.parametrize("kind", NAMES)
@torch.no_grad()
def test_tokens_are_those_of_transformers(kind: str, whole: bool, tmp_path: Path) -> None:
    network = write_model(kind, tmp_path / "model", whole=whole)
    backbone = load_backbone(f"hf:{tmp_path / 'model'}")
    assert isinstance(backbone, ClipVisionBackbone)
    assert isinstance(backbone, Backbone)
    assert (backbone.patch_size, backbone.embed_dim, backbone.depth) == (14, 48, 3)
    for images in (pictures(), pictures(70, 70, 1), pictures(140, 56)):
        features = backbone.features(images)
        expected = reference(kind, network, images).last_hidden_state
        if kind == "clip":
            expected = network.post_layernorm(expected)
            tokens = torch.cat((features.cls[:, None], features.patches.flatten(1, 2)), dim=1)
        else:
            tokens = features.patches.flatten(1, 2)
            assert torch.equal(features.cls, tokens.mean(dim=1))
        assert features.patches.shape[1:3] == (images.shape[2] // 14, images.shape[3] // 14)
        assert features.registers.shape == (len(images), 0, 48)
        assert expected.std() > 0.3
        assert (tokens - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", NAMES)
@torch.no_grad()
def test_the_layer_and_the_attention_asked_for(kind: str, tmp_path: Path) -> None:
    network = write_model(kind, tmp_path / "model")
    backbone = load_backbone(f"hf:{tmp_path / 'model'}")
    network.set_attn_implementation("eager")
    told = reference(kind, network, pictures(), output_hidden_states=True, output_attentions=True)
    for layer in (0, -2):
        features = backbone.features(pictures(), layer=layer, attention=True)
        expected = network.post_layernorm(told.hidden_states[layer % 3 + 1])
        patches = expected[:, 1:] if kind == "clip" else expected
        assert (features.patches.flatten(1, 2) - patches).abs().max() <= 1e-5
        assert features.attention is not None
        assert (features.attention - told.attentions[layer]).abs().max() <= 1e-6
    assert backbone.model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="this network has 3 blocks"):
        backbone.features(pictures(), layer=3)
    with pytest.raises(ValueError, match="not a multiple of the patch size 14"):
        backbone.features(torch.zeros(1, 3, 42, 50))


@torch.no_grad()
def test_half_precision_stays_near(tmp_path: Path) -> None:
    write_model("siglip", tmp_path / "model")
    backbone = load_backbone(f"hf:{tmp_path / 'model'}")
    exact = backbone.features(pictures()).patches
    assert isinstance(backbone, torch.nn.Module)
    rough = backbone.bfloat16().features(pictures().bfloat16()).patches
    assert rough.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(rough.float(), exact, dim=-1).min() > 0.99


def test_its_own_normalisation(tmp_path: Path) -> None:
    write_model("siglip", tmp_path / "model")
    spec = f"hf:{tmp_path / 'model'}"
    assert input_statistics(spec, load_backbone(spec))[2]
    halves = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(halves))
    assert input_statistics(spec, load_backbone(spec)) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False)


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_model("clip", folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"(?s)holds no clip image tower that transformers can build.*Missing key"):
        load_backbone(f"hf:{folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="Two ways to get one"):
        load_backbone(f"hf:{folder}")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"type 'bert'; allowed: dinov3_vit.*siglip2"):
        load_backbone(f"hf:{folder}")
