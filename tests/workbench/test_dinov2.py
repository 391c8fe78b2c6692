"""DINOv2 folders of transformers as backbones: same tokens as the library's own forward, any grid, any layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.backbones.dinov2 import Dinov2Backbone
from workbench.features import Backbone
from workbench.loading import load_backbone

transformers = pytest.importorskip("transformers")
SHAPE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14, "image_size": 70}
REGISTERS = {"dinov2": 0, "dinov2_with_registers": 4}


def write_model(kind: str, folder: Path):
    """A small model with random weights, saved in `folder`."""
    config = {"dinov2": transformers.Dinov2Config, "dinov2_with_registers": transformers.Dinov2WithRegistersConfig}[
        kind
    ]
    model = {"dinov2": transformers.Dinov2Model, "dinov2_with_registers": transformers.Dinov2WithRegistersModel}[kind]
    network = model(config(**SHAPE)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    network.save_pretrained(folder)
    return network


def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 42, 98, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("kind", REGISTERS)
@torch.no_grad()
def test_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    network = write_model(kind, tmp_path / "model")
    backbone = load_backbone(f"hf:{tmp_path / 'model'}")
    assert isinstance(backbone, Dinov2Backbone)
    assert isinstance(backbone, Backbone)
    assert (backbone.patch_size, backbone.embed_dim, backbone.depth) == (14, 48, 3)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    features = backbone.features(pictures())
    assert features.patches.shape == (2, 3, 7, 48)
    assert features.registers.shape == (2, REGISTERS[kind], 48)
    tokens = torch.cat((features.cls[:, None], features.registers, features.patches.flatten(1, 2)), dim=1)
    expected = network(pictures()).last_hidden_state
    assert expected.std() > 0.3
    assert (tokens - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_the_layer_and_the_attention_asked_for(tmp_path: Path) -> None:
    network = write_model("dinov2_with_registers", tmp_path / "model")
    backbone = load_backbone(f"hf:{tmp_path / 'model'}")
    assert isinstance(backbone, Dinov2Backbone)
    network.set_attn_implementation("eager")
    theirs = network(pictures(), output_attentions=True).attentions
    plain = backbone.features(pictures(), layer=1)
    features = backbone.features(pictures(), layer=1, attention=True)
    assert features.attention.shape == (2, 3, 26, 26)
    assert (features.attention - theirs[1]).abs().max() <= 1e-5
    assert (features.patches - plain.patches).abs().max() <= 1e-5
    assert backbone.features(pictures()).attention is None
    network.encoder.layer = network.encoder.layer[:2]  # what is left ends in the layer asked for
    assert (network(pictures()).last_hidden_state[:, 0] - plain.cls).abs().max() <= 1e-5


def test_what_is_missing_or_does_not_fit_is_explained(tmp_path: Path) -> None:
    write_model("dinov2", tmp_path / "model")
    backbone = load_backbone(f"hf:{tmp_path / 'model'}")
    with pytest.raises(ValueError, match="height is 40 pixels, not a multiple of the patch size 14"):
        backbone.features(pictures()[:, :, :40])
    with pytest.raises(ValueError, match="layer is 3; this network has 3 blocks"):
        backbone.features(pictures(), layer=3)
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in(.|\n)*hf download"):
        load_backbone(f"hf:{tmp_path / 'model'}")


def test_a_folder_that_does_not_hold_its_model_is_refused(tmp_path: Path) -> None:
    """transformers itself only logs what is missing, and goes on with random weights in its place."""
    write_model("dinov2", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors, whole = load_file(path), path.read_bytes()
    save_file({name: tensor for name, tensor in tensors.items() if "layer.1." not in name}, path)
    with pytest.raises(ValueError, match=r"lacks \d+ tensors of its model, the first is encoder\.layer\.1"):
        load_backbone(f"hf:{tmp_path / 'model'}")
    save_file({name: tensor for name, tensor in tensors.items() if not name.endswith("mask_token")}, path)
    load_backbone(f"hf:{tmp_path / 'model'}")
    save_file(tensors | {"layernorm.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="transformers cannot open"):
        load_backbone(f"hf:{tmp_path / 'model'}")
    path.write_bytes(whole[:5000])
    with pytest.raises(ValueError, match="transformers cannot open"):
        load_backbone(f"hf:{tmp_path / 'model'}")


@pytest.mark.parametrize("change", [{"hidden_size": "x"}, {"patch_size": 0}, {"num_attention_heads": 5}], ids=str)
def test_a_config_that_makes_no_sense_is_explained(change: dict, tmp_path: Path) -> None:
    write_model("dinov2", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="transformers cannot open"):
        load_backbone(f"hf:{tmp_path / 'model'}")


@torch.no_grad()
def test_nothing_in_a_folder_makes_transformers_fetch_or_run_anything(tmp_path: Path) -> None:
    network = write_model("dinov2", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    hostile = {
        "_attn_implementation": "somebody/kernels",
        "attn_implementation": "somebody/kernels",
        "experts_implementation": "somebody/kernels",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "auto_map": {"AutoModel": "code.Model", "AutoConfig": "code.Config"},
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | hostile))
    (tmp_path / "model" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    backbone = load_backbone(f"hf:{tmp_path / 'model'}")
    assert isinstance(backbone, Dinov2Backbone)
    assert backbone.model.config._attn_implementation == "sdpa"
    assert torch.equal(backbone.features(pictures()).cls, network(pictures()).last_hidden_state[:, 0])
    assert not (tmp_path / "ran").exists()
    (tmp_path / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    with pytest.raises(ValueError, match="holds an adapter"):
        load_backbone(f"hf:{tmp_path / 'model'}")
