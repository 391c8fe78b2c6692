"""The parity badge: small where the network is right, large where it is not, absent where there is no reference."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from workbench import parity as parity_module
from workbench.__main__ import main
from workbench.backbones import VisionTransformer, ViTConfig
from workbench.backbones.convnext import ConvNeXt, ConvNeXtConfig
from workbench.export import write_export
from workbench.model_card import Origin
from workbench.parity import parity

sys.path.insert(0, str(Path(__file__).parent))
from test_clip_vision import NAMES, write_model

pytest.importorskip("transformers")


def test_our_networks_equal_those_of_transformers(tmp_path: Path) -> None:
    found = parity("demo")
    assert found is not None
    assert found.independent
    assert found.reference.startswith("transformers ")
    assert found.image[0] != found.image[1]
    assert found.max_abs < 2e-4 * max(1, found.scale)
    assert found.max_cosine_error < 1e-6
    torch.manual_seed(0)
    network = ConvNeXt(ConvNeXtConfig(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))).eval()
    write_export(network, tmp_path / "next", Origin(facts={}), "a small ConvNeXt")
    convnext = parity(f"hf:{tmp_path / 'next'}")
    assert convnext is not None
    assert convnext.max_abs < 1e-4


@pytest.mark.parametrize("kind", NAMES)
def test_image_towers_equal_their_own_forward(kind: str, tmp_path: Path) -> None:
    write_model(kind, tmp_path / "model")
    found = parity(f"hf:{tmp_path / 'model'}")
    assert found is not None
    assert not found.independent
    assert found.max_abs < 1e-5


@pytest.mark.parametrize(
    ("spec", "library"), [("timm:vit_tiny_patch16_224:random", "timm"), ("openclip:ViT-B-32:random", "open_clip_torch")]
)
def test_other_libraries(spec: str, library: str) -> None:
    found = parity(spec)
    assert found is not None
    assert found.reference.split()[0] == library
    assert found.max_abs < 1e-4


def test_a_wrong_network_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another RoPE base than its weights were written for, the badge is red by three orders of magnitude."""
    torch.manual_seed(0)
    config = ViTConfig.vit_nano()
    write_export(VisionTransformer(config).eval(), tmp_path / "nano", Origin(facts={}), "nano")
    right = parity(f"hf:{tmp_path / 'nano'}")
    load = parity_module.load_backbone

    def wrong(spec: str) -> object:
        network = load(spec)
        assert isinstance(network, VisionTransformer)
        network.rope_embed.periods *= 2
        return network

    tokens = parity_module._transformers_tokens
    monkeypatch.setattr(parity_module, "_transformers_tokens", lambda _, spec, images: tokens(load(spec), spec, images))
    monkeypatch.setattr(parity_module, "load_backbone", wrong)
    broken = parity(f"hf:{tmp_path / 'nano'}")
    assert right is not None
    assert broken is not None
    assert broken.max_abs > 1000 * right.max_abs


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity("synthetic") is None
    assert main(["parity", "synthetic"]) == 0
    assert "no reference" in capsys.readouterr().out
    assert main(["parity", "demo"]) == 0
    assert "demo: parity with transformers" in capsys.readouterr().out
    assert main(["parity", "nonsense"]) == 2
    assert "unknown backbone spec" in capsys.readouterr().err
