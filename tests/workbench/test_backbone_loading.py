"""`load_backbone`: every spec form with local files only, and the message for every wrong one."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from workbench.backbones import SyntheticBackbone, VisionTransformer, ViTConfig
from workbench.backbones import load as standalone
from workbench.backbones.external import TimmBackbone, TimmConvNeXt
from workbench.features import Backbone
from workbench.loading import load_backbone

TINY = "vit_tiny_patch16_224"


def pictures() -> torch.Tensor:
    return torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> VisionTransformer:
    """A small network that the `vits16` spec stands for, so that the test writes kilobytes, not 86 MB."""
    config = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    monkeypatch.setitem(
        standalone.DINOV3_ARCHITECTURES, "vits16", lambda **extra: ViTConfig.vit_small(**(config | extra))
    )
    return VisionTransformer(ViTConfig.vit_small(**config), generator=torch.Generator().manual_seed(5)).eval()


def test_synthetic() -> None:
    assert isinstance(load_backbone("synthetic"), SyntheticBackbone)


@torch.no_grad()
def test_the_backbone_in_the_box_opens_everywhere_and_is_no_random_network() -> None:
    """As `transformers` reads the same files; small, in float16 on disk, float32 in memory."""
    backbone = load_backbone("demo")
    assert isinstance(backbone, VisionTransformer)
    assert (standalone.DEMO_FOLDER / "model.safetensors").stat().st_size < 12e6
    found = backbone.features(pictures())
    assert found.patches.dtype == torch.float32
    reference = AutoModel.from_pretrained(standalone.DEMO_FOLDER, dtype=torch.float32).eval()
    tokens = reference(pictures()).last_hidden_state
    assert (found.cls - tokens[:, 0]).abs().max() < 1e-5
    assert (found.patches.flatten(1, 2) - tokens[:, 1:]).abs().max() < 1e-5
    untrained = VisionTransformer(backbone.config, generator=torch.Generator().manual_seed(0)).eval()
    assert (untrained.features(pictures()).patches - found.patches).abs().mean() > 0.1


def test_a_spec_of_the_backbone_in_the_box_takes_nothing_more() -> None:
    with pytest.raises(ValueError, match="unknown backbone spec 'demo:x'"):
        load_backbone("demo:x")


@torch.no_grad()
def test_official_safetensors_and_pth_load_strictly(official: VisionTransformer, tmp_path: Path) -> None:
    state = official.state_dict()
    save_file(state, tmp_path / "vits.safetensors")
    torch.save(state, tmp_path / "vits.pth")
    nested = {"teacher": {f"backbone.{key}": value for key, value in state.items()} | {"dino_head.x": torch.ones(1)}}
    torch.save(nested, tmp_path / "teacher_checkpoint.pth")
    expected = official(pictures())
    for name in ("vits.safetensors", "vits.pth", "teacher_checkpoint.pth"):
        for arch in ("vits16", "dinov3_vits16"):
            backbone = load_backbone(f"dinov3:{arch}:{tmp_path / name}")
            assert torch.equal(backbone.features(pictures()).patches, expected.patches)


def test_half_precision_files_become_float32_and_the_local_norm_is_recognised(
    official: VisionTransformer, tmp_path: Path
) -> None:
    extra = {"local_cls_norm.weight": torch.ones(32), "local_cls_norm.bias": torch.zeros(32)}
    save_file(
        {key: value.bfloat16() for key, value in (official.state_dict() | extra).items()}, tmp_path / "b.safetensors"
    )
    backbone = load_backbone(f"dinov3:vits16:{tmp_path / 'b.safetensors'}")
    assert isinstance(backbone, VisionTransformer)
    assert backbone.config.local_cls_norm
    assert {tensor.dtype for tensor in backbone.state_dict().values()} == {torch.float32}
    assert not backbone.training


@torch.no_grad()
def test_timm_models_at_random_and_from_a_file(tmp_path: Path) -> None:
    backbone = load_backbone(f"timm:{TINY}:random")
    assert isinstance(backbone, torch.nn.Module)
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert isinstance(backbone, TimmBackbone)
    assert isinstance(backbone, Backbone)
    assert (backbone.patch_size, backbone.embed_dim, backbone.depth) == (16, 192, 12)
    head = {"head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}
    save_file(dict(backbone.model.state_dict()) | head, tmp_path / "tiny.safetensors")
    again = load_backbone(f"timm:{TINY}:{tmp_path / 'tiny.safetensors'}")
    assert torch.equal(again.features(pictures()).patches, backbone.features(pictures()).patches)
    features = again.features(pictures(), attention=True)
    torch.testing.assert_close(features.patches, again.features(pictures()).patches, atol=1e-5, rtol=0)
    assert features.patches.shape == (1, 2, 4, 192)
    assert features.registers.shape == (1, 0, 192)
    torch.testing.assert_close(features.attention.sum(-1), torch.ones(1, 3, 9))


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("convnext_tiny.dinov3_lvd1689m", TimmConvNeXt, (1, 1, 2, 768)),
        ("vit_small_patch14_dinov2.lvd142m", TimmBackbone, (1, 2, 3, 384)),
        ("vit_small_patch14_reg4_dinov2.lvd142m", TimmBackbone, (1, 2, 3, 384)),
    ],
)
@torch.no_grad()
def test_dinov2_and_convnext_names_of_timm(name: str, kind: type, shape: tuple[int, ...], tmp_path: Path) -> None:
    backbone = load_backbone(f"timm:{name}:random")
    assert isinstance(backbone, kind)
    images = torch.randn(1, 3, shape[1] * backbone.patch_size, shape[2] * backbone.patch_size)
    features = backbone.features(images)
    assert features.patches.shape == shape
    assert features.registers.shape[1] == (4 if "reg4" in name else 0)
    save_file(backbone.model.state_dict(), tmp_path / "w.safetensors")
    again = load_backbone(f"timm:{name}:{tmp_path / 'w.safetensors'}").features(images)
    assert torch.equal(again.patches, features.patches)
    whole = backbone.model.forward_features(images)  # timm's own way, without intermediate layers
    if kind is TimmBackbone:
        torch.testing.assert_close(features.patches.flatten(1, 2), whole[:, -6:], atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(features.cls, backbone.model(images), atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match="no attention weights"):
            backbone.features(images, attention=True)


@torch.no_grad()
def test_a_timm_model_without_class_token_gets_the_mean_of_its_patches() -> None:
    features = load_backbone("timm:vit_wee_patch16_reg1_gap_256:random").features(pictures())
    assert features.registers.shape == (1, 1, 256)
    torch.testing.assert_close(features.cls, features.patches.mean(dim=(1, 2)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "resnet50",
            r"unknown backbone spec 'resnet50'; valid forms:\n  run:PATH(.|\n)*synthetic(.|\n)*timm:(.|\n)*dinov3:",
        ),
        ("", "unknown backbone spec ''"),
        ("synthetic:7", "unknown backbone spec 'synthetic:7'"),
        ("timm:", "unknown backbone spec 'timm:'"),
        (f"timm:{TINY}", f"nothing is downloaded(.|\n)*'timm:{TINY}:PATH.safetensors'(.|\n)*'timm:{TINY}:random'"),
        ("timm:vit_tiny_patch16_225:random", "no model 'vit_tiny_patch16_225'. Similar: vit_tiny_patch16_224"),
        ("timm:resnet18:random", "'resnet18' is neither a plain vision transformer nor a ConvNeXt"),
        ("hf:", "unknown backbone spec 'hf:'"),
        ("dinov3:vitx:weights.pth", "ARCH one of vits16, vits16plus, vitb16"),
        ("dinov3:vits16", "dinov3:ARCH:PATH"),
        ("run:", "run:PATH"),
    ],
)
def test_wrong_specs_are_explained(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(spec)


def test_wrong_files_are_explained(official: VisionTransformer, tmp_path: Path) -> None:
    for spec, what in (
        ("dinov3:vits16:nowhere.pth", r"no weights file at .*nowhere\.pth(.|\n)*ask for access at(.|\n)*hf download"),
        (
            "dinov3:convnext_tiny:nowhere.pth",
            r"no weights file at .*nowhere\.pth(.|\n)*ask for access at(.|\n)*hf:FOLDER",
        ),
        (f"timm:{TINY}:nowhere.safetensors", r"no weights file(.|\n)*hf download timm/NAME(.|\n)*create_model"),
        ("hf:nowhere", r"no config\.json in nowhere(.|\n)*hf download facebook/dinov2(.|\n)*workbench export run:PATH"),
        ("hf:facebook/dinov3-vits16", r"no config\.json in facebook/dinov3-vits16; give a local folder"),
    ):
        with pytest.raises(FileNotFoundError, match=what):
            load_backbone(spec)
    (tmp_path / "weights.bin").write_bytes(b"0")
    with pytest.raises(ValueError, match=r"ends in '\.bin'; weights are read from \.safetensors or \.pth"):
        load_backbone(f"dinov3:vits16:{tmp_path / 'weights.bin'}")
    torch.save({"model": official}, tmp_path / "pickled.pth")
    with pytest.raises(ValueError, match="holds more than tensors"):
        load_backbone(f"dinov3:vits16:{tmp_path / 'pickled.pth'}")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot read"):
        load_backbone(f"dinov3:vits16:{tmp_path / 'torn.safetensors'}")
    save_file({"cls_token": torch.zeros(1, 1, 32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"not a DINOv3 vits16 backbone(.|\n)*Missing key"):
        load_backbone(f"dinov3:vits16:{tmp_path / 'other.safetensors'}")
    with pytest.raises(ValueError, match="does not fit timm model"):
        load_backbone(f"timm:{TINY}:{tmp_path / 'other.safetensors'}")


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before archives"])
def test_a_damaged_pth_is_explained(archive: bool, official: VisionTransformer, tmp_path: Path) -> None:
    path = tmp_path / "vits.pth"
    torch.save(official.state_dict(), path, _use_new_zipfile_serialization=archive)
    whole, draw = path.read_bytes(), random.Random(0)
    for size in (0, 1, 10, 100, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"vits\.pth.* damaged"):
            load_backbone(f"dinov3:vits16:{path}")
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(20):
            damaged[draw.randrange(4000)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            load_backbone(f"dinov3:vits16:{path}")
        except ValueError:  # anything else fails the test
            refused += 1
    assert refused > 30


def test_a_pth_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    torch.save({"cls_token": torch.zeros(100_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "small.pth").stat().st_size < 10_000
    assert "cls_token" in torch.load(tmp_path / "small.pth", weights_only=True), "torch unpacks it"
    with pytest.raises(ValueError, match=r"would unpack to 40\d{4} bytes"):
        load_backbone(f"dinov3:vits16:{tmp_path / 'small.pth'}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.bias": torch.zeros(32).to_sparse()}, "norm.bias is a tensor of .*not of plain floats"),
        ({"norm.bias": torch.zeros(32, dtype=torch.int64)}, "norm.bias is a tensor of torch.int64"),
        ({"norm.bias": torch.zeros(32, dtype=torch.complex64)}, "norm.bias is a tensor of torch.complex64"),
        ({"norm.bias": torch.zeros(32, device="meta")}, "norm.bias is a tensor of .*meta"),
        ({"norm.bias": "zeros"}, "norm.bias is a str, not a tensor"),
        ({"norm.bias": torch.zeros(1, dtype=torch.bfloat16).expand(10**15)}, "size mismatch for norm.bias"),
        ({"blocks.0.attn.qkv.bias_mask": torch.full((96,), torch.nan)}, r"blocks\.0\.attn\.qkv\.bias_mask must be 1"),
        ({"blocks.1.attn.qkv.bias_mask": torch.ones(96)}, r"blocks\.1\.attn\.qkv\.bias_mask must be 1"),
        ({"blocks.1.attn.qkv.bias_mask": torch.ones(2)}, r"size mismatch for blocks\.1\.attn\.qkv\.bias_mask"),
    ],
    ids=["sparse", "int64", "complex", "meta", "text", "expanded", "NaN mask", "mask of ones", "short mask"],
)
def test_tensors_that_are_not_the_network_s_are_refused(
    change: dict, message: str, official: VisionTransformer, tmp_path: Path
) -> None:
    torch.save(official.state_dict() | change, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        load_backbone(f"dinov3:vits16:{tmp_path / 'w.pth'}")


@pytest.mark.parametrize("spec", ["dinov3:vits16", f"timm:{TINY}"])
@pytest.mark.parametrize(
    ("state", "message"),
    [({1: torch.zeros(1)}, "has the key 1; a checkpoint is a dict of named tensors"), ([], "holds a list")],
    ids=["number", "list"],
)
def test_names_are_words(state, message: str, spec: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        load_backbone(f"{spec}:{tmp_path / 'w.pth'}")
    torch.save({"teacher": {1: torch.zeros(1)}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="has the key 1" if "dinov3" in spec else "does not fit"):
        load_backbone(f"{spec}:{tmp_path / 'w.pth'}")
