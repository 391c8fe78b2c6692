"""The mean of checkpoints: equal to numpy's, opened by transformers' layout, refused where it makes no sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from workbench.__main__ import main
from workbench.average import average_backbones, expand_steps, mean_network
from workbench.backbones import ConvNeXt, ConvNeXtConfig, Network, VisionTransformer, ViTConfig, architecture_of
from workbench.backbones.architecture import network_of
from workbench.export import export_backbone
from workbench.loading import load_backbone
from workbench.runs import RunWriter

SMALL = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
VIT = ViTConfig(**SMALL, num_registers=2, mask_k_bias=True)
CONVNEXT = ConvNeXtConfig(dims=(8, 12, 16, 20), depths=(1, 1, 2, 1))
INPUT = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


def network(seed: int, config: ViTConfig | ConvNeXtConfig = VIT) -> Network:
    """A network whose every parameter is drawn from `seed`."""
    model, generator = network_of(config).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def write_run(folder: Path, networks: dict[int, Network], role: str = "teacher", about=INPUT) -> str:
    """A run that publishes `networks` by step; its spec without a step."""
    with RunWriter.create(folder, info={"phase": "pretrain", "steps": 9, "input": about}, config={}) as writer:
        for step, model in networks.items():
            writer.backbone(role, step, architecture_of(model), model.state_dict())
        writer.evaluation(4, 1.0, role, {"dense/patch_knn": 0.125})
    return f"run:{folder}"


@pytest.mark.parametrize("config", [VIT, CONVNEXT, ViTConfig(**SMALL, ffn="swiglu", ffn_hidden=33, layerscale=0.0)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_mean_is_that_of_numpy(config: ViTConfig | ConvNeXtConfig, count: int) -> None:
    networks = {str(seed): network(seed, config) for seed in range(count)}
    before = {name: {key: value.clone() for key, value in one.state_dict().items()} for name, one in networks.items()}
    mean = mean_network(networks)
    assert not mean.training
    assert mean.config == config
    for key, value in mean.state_dict().items():
        parts = [one[key].numpy().astype(np.float64) for one in before.values()]
        assert np.array_equal(value.numpy(), np.mean(parts, axis=0).astype(np.float32), equal_nan=True), key
    for parameter in mean.parameters():
        parameter.data.fill_(7)
    for name, one in networks.items():
        assert all(torch.equal(value, before[name][key]) for key, value in one.state_dict().items()), (
            "left as they were"
        )


def test_equal_networks_have_their_own_features_as_mean() -> None:
    images = torch.randn(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    one = network(3)
    with torch.no_grad():
        ours, theirs = one.features(images), mean_network({"a": one, "b": network(3), "c": one}).features(images)
    assert torch.equal(ours.patches, theirs.patches)
    assert torch.equal(ours.cls, theirs.cls)


def test_fields_that_matter_in_training_only_may_differ() -> None:
    other = network(1, ViTConfig(**SMALL, num_registers=2, mask_k_bias=True, rope_rescale=2.0, drop_path=0.2))
    assert mean_network({"a": network(0), "b": other}).config == VIT


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ConvNeXt(CONVNEXT), "first is a VisionTransformer, second a ConvNeXt"),
        (VisionTransformer(ViTConfig(**SMALL | {"depth": 3}, num_registers=2, mask_k_bias=True)), "depth 2 and 3"),
        (VisionTransformer(ViTConfig(**SMALL, num_registers=2)), "mask_k_bias True and False"),
    ],
)
def test_another_architecture_is_refused(other: Network, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_network({"first": network(0), "second": other})


def test_weights_that_are_no_numbers_and_rounded_constants_are_refused_by_name() -> None:
    broken = network(1)
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=r"second has weights that are not finite \(cls_token\)"):
        mean_network({"first": network(0), "second": broken})
    rounded = network(1)
    assert isinstance(rounded, VisionTransformer)
    rounded.rope_embed.periods.copy_(rounded.rope_embed.periods.bfloat16())
    with pytest.raises(ValueError, match=r"other constants \(rope_embed.periods\)"):
        mean_network({"first": network(0), "second": rounded})


@pytest.mark.parametrize(
    ("specs", "expanded"),
    [
        (["run:a/b@step=4"], ["run:a/b@step=4"]),
        (["run:a/b@step=4,10,7"], ["run:a/b@step=4", "run:a/b@step=10", "run:a/b@step=7"]),
        (["run:a b@step=4,5:student", "hf:x"], ["run:a b@step=4:student", "run:a b@step=5:student", "hf:x"]),
        (["run:a@step=4,4", "run:a@step=4"], ["run:a@step=4"]),
        (["run:a,b", "hf:c@step=1,2"], ["run:a,b", "hf:c@step=1,2"]),
    ],
)
def test_steps_of_one_run_are_written_with_commas(specs: list[str], expanded: list[str]) -> None:
    assert expand_steps(specs) == expanded


def test_the_command_writes_a_folder_that_loads_as_the_mean(tmp_path: Path, capsys) -> None:
    networks = {step: network(step) for step in (2, 5, 9)}
    run, folder = write_run(tmp_path / "long", networks), tmp_path / "out" / "mean"
    assert main(["average", f"{run}@step=2,5,9", str(folder)]) == 0
    assert "wrote" in capsys.readouterr().out
    images = torch.randn(2, 3, 16, 40, generator=torch.Generator().manual_seed(1))
    loaded, mean = load_backbone(f"hf:{folder}"), mean_network({str(step): one for step, one in networks.items()})
    with torch.no_grad():
        torch.testing.assert_close(loaded.features(images).patches, mean.features(images).patches, rtol=0, atol=1e-6)
    assert load_file(folder / "model.safetensors")
    card = (folder / "README.md").read_text("utf-8")
    assert "mean of 3 networks" in card
    assert [f"teacher at step {step}" in card for step in (2, 5, 9)] == [True] * 3
    assert "not evaluated" in card
    assert "0.4, 0.5, 0.6" in card


def test_checkpoints_of_several_runs_and_an_export_take_part(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", {4: network(1)})
    second = write_run(tmp_path / "b", {3: network(2)}, role="student")
    export_backbone(first, tmp_path / "export")
    average_backbones([f"hf:{tmp_path / 'export'}", f"{second}@step=3:student"], tmp_path / "mean")
    loaded, mean = load_backbone(f"hf:{tmp_path / 'mean'}"), mean_network({"1": network(1), "2": network(2)})
    images = torch.randn(1, 3, 40, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():  # features: an export drops the biases that mask_k_bias masks
        torch.testing.assert_close(loaded.features(images).cls, mean.features(images).cls, rtol=0, atol=1e-5)


def test_what_makes_no_mean_is_one_line_and_writes_nothing(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "a", {1: network(1), 2: network(2)})
    other = write_run(tmp_path / "b", {1: network(1)}, about={"mean": [0.5] * 3, "std": [0.5] * 3})
    folder = tmp_path / "mean"
    for specs, message in (
        ([run], "is no two networks"),
        ([f"{run}@step=1,1"], "is no two networks"),
        ([f"{run}@step=1,7"], "no weights of 'teacher' at step 7"),
        ([f"{run}@step=1", other], "normalised in different ways"),
        ([run, "synthetic"], "synthetic is a SyntheticBackbone"),
    ):
        assert main(["average", *specs, str(folder)]) == 2
        assert message in capsys.readouterr().err
        assert not folder.exists()


def test_a_folder_with_anything_in_it_is_kept(tmp_path: Path, capsys) -> None:
    run, folder = write_run(tmp_path / "a", {1: network(1), 2: network(2)}), tmp_path / "mean"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep me")
    for flags in ([], ["--overwrite"]):
        assert main(["average", f"{run}@step=1,2", str(folder), *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    assert main(["average", f"{run}@step=1,2", str(folder)]) == 0
    assert main(["average", f"{run}@step=2,1", str(folder), "--overwrite"]) == 0
