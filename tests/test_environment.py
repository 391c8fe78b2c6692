"""The environment is the one we say it is: exact versions, version floors, conda in step, help pages that open."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Older versions have known holes that matter to a page and a notebook which open other people's runs:
# pickle execution in torch.load, path traversal and request forgery in gradio, script injection in JupyterLab.
FLOORS = {
    "torch": "2.11",
    "gradio": "6.31",
    "jupyterlab": "4.5.7",
    "jupyter-server": "2.21",
    "pillow": "12.3",
    "transformers": "5",
}


def constraints() -> dict[str, Version]:
    """Canonical name -> pinned version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(pin) for name, _, pin in pins}


def declared() -> list[Requirement]:
    """Every requirement of pyproject.toml, extras included, without the project's references to its own extras."""
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    requirements = [Requirement(text) for text in texts]
    return [requirement for requirement in requirements if requirement.name != PROJECT["name"]]


def needed(roots: list[Requirement]) -> dict[str, set[str]]:
    """Canonical name -> specifiers asked for, over the closure of `roots` as installed here, markers evaluated."""
    wanted: dict[str, set[str]] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(requirement, extra) for requirement in roots for extra in ("", *requirement.extras)]
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        wanted.setdefault(name, set()).add(str(requirement.specifier))
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in distribution(name).requires or []:
            child = Requirement(text)
            if child.marker is None or child.marker.evaluate({"extra": extra}):
                queue += [(child, child_extra) for child_extra in ("", *child.extras)]
    return wanted


def test_constraints_are_exact_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    wrong = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)]
    assert not wrong, f"constraints.txt takes lines `name==version` only: {wrong}"
    assert len(constraints()) == len(pins) > 100


def test_constraints_satisfy_every_dependency_directly_or_not() -> None:
    pins = constraints()
    for name, specifiers in needed(declared()).items():
        assert name in pins, f"{name} is installed but not in constraints.txt: run `make constraints`"
        for specifier in specifiers:
            assert Requirement(f"{name}{specifier}").specifier.contains(pins[name], prereleases=True), (
                f"constraints.txt pins {name} {pins[name]}, but something needs {specifier}"
            )


def test_installed_versions_are_those_of_the_constraints() -> None:
    different = {}
    for name, pin in constraints().items():
        try:
            found = Version(version(name))
        except PackageNotFoundError:
            continue  # needed on another platform or Python only
        if found != pin:
            different[name] = f"{found} instead of {pin}"
    assert not different, f"run `make setup` again, or `make constraints` if these are meant: {different}"


@pytest.mark.parametrize("name", FLOORS)
def test_versions_with_known_holes_are_ruled_out(name: str) -> None:
    floor = Version(FLOORS[name])
    assert constraints()[canonicalize_name(name)] >= floor
    (requirement,) = (one for one in declared() if canonicalize_name(one.name) == name)
    release = ".".join(str(max(part, 0)) for part in floor.release)
    below = Version(f"{release}.dev0")
    assert not requirement.specifier.contains(below, prereleases=True), (
        f"pyproject.toml lets {name} older than {floor} in"
    )


def test_conda_environment_installs_the_same_as_make_setup() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == PROJECT["name"]
    python, pip, lists = environment["dependencies"]
    assert pip == "pip"
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.partition("=")[2])
    arguments = [part for line in lists["pip"] for part in line.split()]
    assert arguments == ["-c", "constraints.txt", "-e", ".[dev]"]
    (installed,) = re.findall(
        r"pip install .*?(-c .*?) \\$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert shlex.split(installed) == arguments


def test_a_python_that_is_too_old_gets_a_clear_message(tmp_path: Path) -> None:
    """`make setup` with a PYTHON that fails the version check names the version needed and what to type."""
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.8.18" && exit 0\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "--always-make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr + result.stdout
    assert "Python 3.8.18" in result.stderr + result.stdout
    assert not (tmp_path / "venv").exists()


def test_setup_is_instant_until_a_version_changes(tmp_path: Path) -> None:
    """After the install `make setup` runs nothing; a newer pyproject.toml or constraints.txt makes it install again."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1000, 1000))
    stamp = tmp_path / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()

    def planned() -> str:
        command = ["make", "--dry-run", "setup"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout

    assert "pip install" not in planned()
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(tmp_path / name, (stamp.stat().st_mtime + 10,) * 2)
        assert "pip install" in planned()
        os.utime(tmp_path / name, (1000, 1000))


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "training", "--help"],
        ["-m", "workbench", "--help"],
        ["-m", "apps", "--help"],
        ["demo.py", "--help"],
    ],
    ids=" ".join,
)
def test_help_opens(arguments: list[str]) -> None:
    result = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    program = arguments[1] if arguments[0] == "-m" else arguments[0]
    assert program in result.stdout


@pytest.mark.parametrize("linked", [True, False])
def test_the_environment_is_never_offered_for_a_commit(linked: bool, tmp_path: Path) -> None:
    """`.venv` is ignored as a folder, and as a link to an environment that checkouts share."""
    (tmp_path / "elsewhere").mkdir()
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copy(ROOT / ".gitignore", repository / ".gitignore")
    if linked:
        (repository / ".venv").symlink_to(tmp_path / "elsewhere")
    else:
        (repository / ".venv").mkdir()
        (repository / ".venv" / "pyvenv.cfg").touch()
    git = ["git", "-C", str(repository)]
    subprocess.run([*git, "init", "--quiet"], check=True, timeout=60)
    status = subprocess.run([*git, "status", "--porcelain"], check=True, capture_output=True, text=True, timeout=60)
    assert status.stdout == "?? .gitignore\n"


@pytest.mark.parametrize("there", [True, False])
def test_ci_says_when_tests_will_skip_for_want_of_the_pack(there: bool, tmp_path: Path) -> None:
    """.ci/run with stand-ins for the system's programs, which succeed and print their names."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("chromium", "fc-list", "python3", "make"):
        (programs / name).write_text(f"#!/bin/sh\necho {name}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "pack").mkdir()
    if there:
        (tmp_path / "pack" / "index.csv").touch()
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "DFW_PACK": str(tmp_path / "pack")}
    command = ["bash", str(ROOT / ".ci" / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("make\n")
    assert (f"No labelled pack at {tmp_path / 'pack'}" in done.stdout) is not there
