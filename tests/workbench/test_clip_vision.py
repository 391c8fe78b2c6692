"""Image towers of CLIP, SigLIP and SigLIP 2: same tokens as the library's own forward, any grid, any layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.backbones.clip_vision import ClipVisionBackbone
from workbench.features import Backbone
from workbench.loading import load_backbone
from workbench.origin import input_statistics

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-5  # float32, absolute, on features of unit scale
SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
SIZE = {"clip": {"image_size": 70}, "siglip": {"image_size": 75}, "siglip2": {"num_patches": 25}}  # all 5 x 5 patches
LIBRARY = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2"}
KINDS = tuple(LIBRARY)
GRIDS = {"native": (5, 5), "wide": (3, 7), "as many patches as native, not square": (1, 25), "one patch": (1, 1)}


def write_model(kind: str, folder: Path, *, whole: bool = True):
    """A small model with random weights, saved in `folder` with its text tower or without; gives the image tower."""
    name, sizes = LIBRARY[kind], SHAPE | SIZE[kind]
    if whole:
        config = getattr(transformers, f"{name}Config")(vision_config=sizes, text_config=TEXT)
        model = getattr(transformers, f"{name}Model")(config)
    else:
        config = getattr(transformers, f"{name}VisionConfig")(**sizes)
        model = getattr(transformers, f"{name}VisionModel")(config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.eval().save_pretrained(folder)
    return model.vision_model if whole else model


def pictures(grid: tuple[int, int] = (3, 7), count: int = 2) -> Tensor:
    return torch.randn(count, 3, 14 * grid[0], 14 * grid[1], generator=torch.Generator().manual_seed(7))


def theirs(kind: str, tower, images: Tensor, **options):
    """The library's own output; SigLIP 2 gets its patches from the library's own image processor."""
    if kind != "siglip2":
        return tower(images, interpolate_pos_encoding=images.shape[2:] != (70, 70), **options)
    processor = transformers.Siglip2ImageProcessor(
        do_resize=False,
        do_rescale=False,
        do_normalize=False,
        patch_size=14,
        max_num_patches=images[0, 0].numel() // 196,
    )
    return tower(**processor(list(images), return_tensors="pt"), **options)


def load(folder: Path) -> ClipVisionBackbone:
    backbone = load_backbone(f"hf:{folder}")
    assert isinstance(backbone, ClipVisionBackbone)
    return backbone


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_are_those_of_transformers(kind: str, grid: tuple[int, int], count: int, tmp_path: Path) -> None:
    tower = write_model(kind, tmp_path)
    backbone = load(tmp_path)
    assert isinstance(backbone, Backbone)
    assert (backbone.patch_size, backbone.embed_dim, backbone.depth) == (14, 48, 3)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    features = backbone.features(pictures(grid, count))
    assert features.patches.shape == (count, *grid, 48)
    assert features.registers.shape == (count, 0, 48)
    output = theirs(kind, tower, pictures(grid, count))
    if kind == "clip":  # its own output has the norm on the class token only
        assert (features.cls - output.pooler_output).abs().max() <= TOLERANCE
        expected = tower.post_layernorm(output.last_hidden_state)[:, 1:]
    else:
        expected = output.last_hidden_state
        assert (features.cls - expected.mean(dim=1)).abs().max() <= TOLERANCE
    assert expected.std() > 0.3
    assert (features.patches.flatten(1, 2) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_layer_and_the_attention_asked_for(kind: str, tmp_path: Path) -> None:
    tower = write_model(kind, tmp_path)
    backbone, prefix = load(tmp_path), int(kind == "clip")
    tower.set_attn_implementation("eager")
    output = theirs(kind, tower, pictures(), output_attentions=True, output_hidden_states=True)
    for layer in range(3):
        plain = backbone.features(pictures(), layer=layer)
        assert plain.attention is None
        expected = tower.post_layernorm(output.hidden_states[layer + 1])[:, prefix:]
        assert (plain.patches.flatten(1, 2) - expected).abs().max() <= TOLERANCE
        features = backbone.features(pictures(), layer=layer - 3, attention=True)
        assert features.attention.shape == (2, 3, prefix + 21, prefix + 21)
        assert (features.attention - output.attentions[layer]).abs().max() <= TOLERANCE
        assert (features.patches - plain.patches).abs().max() <= TOLERANCE
    assert (backbone.features(pictures(), layer=1).patches - plain.patches).abs().max() > 0.1
    tower.encoder.layers = tower.encoder.layers[:2]  # what is left ends in the layer asked for
    shorter = tower.post_layernorm(theirs(kind, tower, pictures(), output_hidden_states=True).hidden_states[-1])
    ours = backbone.features(pictures(), layer=1).patches.flatten(1, 2)
    assert (ours - shorter[:, prefix:]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_tower_alone_and_one_in_parts_load_too(kind: str, tmp_path: Path) -> None:
    write_model(kind, tmp_path / "alone", whole=False)
    backbone = load(tmp_path / "alone")
    patches = backbone.features(pictures()).patches
    transformers.AutoModel.from_pretrained(tmp_path / "alone").save_pretrained(
        tmp_path / "parts", max_shard_size="60KB"
    )
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert torch.equal(load(tmp_path / "parts").features(pictures()).patches, patches)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_where_a_patch_is_in_the_image_is_where_it_is_in_the_grid(kind: str, tmp_path: Path) -> None:
    """Without blocks, only the patch that was painted changes."""
    write_model(kind, tmp_path)
    backbone = load(tmp_path)
    backbone.model.encoder.layers = torch.nn.ModuleList([_Same()])
    backbone.depth = 1
    painted = pictures().clone()
    painted[:, :, 14:28, 70:84] += 1
    output = backbone._run(painted, (3, 7), False), backbone._run(pictures(), (3, 7), False)
    changed = [run.last_hidden_state[:, int(kind == "clip") :].unflatten(1, (3, 7)) for run in output]
    rows = (changed[0] - changed[1]).abs().amax(dim=(0, 3)) > 1e-3
    assert rows.nonzero().tolist() == [[1, 5]]


class _Same(torch.nn.Module):
    def forward(self, tokens: Tensor, *_: object, **__: object) -> Tensor:
        return tokens


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_constant_images_and_half_precision(kind: str, tmp_path: Path) -> None:
    write_model(kind, tmp_path)
    backbone = load(tmp_path)
    even = backbone.features(torch.full((1, 3, 42, 98), 0.5))
    assert even.patches.isfinite().all()
    exact = backbone.features(pictures())
    half = backbone.to(torch.bfloat16).features(pictures().bfloat16(), attention=True)
    assert half.patches.dtype == half.cls.dtype == half.attention.dtype == torch.bfloat16
    assert (half.patches.float() - exact.patches).abs().mean() < 0.03
    assert torch.cosine_similarity(half.patches.float(), exact.patches, dim=-1).min() > 0.99


@pytest.mark.parametrize("saved", ["image processor", "processor"])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_normalised_as_the_folder_says(kind: str, saved: str, tmp_path: Path) -> None:
    write_model(kind, tmp_path)
    backbone, spec = load(tmp_path), f"hf:{tmp_path}"
    assert input_statistics(spec, backbone)[2], "nothing is recorded yet"
    processor = getattr(transformers, f"{LIBRARY[kind]}ImageProcessor")(image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    if saved == "processor":  # as a processor of transformers 5 leaves it
        path = tmp_path / "preprocessor_config.json"
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(path.read_text())}))
        path.unlink()
    std = (0.26862954, 0.26130258, 0.27577711) if kind == "clip" else (0.5, 0.5, 0.5)
    assert input_statistics(spec, backbone) == ((0.1, 0.2, 0.3), std, False)


@torch.no_grad()
def test_an_old_config_that_says_its_sizes_twice(tmp_path: Path) -> None:
    """The first CLIP folders have a vision_config_dict; where both are there, the library takes that one."""
    tower = write_model("clip", tmp_path)
    path = tmp_path / "config.json"
    entries = json.loads(path.read_text())
    entries |= {"vision_config_dict": entries["vision_config"], "vision_config": {"hidden_size": 512}}
    path.write_text(json.dumps(entries))
    library = transformers.CLIPModel.from_pretrained(tmp_path).vision_model
    assert library.config.hidden_size == 48
    expected = tower(pictures(), interpolate_pos_encoding=True).pooler_output
    assert (load(tmp_path).features(pictures()).cls - expected).abs().max() <= TOLERANCE


def test_what_is_missing_or_does_not_fit_is_explained(tmp_path: Path) -> None:
    write_model("siglip", tmp_path)
    backbone = load(tmp_path)
    with pytest.raises(
        ValueError, match="height is 75 pixels, not a multiple of the patch size 14; nearest allowed: 70"
    ):
        backbone.features(torch.zeros(1, 3, 75, 75))
    with pytest.raises(ValueError, match="layer is 3; this network has 3 blocks"):
        backbone.features(pictures(), layer=3)
    with pytest.raises(
        FileNotFoundError, match=r"no config\.json(.|\n)*hf download(.|\n)*SigLIP(.|\n)*workbench export"
    ):
        load_backbone(f"hf:{tmp_path / 'nowhere'}")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in(.|\n)*hf download(.|\n)*workbench export"):
        load_backbone(f"hf:{tmp_path}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_does_not_hold_its_tower_is_refused(kind: str, tmp_path: Path) -> None:
    write_model(kind, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors, whole = load_file(path), path.read_bytes()
    save_file({name: tensor for name, tensor in tensors.items() if "vision_model.encoder.layers.1." not in name}, path)
    with pytest.raises(ValueError, match=r"lacks 16 tensors of its model, the first is .*encoder\.layers\.1"):
        load_backbone(f"hf:{tmp_path}")
    save_file({name: tensor for name, tensor in tensors.items() if "vision_model.head." not in name}, path)
    load_backbone(f"hf:{tmp_path}")  # the pooling of SigLIP is not used
    save_file(tensors | {"vision_model.post_layernorm.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="transformers cannot open"):
        load_backbone(f"hf:{tmp_path}")
    path.write_bytes(whole[:5000])
    with pytest.raises(ValueError, match="transformers cannot open"):
        load_backbone(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "clip_text_model"}, "'clip_text_model'; allowed: dinov3_vit, .*clip, .*siglip, .*siglip2"),
        ({"model_type": ["clip"]}, "of type .'clip'.; allowed"),
        ({"vision_config": [1]}, r"has vision_config \[1\]; expected an object"),
        ({"vision_config": SHAPE | {"num_channels": 1}}, "has num_channels 1; images have 3 here"),
        ({"vision_config": SHAPE | {"hidden_size": "x"}}, "transformers cannot open"),
        ({"vision_config": SHAPE | {"num_attention_heads": 5}}, "transformers cannot open"),
        ({"vision_config": SHAPE | {"patch_size": 0}}, "transformers cannot open"),
        ({"vision_config": SHAPE | {"hidden_act": "nothing"}}, "transformers cannot open"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_explained(change: dict, message: str, tmp_path: Path) -> None:
    write_model("clip", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_backbone(f"hf:{tmp_path}")


@torch.no_grad()
def test_nothing_in_a_folder_makes_transformers_fetch_or_run_anything(tmp_path: Path, caplog, capfd) -> None:
    tower = write_model("clip", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    hostile = {
        "_attn_implementation": "somebody/kernels",
        "attn_implementation": "somebody/kernels",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "auto_map": {"AutoModel": "code.Model", "AutoConfig": "code.Config"},
    }
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(entries | hostile | {"vision_config": entries["vision_config"] | hostile}))
    (tmp_path / "model" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    capfd.readouterr()
    backbone = load(tmp_path / "model")
    told = "".join(capfd.readouterr()) + caplog.text
    assert "UNEXPECTED" not in told, "a list of the text tower's tensors is no news"
    assert backbone.model.config._attn_implementation == "sdpa"
    expected = tower(pictures(), interpolate_pos_encoding=True).pooler_output
    assert torch.equal(backbone.features(pictures()).cls, expected)
    assert not (tmp_path / "ran").exists()
    (tmp_path / "model" / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/model"}')
    with pytest.raises(ValueError, match="holds an adapter"):
        load_backbone(f"hf:{tmp_path / 'model'}")
