"""The documents say what is there: the tree, both languages, the paper map, links, and Python that runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "training"))
from tiny import tiny_config  # noqa: E402

from training.launch import launch  # noqa: E402
from training.recipes import cpu_demo  # noqa: E402
from workbench.backbones import VisionTransformer, ViTConfig, architecture_of  # noqa: E402
from workbench.loading import load_backbone  # noqa: E402
from workbench.runs import RunWriter  # noqa: E402

README, README_ZH = ROOT / "README.md", ROOT / "README.zh.md"
# a checkout of another user (a container's volume) is read all the same
TRUSTED = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
PACKAGES = ("workbench", "training", "apps")
DOCUMENTS = sorted([README, README_ZH, *(ROOT / "docs").glob("*.md")])


def tracked_files() -> list[Path]:
    """Files under version control, relative to the root."""
    command = ["git", "ls-files", "-z"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=os.environ | TRUSTED)
    if result.returncode != 0:
        assert not os.environ.get("CI"), f"git ls-files failed: {result.stderr}"
        pytest.skip("not a git checkout: cannot tell what belongs to the project")
    return [Path(name) for name in result.stdout.split("\0") if name and (ROOT / name).exists()]


def blocks(path: Path, language: str) -> list[str]:
    """Contents of the fenced code blocks in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def captioned_tree(path: Path) -> dict[str, str]:
    """Path -> caption from the indented tree of a README; two spaces of indentation a level, folders end in a slash."""
    (tree,) = blocks(path, "text")
    entries: dict[str, str] = {}
    parents: list[str] = []
    for line in tree.splitlines():
        indent, name, caption = re.fullmatch(r"( *)(\S+)\s*(.*)", line).groups()
        parents[len(indent) // 2 :] = [name]
        entries["".join(parents)] = caption
    return entries


def existing_tree() -> set[str]:
    """Top-level folders, and what stands directly in each package: modules and sub-packages."""
    files = tracked_files()
    entries = {f"{file.parts[0]}/" for file in files if len(file.parts) > 1}
    for file in files:
        if file.parts[0] in PACKAGES and file.name != "__init__.py":
            if len(file.parts) > 2:
                entries.add(f"{file.parts[0]}/{file.parts[1]}/")
            elif file.suffix == ".py":
                entries.add(str(file))
    return entries


@pytest.mark.parametrize("path", [README, README_ZH], ids=lambda path: path.name)
def test_the_captioned_tree_is_the_tree(path: Path) -> None:
    shown = captioned_tree(path)
    assert set(shown) == existing_tree()
    assert not [name for name, caption in shown.items() if not caption], "every entry needs a caption"


def test_both_readmes_have_the_same_structure() -> None:
    """Same headings by level, same commands and Python but for comments, same pictures, same link targets."""
    english, chinese = README.read_text(encoding="utf-8"), README_ZH.read_text(encoding="utf-8")

    def outline(text: str) -> list[int]:
        without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        return [len(marks) for marks in re.findall(r"^(#+) ", without_code, re.MULTILINE)]

    def code(path: Path, language: str) -> list[str]:
        return [re.sub(r"\s*#.*", "", block) for block in blocks(path, language)]

    def targets(text: str) -> set[str]:
        return {target for target in re.findall(r"\]\(([^)#]+)\)", text) if not target.startswith("README")}

    assert outline(english) == outline(chinese)
    assert code(README, "bash") == code(README_ZH, "bash")
    assert code(README, "python") == code(README_ZH, "python")
    assert list(captioned_tree(README)) == list(captioned_tree(README_ZH))
    assert targets(english) == targets(chinese)
    assert len(re.findall(r"[\u4e00-\u9fff]", chinese)) > 800


def write_small_run(folder: Path) -> None:
    """A run directory with a teacher, an evaluation and probe features, as the trainer leaves it."""
    torch.manual_seed(0)
    teacher = VisionTransformer(ViTConfig.vit_nano()).eval()
    information = {"phase": "pretrain", "recipe": "cpu_demo", "seed": 0, "steps": 1, "parent": None}
    statistics = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    with RunWriter.create(folder, info={**information, "input": statistics}, config={}) as writer:
        writer.backbone("teacher", 0, architecture_of(teacher), teacher.state_dict())
        writer.probe_features(0, teacher.features(torch.rand(2, 3, 32, 48)))
        writer.evaluation(0, 0.0, "teacher", {"dense/patch_knn": 0.5})


@pytest.mark.parametrize("path", [README, README_ZH], ids=lambda path: path.name)
def test_the_python_of_the_readme_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_run(tmp_path / "runs" / "demo")
    Image.new("RGB", (300, 200), "orange").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(path, "python")
    statements = ast.parse(code).body
    shown = ast.Expression(statements.pop().value)
    names: dict[str, object] = {}
    exec(compile(ast.Module(statements, []), path.name, "exec"), names)
    widget = eval(compile(shown, path.name, "eval"), names)
    assert names["scores"]["dense/patch_knn"] == 0.5
    assert names["patches"].shape == (2, 4, 6, 96)
    assert widget.select()["best"][0]["similarity"] <= 1.0 + 1e-6


def test_the_specs_of_runs_in_documents_load(tmp_path: Path) -> None:
    """Every `run:…` of the documents, on a run that was trained; its step 0 stands in for the steps of a long one."""
    assert launch(tiny_config(steps=1), tmp_path / "run") == 0
    loop, seen = cpu_demo().loop, []
    for path in DOCUMENTS:
        for spec in re.findall(r"[`\"](run:runs/[^`\"]*)[`\"]", path.read_text(encoding="utf-8")):
            here = re.sub(r"^run:runs/\w+", lambda _: f"run:{tmp_path / 'run'}", spec)
            assert load_backbone(re.sub(r"@step=\d+", "@step=0", here)).embed_dim == 32, f"{path.name}: {spec}"
            for step in map(int, re.findall(r"@step=(\d+)", spec)):
                assert step <= loop.steps, f"{path.name}: {spec}"
                assert step % loop.probe_every == 0, f"{path.name}: {spec}"
            seen.append((path.name, spec))
    assert {("README.md", "run:runs/demo"), ("README.zh.md", "run:runs/demo@step=100")} <= set(seen)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert not [target for target in local if not (path.parent / target).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_documents_exist(path: Path) -> None:
    """Names such as `training/losses/dino.py` or `workbench/views/`, taken from the root."""
    names = re.findall(
        r"`((?:workbench|training|apps|tests|docs|benchmarks)/[\w./-]*)`", path.read_text(encoding="utf-8")
    )
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_paper_map_names_what_the_files_define() -> None:
    rows = re.findall(
        r"^\|.*\| `([^`]+)` \| `([^`]+)` \|$", (ROOT / "docs/paper-map.md").read_text(encoding="utf-8"), re.M
    )
    assert len(rows) > 30
    missing = []
    for file, name in rows:
        nodes = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        if name not in {getattr(node, "name", None) for node in nodes}:
            missing.append(f"{file}: {name}")
    assert not missing


def test_make_targets_named_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"`make ([a-z]+)", text)) | set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE))
        assert named <= targets, path.name


def test_the_licence_is_complete() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    for number, title in [(1, "Definitions"), (4, "Redistribution"), (9, "Accepting Warranty or Additional Liability")]:
        assert re.search(rf"^ +{number}\. {title}", text, re.MULTILINE)
    assert "END OF TERMS AND CONDITIONS" in text
    assert "limitations under the License." in text
