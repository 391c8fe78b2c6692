"""Rules of the house that a machine can check: sizes, names, docstrings, no leftovers."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from statistics import quantiles

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [ROOT / "demo.py", ROOT / "hubconf.py"]
MODULES = [path for name in ("workbench", "training", "apps") for path in (ROOT / name).rglob("*.py")]
FILES = sorted([*SCRIPTS, *MODULES])
MAX_FILE_LINES, MAX_FUNCTION_LINES, NINETIETH_PERCENTILE_LINES = 350, 60, 40


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> list[tuple[str, int]]:
    """(qualified place, number of lines) of every function and method, decorators apart."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(f"{name(path)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1) for node in found]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_small_documented_and_finished(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < MAX_FILE_LINES
    assert not [place for place, lines in functions(path) if lines > MAX_FUNCTION_LINES]
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)
    tree = ast.parse(text)
    if tree.body:
        assert ast.get_docstring(tree), "a module says in its docstring what it is"
    classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert not [one for one in classes if re.search(r"(Manager|Handler|Processor|Helper)$", one)]
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}, (
        "a function without a home is a concept without a module"
    )


def test_most_functions_are_short() -> None:
    lengths = [lines for path in FILES for _, lines in functions(path)]
    assert quantiles(lengths, n=10)[-1] < NINETIETH_PERCENTILE_LINES


@pytest.mark.parametrize("path", FILES, ids=name)
def test_randomness_comes_from_a_generator(path: Path) -> None:
    """No draw from a global random state: torch.rand(…) and its kin need generator=, numpy needs default_rng."""
    draws = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli", "rand_like", "randn_like"}
    guilty = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        call = ast.unparse(node.func)
        seeded = any(keyword.arg == "generator" for keyword in node.keywords)
        if (call.startswith("torch.") and node.func.attr in draws and not seeded) or (
            re.match(r"(np|numpy)\.random\.(?!default_rng|Generator|SeedSequence|Philox|PCG64)", call)
        ):
            guilty.append(f"line {node.lineno}: {call}")
    assert not guilty
