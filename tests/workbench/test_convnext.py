"""ConvNeXt: equal to those of transformers and timm, official names, and the properties of its features."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from workbench.backbones import ConvNeXt, ConvNeXtConfig, architecture_of, network_from_architecture
from workbench.backbones import load as standalone
from workbench.backbones.external import TimmConvNeXt, load_timm_weights
from workbench.backbones.timm_names import timm_arguments, timm_tensors
from workbench.backbones.transformers_names import transformers_config, transformers_tensors
from workbench.features import Backbone
from workbench.loading import load_backbone
from workbench.runs import Run, RunWriter

TOLERANCE = 1e-5  # float32, absolute, on features of unit scale
SMALL = {"dims": (16, 24, 40, 56), "depths": (2, 1, 3, 2)}


def random_network(seed: int = 0, **fields) -> ConvNeXt:
    """A small network in which every parameter matters."""
    generator = torch.Generator().manual_seed(seed)
    model = ConvNeXt(ConvNeXtConfig(**(SMALL | fields)), generator=generator).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = name.endswith("gamma") or (parameter.ndim == 1 and name.endswith("weight"))
            parameter.copy_(0.8 + 0.1 * noise if gain else parameter + 0.05 * noise)
    return model


def picture(batch: int = 2, height: int = 96, width: int = 160) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


def official_state(model: ConvNeXt) -> dict[str, Tensor]:
    """As in an official checkpoint: the final norm under both of its names."""
    state = dict(model.state_dict())
    return state | {f"norms.3.{name}": state[f"norm.{name}"].clone() for name in ("weight", "bias")}


# ---- equal to independent implementations ----


@torch.no_grad()
def test_features_equal_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    model = random_network()
    entries = {name: value for name, value in transformers_config(model).items() if name != "model_type"}
    twin = transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**entries)).eval()
    state = {
        f"model.{name}" if name.startswith("stages.") else name: tensor
        for name, tensor in transformers_tensors(model).items()
    }
    twin.load_state_dict(state, strict=True)
    theirs = twin(picture(), output_hidden_states=True)
    ours = model(picture())
    assert ours.patches.shape == (2, 3, 5, 56)
    assert ours.patches.std() > 0.3
    assert (ours.patches.flatten(1, 2) - theirs.last_hidden_state[:, 1:]).abs().max() <= TOLERANCE
    assert (ours.cls - theirs.last_hidden_state[:, 0]).abs().max() <= TOLERANCE
    for stage in range(3):
        maps = model.features(picture(), layer=stage).patches.permute(0, 3, 1, 2)
        assert (maps - theirs.hidden_states[-4 + stage]).abs().max() <= TOLERANCE * maps.std()


@torch.no_grad()
def test_features_equal_those_of_timm() -> None:
    convnext = pytest.importorskip("timm.models.convnext")
    model = random_network()
    twin = TimmConvNeXt(convnext.ConvNeXt(**timm_arguments(model)))
    load_timm_weights(twin, timm_tensors(model))
    for layer in (-1, 0, 2):
        ours, theirs = model.features(picture(), layer=layer), twin.features(picture(), layer=layer)
        assert ours.patches.std() > 0.3
        scale = max(1.0, float(ours.patches.std()))
        for name, left, right in zip(ours._fields[:3], ours, theirs, strict=False):
            assert left.shape == right.shape
            assert left.numel() == 0 or (left - right).abs().max() <= TOLERANCE * scale, (layer, name)


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 27.8), ("small", 49.5), ("base", 87.6), ("large", 196.2)], ids=str
)
def test_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = ConvNeXt(getattr(ConvNeXtConfig, name)())
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


# ---- properties ----


@torch.no_grad()
def test_the_contract() -> None:
    model = random_network()
    assert isinstance(model, Backbone)
    assert (model.patch_size, model.embed_dim, model.depth) == (32, 56, 4)
    features = model(picture(batch=1, height=32, width=64), masks=torch.ones(1, 1, 2, dtype=torch.bool))
    assert features.patches.shape == (1, 1, 2, 56)
    assert features.registers.shape == (1, 0, 56)
    assert features.attention is None
    for token in (features.cls, features.patches):
        normal = (token - model.norm.bias) / model.norm.weight  # one norm for both
        torch.testing.assert_close(normal.mean(-1), torch.zeros(token.shape[:-1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(normal.std(-1, correction=0), torch.ones(token.shape[:-1]), atol=1e-3, rtol=0)
    low = copy.deepcopy(model).bfloat16()(picture().bfloat16())
    assert low.patches.dtype == torch.bfloat16
    assert (low.cls.float() - model(picture()).cls).abs().mean() < 0.1


@torch.no_grad()
def test_maps_are_resized_in_evaluation_only() -> None:
    model, finer = random_network(), random_network(patch_size=16)
    assert finer.patch_size == 16
    native = model._maps(picture(), stages=4)
    resized = F.interpolate(native, (6, 10), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    features = finer.features(picture())
    torch.testing.assert_close(features.patches, model.norm(resized))
    torch.testing.assert_close(features.cls, model.features(picture()).cls)
    first = F.interpolate(model._maps(picture(), stages=1), (6, 10), mode="bilinear", antialias=True)
    torch.testing.assert_close(finer.features(picture(), layer=0).patches, first.permute(0, 2, 3, 1))
    assert model.features(picture(), layer=0).patches.shape == (2, 24, 40, 16)
    assert torch.equal(finer.train().features(picture()).patches, model.features(picture()).patches)


def test_stochastic_depth_skips_branches_by_sample_and_keeps_the_mean() -> None:
    model = random_network(drop_path=0.5)
    images = picture(batch=1, height=32, width=32).expand(64, -1, -1, -1)
    with torch.no_grad():
        still = model.features(images)
        model.train().generator = torch.Generator().manual_seed(3)
        drawn = model.features(images).cls
        model.generator = torch.Generator().manual_seed(3)
        assert torch.equal(model.features(images).cls, drawn)
    assert torch.equal(still.cls[0], still.cls[1])
    assert len(drawn.unique(dim=0)) > 8
    gains = torch.stack([model._gain(0.5, images) for _ in range(40)])
    assert set(gains.unique().tolist()) == {0.0, 2.0}
    assert gains.mean() == pytest.approx(1.0, abs=0.1)
    assert model._gain(0.0, images) is None
    model.generator = None
    with pytest.raises(ValueError, match=r"needs `model\.generator"):
        model.features(images)


def test_initial_weights_come_from_the_generator() -> None:
    first, again, other = (
        ConvNeXt(ConvNeXtConfig(**SMALL), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    for (name, one), two, three in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
        assert one.isfinite().all(), name
        assert one.ndim == 1 or not torch.equal(one, three), name
    assert first.state_dict()["stages.2.1.gamma"].unique().tolist() == [pytest.approx(1e-6)]
    assert float(first.stages[2][1].pwconv1.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ConvNeXt(ConvNeXtConfig(**SMALL))
    assert torch.equal(before, torch.get_rng_state())


def test_every_parameter_gets_a_gradient() -> None:
    model = random_network().train()
    features = model.forward_groups([picture(), picture(1, 64, 32)])
    sum(group.patches.square().mean() + group.cls[:, 0].mean() for group in features).backward()
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: random_network()(picture(height=80)),
            "height is 80 pixels, not a multiple of the stride 32.*64 or 96",
        ),
        (lambda: random_network(patch_size=16)(picture(width=48)), "width is 48 pixels(.|\n)*stride 32"),
        (lambda: random_network().features(picture(), layer=4), "layer is 4; this network has 4 stages"),
        (lambda: random_network().features(picture(), attention=True), "no attention weights"),
        (lambda: ConvNeXtConfig(dims=(8, 8, 8)), r"dims is \(8, 8, 8\); it must be four"),
        (lambda: ConvNeXtConfig(patch_size=14), r"patch_size is 14; it must be None or one of \[1, 2, 4, 8, 16, 32\]"),
        (lambda: ConvNeXtConfig(drop_path=1.0), "drop_path is 1.0"),
        (lambda: ConvNeXtConfig(norm_eps=0.0), "norm_eps is 0.0"),
    ],
)
def test_mistakes_are_explained(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# ---- weights in ----


@pytest.fixture
def small_tiny(monkeypatch: pytest.MonkeyPatch) -> ConvNeXt:
    """A small network that `convnext_tiny` stands for, so that the test writes kilobytes."""
    monkeypatch.setitem(
        standalone.DINOV3_ARCHITECTURES, "convnext_tiny", lambda **extra: ConvNeXtConfig(**(SMALL | extra))
    )
    return random_network()


@torch.no_grad()
def test_an_official_checkpoint_loads_strictly(small_tiny: ConvNeXt, tmp_path: Path) -> None:
    torch.save(official_state(small_tiny), tmp_path / "official.pth")
    torch.save(small_tiny.state_dict(), tmp_path / "plain.pth")
    for file in ("official.pth", "plain.pth"):
        backbone = load_backbone(f"dinov3:convnext_tiny:{tmp_path / file}")
        assert torch.equal(backbone.features(picture()).patches, small_tiny(picture()).patches)
    expected = {
        *(f"downsample_layers.{i}.{j}.{kind}" for i in range(4) for j in range(2) for kind in ("weight", "bias")),
        *(
            f"stages.{i}.{j}.{layer}.{kind}"
            for i, depth in enumerate(SMALL["depths"])
            for j in range(depth)
            for layer in ("dwconv", "norm", "pwconv1", "pwconv2")
            for kind in ("weight", "bias")
        ),
        *(f"stages.{i}.{j}.gamma" for i, depth in enumerate(SMALL["depths"]) for j in range(depth)),
        *("norm.weight", "norm.bias"),
    }
    assert set(small_tiny.state_dict()) == expected


def test_wrong_checkpoints_are_refused(small_tiny: ConvNeXt, tmp_path: Path) -> None:
    changed = official_state(small_tiny)
    changed["norms.3.bias"] += 1
    extra = small_tiny.state_dict() | {"head.weight": torch.zeros(1)}
    nothing = {name: tensor for name, tensor in small_tiny.state_dict().items() if name != "stages.1.0.gamma"}
    for state, message in (
        (changed, "norms.3.bias differs from norm.bias"),
        (extra, "Unexpected key"),
        (nothing, "Missing key"),
        ({name: 3 for name in extra}, "is not a DINOv3 convnext_tiny backbone"),
        (torch.zeros(3), "holds a Tensor; a checkpoint is a dict"),
        ({"model": small_tiny}, "holds more than tensors"),
    ):
        torch.save(state, tmp_path / "wrong.pth")
        with pytest.raises(ValueError, match=message):
            load_backbone(f"dinov3:convnext_tiny:{tmp_path / 'wrong.pth'}")


@torch.no_grad()
def test_a_run_keeps_a_convnext(tmp_path: Path) -> None:
    model = random_network(patch_size=16)
    assert network_from_architecture(architecture_of(model)).config == model.config
    info = {"phase": "distill", "recipe": "test", "seed": 0, "steps": 1, "parent": None}
    with RunWriter.create(tmp_path / "run", info=info, config={}) as writer:
        writer.backbone("convnext", 1, architecture_of(model), model.state_dict())
    again = Run(tmp_path / "run").backbone("convnext")
    assert torch.equal(again.features(picture()).patches, model.features(picture()).patches)
