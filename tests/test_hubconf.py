"""torch.hub opens the checkout from any other folder, offline, by the names of DINOv3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from workbench.backbones import VisionTransformer, ViTConfig, architecture_of
from workbench.backbones.load import DINOV3_ARCHITECTURES
from workbench.runs import RunWriter

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import sys, torch
root, run = sys.argv[1:]
model = torch.hub.load(root, "dinov3_vits16", source="local")
assert not model.training
print("FRESH", tuple(model.features(torch.zeros(1, 3, 32, 48)).patches.shape))
torch.save(model.state_dict(), "vits.pth")
again = torch.hub.load(root, "dinov3_vits16", source="local", weights="vits.pth")
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
print("FROZEN", not any(parameter.requires_grad for parameter in again.parameters()))
with torch.device("meta"):  # shapes only: no time is spent on drawing weights
    convnext = torch.hub.load(root, "dinov3_convnext_tiny", source="local")
convnext = convnext.to_empty(device="cpu")
print("CONVNEXT", tuple(convnext.features(torch.zeros(1, 3, 32, 64)).patches.shape))
teacher = torch.hub.load(root, "run", run, step=3, source="local")
print("RUN", tuple(teacher.features(torch.zeros(1, 3, 16, 24)).patches.shape))
import workbench
print("FROM", workbench.__file__)
try:
    torch.hub.load(root, "dinov3_vitb16", source="local", weights="nowhere.pth")
except FileNotFoundError as error:
    print("ERROR", str(error).splitlines()[0])
"""


def test_torch_hub_loads_from_the_checkout(tmp_path: Path) -> None:
    model = VisionTransformer(ViTConfig.vit_nano(depth=1))
    info = {"phase": "pretrain", "recipe": "test", "seed": 0, "steps": 3, "parent": None}
    with RunWriter.create(tmp_path / "run", info=info, config={}) as writer:
        writer.backbone("teacher", 3, architecture_of(model), model.state_dict())
    home = {"TORCH_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(tmp_path / "run")]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | home, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    told = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    assert told["FRESH"] == "(1, 2, 3, 384)"
    assert told["FROZEN"] == "True"
    assert told["CONVNEXT"] == "(1, 1, 2, 768)"
    assert told["RUN"] == "(1, 2, 3, 96)"
    assert Path(told["FROM"]).parent.parent == ROOT
    assert told["ERROR"].startswith("no weights file at nowhere.pth")


def test_a_run_gives_the_network_that_it_evaluates(tmp_path: Path) -> None:
    """A SimCLR run, for one, has no teacher."""
    import hubconf

    model = VisionTransformer(ViTConfig.vit_nano(depth=1))
    with RunWriter.create(tmp_path / "run", info={"backbone": "student"}, config={}) as writer:
        writer.backbone("student", 3, architecture_of(model), model.state_dict())
    assert torch.equal(hubconf.run(tmp_path / "run").state_dict()["cls_token"], model.state_dict()["cls_token"])


def test_every_entry_point_builds_what_its_name_says() -> None:
    import hubconf

    for arch, config in DINOV3_ARCHITECTURES.items():
        with torch.device("meta"):
            assert getattr(hubconf, f"dinov3_{arch}")().config == config()
