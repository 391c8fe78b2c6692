"""Who may import whom: the contracts of pyproject.toml hold, and each of them really catches a violation."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("workbench", "training", "apps")

# (file that breaks the rule, module it imports): each one must be found and named.
VIOLATIONS = [
    ("workbench/features.py", "training.losses"),
    ("workbench/features.py", "apps.feed"),
    ("apps/feed.py", "training.losses"),
    ("training/losses/dino.py", "apps.feed"),
    ("workbench/analysis/gram.py", "workbench.views"),
    ("workbench/features.py", "workbench.analysis.gram"),
    ("workbench/backbones/vit.py", "workbench.runs"),
    ("workbench/runs.py", "gradio"),
    ("training/heads.py", "gradio"),
    ("workbench/analysis/gram.py", "anywidget"),
    ("apps/feed.py", "ipywidgets"),
    ("training/losses/dino.py", "training.heads"),
    ("training/losses/gram.py", "workbench.runs"),
    ("workbench/runs.py", "workbench.loading"),
    ("workbench/export.py", "workbench.average"),
    ("workbench/views/encode.py", "workbench.runs"),
    ("training/trainer.py", "training.phases.pretrain"),
    ("training/config.py", "training.recipes"),
    ("training/phases/pretrain.py", "training.data.sources"),
    ("training/losses/dino.py", "training.phases.phase"),
]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the packages in `folder`, whatever is installed elsewhere."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def copied_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three packages' Python files and pyproject.toml, in a folder where a test may break them."""
    folder = tmp_path_factory.mktemp("tree")
    only_python = shutil.ignore_patterns("__pycache__", "static")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=only_python)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", result.stdout)


@pytest.mark.parametrize(("file", "module"), VIOLATIONS, ids=[f"{file}-{module}" for file, module in VIOLATIONS])
def test_a_violation_is_caught(file: str, module: str, copied_tree: Path) -> None:
    path = copied_tree / file
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\nimport {module}\n", encoding="utf-8")
    try:
        result = lint_imports(copied_tree)
    finally:
        path.write_text(before, encoding="utf-8")
    assert result.returncode == 1, result.stdout + result.stderr
    importer = file.removesuffix(".py").replace("/", ".")
    line = before.count("\n") + 2
    assert re.search(rf"{re.escape(importer)} -> {re.escape(module)} \(.*l\.{line}\b", result.stdout), result.stdout


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too; relative imports are resolved to full names."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def our_files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def test_nothing_imports_tests_or_notebooks() -> None:
    guilty = {
        str(path.relative_to(ROOT)): name
        for path in [*our_files(*PACKAGES), ROOT / "demo.py"]
        for name in imports(path)
        if name.split(".")[0] in {"tests", "notebooks", "benchmarks", "conftest"}
    }
    assert not guilty


def test_losses_stand_on_torch_and_the_analysis_alone() -> None:
    """A loss can be read, tested and reused with torch and the pure analysis functions at hand."""
    allowed = {"torch", "training.losses", "workbench.analysis", *sys.stdlib_module_names}
    guilty = [
        f"{path.name}: {name}"
        for path in our_files("training/losses")
        for name in imports(path)
        if not any(name == module or name.startswith(f"{module}.") for module in allowed)
    ]
    assert not guilty


def test_the_demo_needs_only_the_standard_library() -> None:
    assert {name.split(".")[0] for name in imports(ROOT / "demo.py")} <= set(sys.stdlib_module_names)


def test_analysis_opens_no_file_and_plots_nothing() -> None:
    """Analysis is tensors in, tensors out: no path, no file, no picture, no state kept in a module."""
    forbidden = {"pathlib", "os", "io", "PIL", "matplotlib", "plotly", "json", "safetensors", "workbench.images"}
    guilty = []
    for path in our_files("workbench/analysis"):
        guilty += [f"{path.name}: imports {name}" for name in imports(path) if {name, name.split(".")[0]} & forbidden]
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        guilty += [f"{path.name}: calls open" for call in calls if getattr(call.func, "id", "") == "open"]
        guilty += [
            f"{path.name}: calls {call.func.attr}"
            for call in calls
            if isinstance(call.func, ast.Attribute) and call.func.attr in {"save", "load"}
        ]
    assert not guilty
