"""`python -m workbench health`: the gauges of the features that a run keeps, against a reference step."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.__main__ import main
from workbench.features import Features
from workbench.run_health import run_health
from workbench.runs import Run, RunWriter


def features(seed: int) -> Features:
    draw = torch.Generator().manual_seed(seed)
    return Features(torch.randn(3, 4, 6, 16, generator=draw), torch.randn(3, 16, generator=draw), torch.zeros(3, 0, 16))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    info = {"phase": "pretrain", "recipe": "[bold]test", "seed": 0, "steps": 9, "parent": None}
    with RunWriter.create(tmp_path / "run", info=info, config={}) as writer:
        for step in (0, 5, 9):
            writer.probe_features(step, features(step))
    return Run(tmp_path / "run")


def test_the_gram_distance_is_that_of_the_definition(run: Run):
    rows = list(run_health(run, reference=5))
    assert [row["step"] for row in rows] == [0, 5, 9]
    assert rows[1]["health/gram_distance"] == 0
    stored = {step: run.probe_features(step).patches.double().flatten(1, 2).numpy() for step in (0, 5)}
    units = {step: x / np.linalg.norm(x, axis=-1, keepdims=True) for step, x in stored.items()}
    gap = (units[0] @ units[0].transpose(0, 2, 1) - units[5] @ units[5].transpose(0, 2, 1)) ** 2
    assert rows[0]["health/gram_distance"] == pytest.approx(gap.mean(), rel=1e-5)
    assert rows[0]["health/gram_distance:se"] > 0
    assert "health/gram_distance" not in next(iter(run_health(run)))


def test_the_command_prints_or_writes(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["health", str(run.path), "--reference", "0"]) == 0
    said = capsys.readouterr().out
    assert "gram" in said
    assert said.count("±") == 3 * 11  # three steps, ten gauges and the distance
    assert "step 9" in said
    assert main(["health", str(run.path), "--out", str(tmp_path / "gauges.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "gauges.csv").open()))
    assert [row["step"] for row in rows] == ["0", "5", "9"]
    assert float(rows[2]["health/near_cosine"]) == pytest.approx(list(run_health(run))[2]["health/near_cosine"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reference", "7"], "no probe features at step 7; steps: 0, 5, 9"),
        (["--out", "run.json"], "File exists"),
    ],
)
def test_mistakes_are_one_line(run: Run, capsys: pytest.CaptureFixture[str], words: list[str], said: str, monkeypatch):
    monkeypatch.chdir(run.path)
    assert main(["health", ".", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_run_without_features_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    RunWriter.create(tmp_path / "new", info={"phase": "pretrain"}, config={}).close()
    assert main(["health", str(tmp_path / "new")]) == 2
    assert "no probe features (yet)" in capsys.readouterr().err
