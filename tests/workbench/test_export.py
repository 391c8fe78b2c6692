"""Exports: transformers and timm open the folder and compute the same features, and what comes back is the network."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workbench.__main__ import main
from workbench.backbones import ConvNeXt, ConvNeXtConfig, Network, VisionTransformer, ViTConfig, architecture_of
from workbench.backbones import load as standalone
from workbench.backbones.architecture import network_of
from workbench.backbones.timm_names import CONVNEXT_MODELS, VIT_MODELS, timm_name, timm_tensors
from workbench.export import EXPORTED, export_backbone
from workbench.loading import load_backbone
from workbench.runs import RunWriter

TOLERANCE = 1e-5  # float32, absolute, on features of unit scale
INFO = {"phase": "pretrain", "recipe": "cpu_demo", "seed": 3, "steps": 9, "parent": {"run": "older", "step": 4}}
INPUT = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}

MLP = ViTConfig(embed_dim=48, depth=2, num_heads=2, num_registers=2, mask_k_bias=True)
VARIANTS = {
    "mlp, registers, masked key bias": MLP,
    "mlp, no registers, full qkv bias, patch 8, eps 1e-6": ViTConfig(
        patch_size=8, embed_dim=64, depth=2, num_heads=4, norm_eps=1e-6, rope_base=50.0
    ),
    "swiglu, registers, masked key bias, odd hidden width": ViTConfig(
        embed_dim=56, depth=2, num_heads=2, ffn="swiglu", ffn_hidden=93, num_registers=1, mask_k_bias=True
    ),
    "swiglu, no registers, no qkv bias, no LayerScale": ViTConfig(
        embed_dim=48, depth=2, num_heads=3, ffn="swiglu", qkv_bias=False, layerscale=0.0, rope_rescale=2.0
    ),
    "swiglu, full qkv bias, local norm": ViTConfig(
        embed_dim=48, depth=1, num_heads=3, ffn="swiglu", num_registers=4, local_cls_norm=True, drop_path=0.1
    ),
}
CONVNEXT = ConvNeXtConfig(dims=(8, 12, 16, 20), depths=(1, 1, 2, 1), norm_eps=1e-5)


def random_network(config: ViTConfig | ConvNeXtConfig) -> Network:
    """A network in which every parameter matters."""
    model, generator = network_of(config).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
            parameter.copy_(0.8 + 0.1 * noise if gain else parameter + 0.05 * noise)
    return model


def write_run(folder: Path, model: Network, **info) -> str:
    """A run with `model` as its teacher at steps 4 and 9, evaluated at 4 and 11; the spec of step 9."""
    with RunWriter.create(folder, info=INFO | {"input": INPUT} | info, config={}) as writer:
        for step in (4, 9):
            writer.backbone("teacher", step, architecture_of(model), model.state_dict())
        writer.evaluation(4, 1.0, "teacher", {"dense/patch_knn": 0.125})
        writer.evaluation(8, 2.0, "student", {"dense/patch_knn": 0.75})
        writer.evaluation(11, 3.0, "teacher", {"dense/patch_knn": 0.5})
    return f"run:{folder}"


def picture(model: Network, batch: int = 2) -> Tensor:
    side = 32 if isinstance(model, ConvNeXt) else model.patch_size
    return torch.randn(batch, 3, 3 * side, 5 * side, generator=torch.Generator().manual_seed(7))


def flat_tokens(features) -> Tensor:
    """[B, 1 + R + H W, D] in the order of transformers and timm."""
    return torch.cat((features.cls[:, None], features.registers, features.patches.flatten(1, 2)), dim=1)


def loading_code(folder: Path) -> str:
    """The Python of the model card, for images that a test has put into `images`."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return code


def run_card(folder: Path) -> dict[str, object]:
    """Names that the card's Python defines when it runs in the exported folder, as the card says."""
    names: dict[str, object] = {}
    with contextlib.chdir(folder):
        exec(compile(loading_code(folder), "README.md", "exec"), names)
    return names


# ---- transformers ----


@pytest.mark.parametrize("config", [*VARIANTS.values(), CONVNEXT], ids=[*VARIANTS, "ConvNeXt"])
@torch.no_grad()
def test_transformers_and_back(config: ViTConfig | ConvNeXtConfig, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_network(config)
    spec = write_run(tmp_path / "run", model)
    export_backbone(spec, tmp_path / "out")
    kind = transformers.DINOv3ConvNextModel if isinstance(model, ConvNeXt) else transformers.DINOv3ViTModel
    twin, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, theirs = flat_tokens(model(picture(model))), twin(picture(model)).last_hidden_state
    assert ours.std() > 0.3
    assert (ours - theirs).abs().max() <= TOLERANCE

    twin.save_pretrained(tmp_path / "theirs")  # as that library writes it, whatever its version calls the layers
    for folder in ("out", "theirs"):
        again = load_backbone(f"hf:{tmp_path / folder}")
        assert type(again) is type(model)
        assert (flat_tokens(again.features(picture(model))) - ours).abs().max() <= TOLERANCE
        assert not any(parameter.requires_grad for parameter in again.parameters())
    kept = load_backbone(f"hf:{tmp_path / 'out'}").state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("local_cls_norm") and not name.endswith("qkv.bias"):
            assert torch.equal(kept[name], tensor), name


def test_what_only_training_needs_comes_back_too(tmp_path: Path) -> None:
    config = ViTConfig(
        embed_dim=32, depth=1, num_heads=2, layerscale=0.25, rope_shift=0.1, rope_jitter=1.5, rope_rescale=3.0
    )
    convnext = ConvNeXtConfig(**(CONVNEXT.to_dict() | {"layerscale": 0.25, "drop_path": 0.125}))
    for index, given in enumerate((config, convnext)):
        export_backbone(write_run(tmp_path / f"run{index}", random_network(given)), tmp_path / f"out{index}")
        assert load_backbone(f"hf:{tmp_path / f'out{index}'}").config == given


def test_the_processor_normalises_as_the_run_did(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export_backbone(write_run(tmp_path / "run", random_network(MLP)), tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    grey = torch.full((3, 224, 224), 255, dtype=torch.uint8)
    pixels = processor(images=grey, return_tensors="pt")["pixel_values"]
    expected = (1 - torch.tensor(INPUT["mean"])) / torch.tensor(INPUT["std"])
    torch.testing.assert_close(pixels, expected[None, :, None, None].expand(1, 3, 224, 224))


@torch.no_grad()
def test_a_folder_in_parts_and_in_half_precision_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_network(MLP)
    export_backbone(write_run(tmp_path / "run", model), tmp_path / "out")
    twin = transformers.DINOv3ViTModel.from_pretrained(tmp_path / "out").bfloat16()
    twin.save_pretrained(tmp_path / "parts", max_shard_size="60KB")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    again = load_backbone(f"hf:{tmp_path / 'parts'}")
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float32}
    assert (flat_tokens(again.features(picture(model))) - flat_tokens(model(picture(model)))).abs().mean() < 0.02


# ---- timm ----


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_timm_computes_the_same(config: ViTConfig, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = random_network(config)
    export_backbone(write_run(tmp_path / "run", model), tmp_path / "out", library="timm")
    twin = run_card(tmp_path / "out")["model"]
    ours = flat_tokens(model(picture(model)))
    assert ours.std() > 0.3
    assert (ours - twin.forward_features(picture(model))).abs().max() <= TOLERANCE
    torch.testing.assert_close(twin(picture(model)), model(picture(model)).cls, atol=TOLERANCE, rtol=0)
    if config.norm_eps != 1e-5:
        assert not (tmp_path / "out" / "config.json").exists()
        return
    twin = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert (ours - twin.forward_features(picture(model))).abs().max() <= TOLERANCE
    assert list(twin.pretrained_cfg["mean"]) == INPUT["mean"]


@torch.no_grad()
def test_timm_computes_the_same_for_a_convnext(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = random_network(CONVNEXT)
    export_backbone(write_run(tmp_path / "run", model), tmp_path / "out", library="timm")
    for twin in (
        run_card(tmp_path / "out")["model"],
        timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True),
    ):
        assert isinstance(twin, nn.Module)
        maps = twin.eval().forward_features(picture(model))
        assert (twin.head.norm(maps).permute(0, 2, 3, 1) - model(picture(model)).patches).abs().max() <= TOLERANCE
        assert (twin(picture(model)) - model(picture(model)).cls).abs().max() <= TOLERANCE


@torch.no_grad()
def test_a_published_size_has_its_name_in_timm(tmp_path: Path) -> None:
    model = random_network(ViTConfig.vit_small())
    assert timm_name(model) == "vit_small_patch16_dinov3_qkvb"
    export_backbone(write_run(tmp_path / "run", model), tmp_path / "out", library="timm")
    assert 'timm.create_model("vit_small_patch16_dinov3_qkvb"' in loading_code(tmp_path / "out")
    twin = load_backbone(f"timm:vit_small_patch16_dinov3_qkvb:{tmp_path / 'out' / 'model.safetensors'}")
    images = picture(model, batch=1)
    assert (flat_tokens(twin.features(images)) - flat_tokens(model(images))).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", VIT_MODELS)
def test_names_of_timm_mean_the_shapes_of_ours(name: str) -> None:
    timm = pytest.importorskip("timm")
    assert timm.is_model(f"{name}_qkvb") == ("7b" not in name)
    for variant in (name, f"{name}_qkvb") if "small" in name else (name,):
        config = VIT_MODELS[name]
        with torch.device("meta"):
            model = VisionTransformer(ViTConfig(**(config.to_dict() | {"qkv_bias": variant != name})))
            twin = timm.create_model(variant, num_classes=0)
        assert timm_name(model) == variant
        ours = {key: tensor.shape for key, tensor in timm_tensors(model).items()}
        assert ours == {key: tensor.shape for key, tensor in twin.state_dict().items()}


@pytest.mark.parametrize(
    "change",
    [{"num_heads": 12}, {"norm_eps": 1e-6}, {"rope_base": 50.0}, {"layerscale": 0.0}, {"mask_k_bias": False}],
    ids=str,
)
def test_a_network_that_only_resembles_a_published_one_has_no_name_in_timm(change: dict) -> None:
    with torch.device("meta"):
        assert timm_name(VisionTransformer(ViTConfig.vit_small(**change))) is None


@pytest.mark.parametrize("name", CONVNEXT_MODELS)
def test_convnext_names_of_timm_mean_the_shapes_of_ours(name: str) -> None:
    timm = pytest.importorskip("timm")
    config = CONVNEXT_MODELS[name]
    with torch.device("meta"):
        model, twin = ConvNeXt(config), timm.create_model(name, num_classes=0)
        other = ConvNeXt(ConvNeXtConfig(**(config.to_dict() | {"norm_eps": 1e-5})))
    assert (timm_name(model), timm_name(other)) == (name, None)
    ours = {key: tensor.shape for key, tensor in timm_tensors(model).items()}
    assert ours == {key: tensor.shape for key, tensor in twin.state_dict().items()}
    assert {module.eps for module in twin.modules() if isinstance(module, nn.LayerNorm)} == {config.norm_eps}


# ---- the folder and its card ----

HOSTILE = "a|b](http://x.y) <script>\n# title\n---\nlicense: mit\x1b[31m `x` **b** \u202e $e$"


def test_the_card_tells_where_the_network_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = random_network(VARIANTS["swiglu, full qkv bias, local norm"])
    spec = write_run(tmp_path / "run", model)
    assert main(["export", spec, str(tmp_path / "out")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"wrote {tmp_path / 'out'} for transformers" in told
    assert "note: The norm of local crops (`local_cls_norm`) is left out" in told
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(EXPORTED)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["library_name"] == "transformers"
    for row in (
        "| run | run |",
        "| step | 9 |",
        "| recipe | cpu\\_demo |",
        "| seed | 3 |",
        "| parent | older\\, step 4 |",
        "| embed\\_dim | 48 |",
        "| dense\\/patch\\_knn | 0\\.125 |",
        "- mean: 0.4, 0.5, 0.6",
        "- The norm of local crops",
        "Of the last evaluation (step 4)",
    ):
        assert row in card, row
    assert run_card(tmp_path / "out")["patches"].shape == (1, 14 * 14, 48)


def test_a_card_without_evaluation_or_input_says_so(tmp_path: Path) -> None:
    model = random_network(MLP)
    with RunWriter.create(tmp_path / "run", info=INFO | {"parent": None}, config={}) as writer:
        writer.backbone("student", 2, architecture_of(model), model.state_dict())
    written = export_backbone(f"run:{tmp_path / 'run'}@step=2:student", tmp_path / "out", library="timm")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "was not evaluated" in card
    assert "| parent | none\\: trained from scratch |" in card
    assert any("ImageNet's statistics are assumed" in note for note in written.left_out)
    assert "- mean: 0.485, 0.456, 0.406" in card


@pytest.mark.parametrize(
    ("weights", "parent", "licence"),
    [
        ("dinov3:vits16:/home/me/secret/w.pth", "DINOv3 vits16\\, w\\.pth", True),
        ("hf:/home/me/secret/theirs", "theirs", False),
        ("run:/home/me/secret/older@step=4:teacher", "older\\@step\\=4\\:teacher", False),
    ],
)
def test_a_run_that_began_with_given_weights_is_not_called_trained_from_scratch(
    weights: str, parent: str, licence: bool, tmp_path: Path
) -> None:
    model, config = random_network(MLP), {"start": {"fork": "", "student": "student", "weights": weights}}
    with RunWriter.create(tmp_path / "run", info=INFO | {"parent": None, "input": INPUT}, config=config) as writer:
        writer.backbone("teacher", 2, architecture_of(model), model.state_dict())
    export_backbone(f"run:{tmp_path / 'run'}", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"| parent | no run\\: trained from given weights\\, {parent} |" in card
    assert "scratch" not in card
    assert "secret" not in card
    (tmp_path / "run" / "config.json").unlink()
    export_backbone(f"run:{tmp_path / 'run'}", tmp_path / "again")
    assert "| parent | not recorded |" in (tmp_path / "again" / "README.md").read_text("utf-8")
    assert ("DINOv3 License" in card) == licence


def test_foreign_text_in_a_card_is_text(tmp_path: Path) -> None:
    spec = write_run(
        tmp_path / "run",
        random_network(MLP),
        name=HOSTILE,
        recipe=HOSTILE,
        seed=[HOSTILE],
        parent={"run": HOSTILE, "step": 1},
    )
    export_backbone(spec, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    _, head, body = card.split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"library_name", "pipeline_tag", "tags"}
    assert [line for line in body.splitlines() if line.startswith("# ")] == [body.splitlines()[1]]
    assert "\n---\n" not in body
    unescaped = re.sub(r"\\[!-/:-@\[-`{-~]", "", body)
    for mark in ("<script", "](", "http:", "**b", "$e", "\x1b", "\u202e"):
        assert mark not in unescaped, mark
    rows = [line for line in unescaped.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {3}
    assert run_card(tmp_path / "out")["patches"].shape[-1] == 48


def test_official_weights_keep_their_terms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(standalone.DINOV3_ARCHITECTURES, "vits16", lambda **extra: MLP)
    torch.save(random_network(MLP).state_dict(), tmp_path / "vits.pth")
    export_backbone(f"dinov3:vits16:{tmp_path / 'vits.pth'}", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "DINOv3 License" in card
    assert str(tmp_path) not in card
    export_backbone(f"hf:{tmp_path / 'out'}", tmp_path / "again", library="timm")
    assert "DINOv3 License" not in (tmp_path / "again" / "README.md").read_text("utf-8")


def test_nothing_is_overwritten_by_accident(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = random_network(MLP)
    spec = write_run(tmp_path / "run", model)
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is fine
    export_backbone(spec, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["export", spec, str(out), "--format", "timm"]) == 2
    assert "is not empty; choose another folder, or --overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main(["export", spec, str(out), "--format", "timm", "--overwrite"]) == 0
    assert "preprocessor_config.json" not in os.listdir(out)
    (out / "thesis.txt").write_text("mine")
    assert main(["export", spec, str(out), "--overwrite"]) == 2
    assert "thesis.txt, which no export writes" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "mine"
    assert main(["export", spec, str(tmp_path / "run"), "--overwrite"]) == 2
    with pytest.raises(ValueError, match="is a file"):
        export_backbone(spec, out / "thesis.txt")


@pytest.mark.parametrize("card", [None, "# A model that somebody downloaded", "\xff"], ids=["none", "other", "latin"])
def test_a_folder_that_no_export_wrote_is_never_replaced(card: str | None, tmp_path: Path, capsys) -> None:
    """A downloaded model has the very file names of an export."""
    spec = write_run(tmp_path / "run", random_network(MLP))
    export_backbone(spec, tmp_path / "out")
    (tmp_path / "out" / "README.md").unlink()
    if card is not None:
        (tmp_path / "out" / "README.md").write_bytes(card.encode("latin-1"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert main(["export", f"hf:{tmp_path / 'out'}", str(tmp_path / "out"), "--overwrite"]) == 2
    assert "holds a model that is no export, by its README.md; nothing was touched" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_what_comes_in_while_an_export_is_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_run(tmp_path / "run", random_network(MLP))
    export_backbone(spec, tmp_path / "out")

    def meanwhile(*arguments, **options) -> None:
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        save_file(*arguments, **options)

    monkeypatch.setattr("workbench.export.save_file", meanwhile)
    with pytest.raises(ValueError, match=r"thesis\.txt, which no export writes"):
        export_backbone(spec, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*EXPORTED, "thesis.txt"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_all_files_have_the_mode_of_any_new_file(tmp_path: Path) -> None:
    """safetensors keeps what it writes to the owner; weights to hand on are read by others."""
    spec = write_run(tmp_path / "run", random_network(MLP))
    export_backbone(spec, tmp_path / "out")
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    written = [*(tmp_path / "out").iterdir(), *(tmp_path / "run" / "backbones" / "teacher").iterdir()]
    assert {path.name: path.stat().st_mode for path in written} == {path.name: usual for path in written}


@torch.no_grad()
def test_weights_that_share_memory_are_written_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(standalone.DINOV3_ARCHITECTURES, "vits16", lambda **extra: MLP)
    model = random_network(MLP)
    model.load_state_dict(state := model.state_dict() | {"norm.bias": model.state_dict()["norm.weight"]})
    torch.save(state, tmp_path / "vits.pth")
    export_backbone(f"dinov3:vits16:{tmp_path / 'vits.pth'}", tmp_path / "out")
    again = load_backbone(f"hf:{tmp_path / 'out'}")
    assert (flat_tokens(again.features(picture(model))) - flat_tokens(model(picture(model)))).abs().max() <= TOLERANCE


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_rounded_periods_are_told(library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both libraries compute them, so a network that loaded rounded ones is not the one that they open."""
    config = ViTConfig(embed_dim=64, depth=1, num_heads=2)
    monkeypatch.setitem(standalone.DINOV3_ARCHITECTURES, "vits16", lambda **extra: config)
    state = random_network(config).state_dict()
    for name, told in (("exact", False), ("rounded", True)):
        periods = state["rope_embed.periods"] if name == "exact" else state["rope_embed.periods"].bfloat16()
        torch.save(state | {"rope_embed.periods": periods}, tmp_path / "vits.pth")
        written = export_backbone(f"dinov3:vits16:{tmp_path / 'vits.pth'}", tmp_path / name, library=library)
        assert any("RoPE periods of these weights are rounded" in note for note in written.left_out) == told


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_run(tmp_path / "run", random_network(MLP))
    export_backbone(spec, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*arguments, **options):
        raise OSError("disk full")

    rename = os.rename

    def refuse(source, target) -> None:
        """Fail where the finished folder would take the place of the old one."""
        if Path(target).name in ("out", "new") and (Path(source) / "config.json").exists() and not moved:
            moved.append(source)
            raise OSError("no rename")
        rename(source, target)

    moved: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr("workbench.export.os.rename", refuse)
        with pytest.raises(OSError, match="no rename"):
            export_backbone(spec, tmp_path / "out", library="timm", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    monkeypatch.setattr("workbench.export.save_file", full)
    for folder in ("out", "new"):
        with pytest.raises(OSError, match="disk full"):
            export_backbone(spec, tmp_path / folder, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("spec", "library", "message"),
    [
        ("synthetic", "transformers", "is a SyntheticBackbone; only VisionTransformer and ConvNeXt are exported"),
        ("timm:test_vit:random", "timm", "is a TimmBackbone"),
        ("synthetic", "onnx", "format 'onnx' is unknown; use one of transformers, timm"),
    ],
)
def test_what_cannot_be_exported_is_explained(spec: str, library, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_backbone(spec, tmp_path / "out", library=library)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("library", ["transformers", "timm"])
def test_coordinates_that_only_we_have_are_refused(library, tmp_path: Path) -> None:
    spec = write_run(tmp_path / "run", random_network(ViTConfig(embed_dim=32, depth=1, num_heads=2, rope_coords="max")))
    with pytest.raises(ValueError, match="rope_coords is 'max'"):
        export_backbone(spec, tmp_path / "out", library=library)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_bias": False}, r"biases \(False, False, True\); allowed"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"model_type": "vit"}, "model of type 'vit'; allowed: dinov3_vit, dinov3_convnext, dinov2, dinov2_with"),
        ({"patch_size": [16, 8]}, r"patch_size \[16, 8\]; our patches are square"),
        ({"num_hidden_layers": 3}, "do not fit its config.json(.|\n)*Missing key"),
        ({"num_hidden_layers": 1}, "do not fit its config.json(.|\n)*Unexpected key"),
        ({"key_bias": True}, "do not fit its config.json(.|\n)*Missing key"),
        ({"hidden_size": "x"}, "embed_dim is 'x'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_folders_that_do_not_fit_are_explained(change: dict, message: str, tmp_path: Path) -> None:
    export_backbone(write_run(tmp_path / "run", random_network(MLP)), tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_backbone(f"hf:{tmp_path / 'out'}")


def test_a_key_bias_that_the_config_does_not_know_is_refused(tmp_path: Path) -> None:
    export_backbone(
        write_run(tmp_path / "run", random_network(VARIANTS["swiglu, full qkv bias, local norm"])), tmp_path / "out"
    )
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key_bias": False}))
    assert "layer.0.attention.k_proj.bias" in load_file(tmp_path / "out" / "model.safetensors")
    with pytest.raises(ValueError, match=r"Unexpected key(.|\n)*k_proj\.bias"):
        load_backbone(f"hf:{tmp_path / 'out'}")


def test_the_card_of_the_backbone_in_the_box_reads_its_own_folder(tmp_path: Path, monkeypatch) -> None:
    foreign = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.1, 0.1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(foreign))
    monkeypatch.chdir(tmp_path)
    export_backbone("demo", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "0.485, 0.456, 0.406" in card
    assert "0.5, 0.5, 0.5" not in card
    assert "| folder | demo |" in card
