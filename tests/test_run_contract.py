"""docs/run-format.md is the contract: a run made by training holds what the document says, no more and no less."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from workbench.backbones import ViTConfig
from workbench.run_layout import FORMAT_VERSION
from workbench.runs import Run, RunWriter

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "run-format.md").read_text()

sys.path.insert(0, str(ROOT / "tests" / "training"))
from tiny import tiny_config  # noqa: E402

DOCUMENTED = {
    r"run\.json": "run.json",
    r"config\.json": "config.json",
    r"metrics\.jsonl": "metrics.jsonl",
    r"evaluations\.jsonl": "evaluations.jsonl",
    r"events\.jsonl": "events.jsonl",
    r"backbones/[A-Za-z0-9_+-]+/architecture\.json": "architecture.json",
    r"backbones/[A-Za-z0-9_+-]+/step-\d{6,}\.safetensors": "step-000500.safetensors",
    r"probes/images/\d{3,}\.png": "000.png",
    r"probes/images/\d{3,}\.mask\.png": "000.mask.png",
    r"probes/images/probes\.json": "probes.json",
    r"probes/step-\d{6,}\.safetensors": "probes/step-000500.safetensors",
}
"""Pattern of a public file -> how the document's tree names it. Private: resume/ and names that start with a dot."""


def section(title: str) -> str:
    """The part of the document under the heading `title`."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/run-format.md has no section {title!r}"
    return found.group(1)


def quoted(text: str) -> set[str]:
    """Keys that a section writes in double quotes."""
    return set(re.findall(r'"([\w/]+)"', text))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real training of twelve steps."""
    from training.launch import launch

    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("runs") / "contract"
    assert launch(tiny_config(), path) == 0
    return Run(path)


def public_files(run: Run) -> list[str]:
    names = (path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file())
    return sorted(str(name) for name in names if name.parts[0] != "resume" and not name.parts[0].startswith("."))


def test_every_public_file_is_documented_and_every_documented_file_is_there(run: Run) -> None:
    tree = DOCUMENT.split("```")[1]
    matched = {name: [pattern for pattern in DOCUMENTED if re.fullmatch(pattern, name)] for name in public_files(run)}
    assert [name for name, patterns in matched.items() if len(patterns) != 1] == []
    assert {patterns[0] for patterns in matched.values()} == set(DOCUMENTED)
    assert [name for name in DOCUMENTED.values() if name not in tree] == []


def test_no_temporary_file_stays_and_hidden_names_are_the_lock_only(run: Run) -> None:
    hidden = {path.name for path in run.path.rglob(".*") if "resume" not in path.parts}
    assert hidden == {".lock"}


def test_run_json_has_the_documented_keys(run: Run) -> None:
    keys = re.findall(r"^\| `(\w+)` \|", section("run.json"), re.MULTILINE)
    assert set(run.info) == set(keys)
    assert set(run.info["machine"]) == quoted(section("run.json")) & {"python", "torch", "device", "threads"}
    assert run.info["format_version"] == FORMAT_VERSION
    assert f"format version {FORMAT_VERSION}" in DOCUMENT.splitlines()[0]
    assert f'"format_version": {FORMAT_VERSION}' in section("Rules for readers")
    for name in ("mean", "std"):
        assert len(run.info["input"][name]) == 3


def test_config_is_a_json_tree(run: Run) -> None:
    assert run.config
    assert json.loads(json.dumps(run.config)) == run.config


def test_metrics_lines(run: Run) -> None:
    rows, end = run.metrics()
    assert rows
    assert end == (run.path / "metrics.jsonl").stat().st_size
    for row in rows:
        assert {"step", "seconds", "loss/total", "rate/lr", "speed/images_per_second"} <= set(row)
        assert all(value is None or math.isfinite(value) for value in row.values())
    assert {"step", "seconds", "loss/total", "rate/lr", "speed/images_per_second"} <= quoted(section("metrics.jsonl"))


def test_evaluation_lines_have_exactly_the_documented_names(run: Run) -> None:
    rows, _ = run.evaluations()
    assert rows
    documented = {name for name in quoted(section("evaluations.jsonl")) if not name.endswith(":se")}
    for row in rows:
        values = {name for name in row if not name.endswith(":se")}
        assert values | {"health/lidar"} == documented - {row["backbone"]}  # quick evaluations leave LiDAR out
        assert {name for name in row if name not in values} == {f"{name}:se" for name in values if "/" in name}
        for name, value in row.items():
            if value is not None and name.startswith(("dense/", "global/")):
                assert 0 <= value <= 1
            if value is not None and name.endswith("_cosine"):
                assert -1.0001 <= value <= 1.0001


def test_event_lines(run: Run) -> None:
    text = section("events.jsonl")
    rows, _ = run.events()
    for row in rows:
        assert {"step", "level", "kind", "text", "time"} == set(row) <= quoted(text)
        assert row["level"] in ("info", "warn", "error")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", row["time"])
    kinds = [row["kind"] for row in rows]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert set(kinds) <= quoted(text)


def test_backbones(run: Run) -> None:
    text = section("backbones/<role>/")
    for role in run.roles():
        assert role in text
        architecture = run.architecture(role)
        assert set(architecture) == {"class", "config"} <= quoted(text)
        assert architecture["class"] in text
        assert ViTConfig(**architecture["config"]).embed_dim == run.backbone(role).embed_dim
        for step in run.steps(role):
            with safe_open(run.path / "backbones" / role / f"step-{step:06d}.safetensors", "pt") as file:
                assert json.loads(file.metadata()["snapshot"])["step"] == step
                assert "patch_embed.proj.weight" in list(file.keys())


def test_probe_features(run: Run) -> None:
    text = section("probes/")
    probes, backbone = run.probe_images(), run.backbone()
    count, _, height, width = probes.images.shape
    grid = (height // probes.patch_size, width // probes.patch_size)
    for step in run.probe_steps():
        with safe_open(run.path / "probes" / f"step-{step:06d}.safetensors", "pt") as file:
            assert sorted(file.keys()) == ["cls", "patches", "registers"]
            assert list(file.metadata()) == ["snapshot"]
            assert (
                set(json.loads(file.metadata()["snapshot"])) == {"step", "backbone", "format_version"} <= quoted(text)
            )
            assert all(file.get_tensor(name).dtype == torch.float16 for name in file.keys())  # noqa: SIM118
            assert file.get_tensor("patches").shape == (count, *grid, backbone.embed_dim)
            assert file.get_tensor("cls").shape == (count, backbone.embed_dim)
            assert file.get_tensor("registers").shape[::2] == (count, backbone.embed_dim)


def test_probe_features_are_those_of_the_saved_teacher(run: Run) -> None:
    """The pictures a viewer shows and the weights beside them belong together, and pixels are normalised as told."""
    mean, std = (torch.tensor(run.info["input"][name]).reshape(3, 1, 1) for name in ("mean", "std"))
    images = (run.probe_images().images.float() / 255 - mean) / std
    for step in run.probe_steps():
        with torch.no_grad():
            expected = run.backbone(step=step).features(images)
        stored = run.probe_features(step)
        assert torch.allclose(stored.patches.float(), expected.patches, atol=5e-3, rtol=5e-3)
        assert torch.allclose(stored.cls.float(), expected.cls, atol=5e-3, rtol=5e-3)


def test_probe_images(run: Run) -> None:
    about = json.loads((run.path / "probes" / "images" / "probes.json").read_text())
    assert set(about) == {"count", "height", "width", "patch_size", "captions", "classes"} <= quoted(section("probes/"))
    for index in range(about["count"]):
        for name, mode in ((f"{index:03d}.png", "RGB"), (f"{index:03d}.mask.png", "L")):
            with Image.open(run.path / "probes" / "images" / name) as image:
                assert (image.size, image.mode) == ((about["width"], about["height"]), mode)
    for names in (about["captions"], about["classes"]):
        assert all(set(name) == {"en", "zh"} for name in names)


def test_a_reader_without_this_package_can_follow(run: Run) -> None:
    """Only json and numpy, in a process that cannot import torch or us: what a stranger would write."""
    script = """
import json, pathlib, struct, sys
import numpy as np
root = pathlib.Path(sys.argv[1])
assert json.loads((root / "run.json").read_text())["format_version"] == 1
rows = [json.loads(line) for line in (root / "metrics.jsonl").read_bytes().split(b"\\n")[:-1]]
data = sorted((root / "probes").glob("step-*.safetensors"))[0].read_bytes()
size = struct.unpack("<Q", data[:8])[0]
about = json.loads(data[8 : 8 + size])["patches"]
start, end = (8 + size + offset for offset in about["data_offsets"])
patches = np.frombuffer(data[start:end], dtype="<f2").reshape(about["shape"])
assert not {"torch", "workbench"} & set(sys.modules)
print(len(rows), patches.ndim, bool(np.isfinite(patches).all()))
"""
    result = subprocess.run([sys.executable, "-c", script, str(run.path)], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(len(run.metrics()[0])), "4", "True"]


def test_a_resume_folder_is_never_opened_by_readers(run: Run) -> None:
    """Reading with resume/ unreadable works: a folder replaced by a file that no reader expects."""
    resume, aside = run.path / "resume", run.path.parent / "aside"
    resume.rename(aside)
    try:
        resume.write_text("not a folder")
        again = Run(run.path)
        assert again.status() == "ended"
        assert again.metrics()[0]
        assert again.backbone().embed_dim
    finally:
        resume.unlink()
        aside.rename(resume)


def test_the_documented_rule_for_reopening(run: Run) -> None:
    assert "drops records of steps later than the step it resumes from" in " ".join(
        section("Rules for writers").split()
    )
    RunWriter.reopen(run.path, step=6).close()
    again = Run(run.path)
    for rows, _ in (again.metrics(), again.evaluations(), again.events()):
        assert all(row["step"] <= 6 for row in rows)
    assert max(again.steps()) == max(again.probe_steps()) == 6
