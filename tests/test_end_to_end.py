"""The command line trains and the workbench reads, each in its own process, with a run directory between them.

The offline guard of tests/conftest.py is inherited by every process here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "training"))
from tiny import train  # noqa: E402

from workbench.loading import load_backbone  # noqa: E402
from workbench.runs import Run  # noqa: E402


def test_a_training_is_read_by_the_workbench(tmp_path: Path):
    run = tmp_path / "runs" / "first"
    trained = train(run, "--loop.steps", "12")
    assert trained.returncode == 0, trained.stderr
    assert "finished at step 12" in trained.stderr
    assert all(word in trained.stderr for word in ("img/s", "data wait", " left", "step 12/12"))
    assert "\x1b" not in trained.stderr, "plain lines where there is no terminal"

    backbone = load_backbone(f"run:{run}")
    features = backbone.features(torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)))
    assert features.patches.shape == (2, 32 // backbone.patch_size, 48 // backbone.patch_size, backbone.embed_dim)
    assert torch.isfinite(features.patches).all()
    initial = load_backbone(f"run:{run}@step=0:teacher").features(torch.zeros(1, 3, 32, 32))
    assert not torch.equal(initial.cls, backbone.features(torch.zeros(1, 3, 32, 32)).cls)

    listed = subprocess.run(
        [sys.executable, "-m", "workbench", "runs", str(run.parent)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert listed.returncode == 0, listed.stderr
    row = next(line for line in listed.stdout.splitlines() if "first" in line)
    assert all(word in row for word in ("cpu_demo", "ended", "12 / 12", "%"))
    assert Run(run).status() == "ended"
