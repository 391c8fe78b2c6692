"""Parity: every kind of backbone against another library, small where it is right and not where it is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from workbench.__main__ import main
from workbench.backbones import ConvNeXtConfig, Network, ViTConfig, architecture_of
from workbench.backbones.architecture import network_of
from workbench.export import export_backbone
from workbench.parity import fixed_image, parity
from workbench.runs import RunWriter

TOLERANCE = 1e-5  # float32, absolute, on features of unit scale
INFO = {"phase": "pretrain", "recipe": "cpu_demo", "seed": 3, "steps": 9, "parent": None}
SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "patch_size": 14}
CONVNEXT = {"dims": (8, 12, 16, 20), "depths": (1, 1, 2, 1)}
NETWORKS = {
    "MLP, registers, masked key bias": ViTConfig(embed_dim=48, depth=2, num_heads=2, num_registers=2, mask_k_bias=True),
    "MLP, full qkv bias, patch 8, eps 1e-6": ViTConfig(patch_size=8, embed_dim=64, depth=2, num_heads=4, norm_eps=1e-6),
    "SwiGLU, no qkv bias, no LayerScale": ViTConfig(
        embed_dim=48, depth=2, num_heads=3, ffn="swiglu", qkv_bias=False, layerscale=0.0
    ),
    "ConvNeXt": ConvNeXtConfig(**CONVNEXT),
}


def random_network(config: ViTConfig | ConvNeXtConfig) -> Network:
    """A network in which every parameter matters."""
    model, generator = network_of(config).eval(), torch.Generator().manual_seed(1)
    stir(model, generator)
    return model


@torch.no_grad()
def stir(model: nn.Module, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        gain = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
        parameter.copy_(0.8 + 0.1 * noise if gain else parameter + 0.05 * noise)


def write_run(folder: Path, model: Network) -> str:
    with RunWriter.create(folder, info=INFO, config={}) as writer:
        writer.backbone("teacher", 2, architecture_of(model), model.state_dict())
    return f"run:{folder}"


def check(found, reference: str, size: tuple[int, int]) -> None:
    assert found is not None
    assert re.fullmatch(reference, found.reference)
    assert (found.image_size, found.dtype) == (size, "float32")
    assert 0 <= found.mean_abs_difference <= found.max_abs_difference <= TOLERANCE
    assert 0 <= found.max_cosine_error <= 1e-9


# ---- what it is compared with ----


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_networks_of_ours_against_timm_and_transformers(config, tmp_path: Path) -> None:
    spec = write_run(tmp_path / "run", random_network(config))
    side = 32 if isinstance(config, ConvNeXtConfig) else config.patch_size
    size = (6 * side, 10 * side)
    name = "ConvNeXt" if isinstance(config, ConvNeXtConfig) else "Eva"
    check(parity(spec), rf"timm {re.escape(timm.__version__)}, {name}", size)
    pytest.importorskip("transformers")
    export_backbone(spec, tmp_path / "out")
    check(parity(f"hf:{tmp_path / 'out'}"), r"transformers 5\.[\d.]+, DINOv3(ViT|ConvNext)Model", size)


def test_a_published_size_against_the_network_that_timm_has_by_that_name(tmp_path: Path) -> None:
    version = re.escape(timm.__version__)
    save_file(random_network(ViTConfig.vit_small()).state_dict(), tmp_path / "vits.safetensors")
    found = parity(f"dinov3:vits16:{tmp_path / 'vits.safetensors'}")
    check(found, rf"timm {version}, vit_small_patch16_dinov3_qkvb", (96, 160))
    spec = write_run(tmp_path / "run", random_network(ViTConfig.vit_small(qkv_bias=False)))
    check(parity(spec), rf"timm {version}, vit_small_patch16_dinov3", (96, 160))
    save_file(random_network(ConvNeXtConfig.tiny()).state_dict(), tmp_path / "tiny.safetensors")
    check(
        parity(f"dinov3:convnext_tiny:{tmp_path / 'tiny.safetensors'}"), rf"timm {version}, convnext_tiny", (192, 320)
    )


def test_the_backbone_in_the_box(capsys: pytest.CaptureFixture) -> None:
    check(parity("demo"), rf"timm {re.escape(timm.__version__)}, Eva", (48, 80))
    assert main(["parity", "demo"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    number = r"\d\.\de[+-]\d\d"
    assert re.fullmatch(
        rf"demo: against timm [\d.]+, Eva, 48 x 80 pixels, float32: difference at most {number}, on average {number}; "
        rf"1 - cosine at most {number}",
        line,
    )


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "CLIP", "Siglip", "Siglip2"])
def test_networks_of_transformers_against_their_own_forward(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    kind = kind if kind.startswith("Dino") else f"{kind}Vision"
    sizes = SHAPE | ({"num_patches": 25} if kind == "Siglip2Vision" else {"image_size": 70})
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes))
    stir(model, torch.Generator().manual_seed(2))
    model.save_pretrained(tmp_path)
    check(parity(f"hf:{tmp_path}"), rf"transformers 5\.[\d.]+, {kind}Model", (84, 140))


@pytest.mark.parametrize("name", ["ViT-S-32-alt", "ViT-B-32"])
def test_a_tower_of_open_clip_against_its_own_forward(name: str) -> None:
    check(parity(f"openclip:{name}:random"), rf"open_clip {re.escape(open_clip.__version__)}, {name}", (192, 320))


def test_nothing_to_compare_with(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert parity("synthetic") is None
    assert parity("timm:vit_tiny_patch16_224:random") is None
    circle = ViTConfig(embed_dim=32, depth=1, num_heads=2, rope_coords="max")
    assert parity(write_run(tmp_path / "circle", random_network(circle))) is None
    resized = ConvNeXtConfig(**CONVNEXT, patch_size=16)
    assert parity(write_run(tmp_path / "resized", random_network(resized))) is None
    assert main(["parity", "synthetic"]) == 0
    assert capsys.readouterr().out == "synthetic: no independent implementation to compare with\n"


# ---- what it says when something differs ----


def test_other_rope_periods_are_seen_and_measured(tmp_path: Path) -> None:
    """Ours keeps the periods of the weights, the libraries compute them. The numbers are numpy's, on transformers."""
    transformers = pytest.importorskip("transformers")
    network = random_network(ViTConfig(embed_dim=48, depth=2, num_heads=2, num_registers=2))
    network.rope_embed.periods.mul_(1.5)
    spec = write_run(tmp_path / "run", network)
    found = parity(spec)
    assert found is not None
    assert found.max_abs_difference > 100 * TOLERANCE
    export_backbone(spec, tmp_path / "out")
    with torch.no_grad():
        images = fixed_image(96, 160)
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "out")(images).last_hidden_state[0].double().numpy()
        features = network.features(images)
    ours = torch.cat((features.cls, features.registers[0], features.patches[0].flatten(0, 1))).double().numpy()
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert found.max_abs_difference == pytest.approx(np.abs(ours - theirs).max(), abs=TOLERANCE)
    assert found.mean_abs_difference == pytest.approx(np.abs(ours - theirs).mean(), abs=TOLERANCE)
    assert found.max_cosine_error == pytest.approx(1 - cosines.min(), rel=0.02)


def test_features_that_are_not_finite_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = random_network(NETWORKS["MLP, registers, masked key bias"])
    with torch.no_grad():
        network.norm.weight[3] = torch.nan
    spec = write_run(tmp_path / "run", network)
    with pytest.raises(ValueError, match=r"features of run:.* are not finite"):
        parity(spec)
    assert main(["parity", spec]) == 2
    assert "not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet50", "unknown backbone spec 'resnet50'; valid forms"),
        ("hf:nowhere", "no config.json in nowhere"),
        ("run:nowhere", "nowhere"),
        ("openclip:ViT-S-3:random", "Similar: ViT-S-32"),
    ],
)
def test_a_wrong_spec_is_a_mistake_told_on_standard_error(spec: str, message: str, capsys) -> None:
    assert main(["parity", spec]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert message in told.err


def test_the_image_is_always_the_same_and_not_symmetric() -> None:
    image = fixed_image(48, 80)
    assert image.shape == (1, 3, 48, 80)
    assert torch.equal(image, fixed_image(48, 80))
    assert image[0, 0, :, -8:].mean() - image[0, 0, :, :8].mean() > 1.5
    assert image[0, 1, -8:].mean() - image[0, 1, :8].mean() > 1.2
    assert (image - image.flip(-1)).abs().mean() > 0.3


def test_a_folder_whose_entries_are_left_to_their_defaults(tmp_path: Path) -> None:
    """The library fills in its own defaults, ours fill in theirs; both must be the same network."""
    pytest.importorskip("transformers")
    config = ViTConfig(embed_dim=48, depth=2, num_heads=2, mask_k_bias=True)
    export_backbone(write_run(tmp_path / "run", random_network(config)), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    entries = json.loads(path.read_text())
    for name in ("patch_size", "hidden_act", "query_bias", "key_bias", "value_bias", "rope_theta", "layer_norm_eps"):
        del entries[name]
    path.write_text(json.dumps(entries))
    check(parity(f"hf:{tmp_path / 'out'}"), r"transformers 5\.[\d.]+, DINOv3ViTModel", (96, 160))
