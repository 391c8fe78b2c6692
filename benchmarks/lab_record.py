"""The recorded lab run that ships with the workbench: a healthy anchor, its induced decline, the cure.

    python benchmarks/lab_record.py FOLDER

Trains seed 0 of `make lab` on the built-in scenes into FOLDER (three of its seven arms, 7 minutes on 2 cores; what is
there already is not trained again), and writes the public parts of the runs into workbench/recorded/: without the
commands in events, features of the anchor at every second evaluation, weights of few steps in float16. Every run there
is made by this script.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import tyro
from lab_chain import Lab, run_command
from safetensors import safe_open
from safetensors.torch import save_file

from workbench.analysis.advice import without_command
from workbench.runs import Run

TARGET = Path(__file__).resolve().parents[1] / "workbench" / "recorded"
NAMES = {"healthy": "lab-healthy", "induced": "lab-stressed", "cured": "lab-cured"}
"""Arm -> name of its recording."""
LARGEST = 15 * 2**20
"""Bytes, all recordings together."""
FEATURES_EVERY = {"healthy": 100, "induced": 25, "cured": 25}
"""Steps."""
LAB_RUN = re.compile(rf"[^\s:]*seed0-({'|'.join(NAMES)})")
"""A run of the lab, by its name or its path."""
PUBLIC_LINES = ("metrics.jsonl", "evaluations.jsonl", "events.jsonl")


def main(folder: Path, /, target: Path = TARGET) -> None:
    lab = Lab(folder=folder)
    for arm in NAMES:
        if code := run_command(lab.command(arm, 0)):
            raise SystemExit(f"the arm {arm} failed with exit code {code}; the lines above say why")
    weights = {"healthy": {0, lab.anchor}, "induced": {lab.steps("induced")}, "cured": {lab.steps("cured")}}
    for arm, name in NAMES.items():
        shutil.rmtree(target / name, ignore_errors=True)
        record(lab.run(arm, 0), target / name, weights=weights[arm], features_every=FEATURES_EVERY[arm])
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    teacher, step = lab.advised(0)
    print(f"{target}: {size / 2**20:.1f} MB, Gram teacher: step {step} of {NAMES[teacher]}")
    if size > LARGEST:
        raise SystemExit(f"the recordings take {size} bytes; at most {LARGEST} may ship")


def record(run: Run, path: Path, *, weights: set[int], features_every: int) -> None:
    """The public part of `run` as a run at `path`; its backbone at the steps `weights` only, in float16."""
    path.mkdir(parents=True)
    write(path / "run.json", renamed({**run.info, "name": path.name}))
    write(path / "config.json", renamed(run.config))
    for name in PUBLIC_LINES:
        rows = [json.loads(line) for line in (run.path / name).read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps(renamed(public(row))) for row in rows if row.get("kind") != "saved"]
        (path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    shutil.copytree(run.path / "probes" / "images", path / "probes" / "images")
    for step in run.probe_steps():
        if step % features_every == 0:
            shutil.copy(run.path / "probes" / f"step-{step:06d}.safetensors", path / "probes")
    source, backbone = (one / "backbones" / run.main_role for one in (run.path, path))
    backbone.mkdir(parents=True)
    shutil.copy(source / "architecture.json", backbone)
    for step in sorted(weights):
        halve(source / f"step-{step:06d}.safetensors", backbone)
    for file in path.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def public(row: dict[str, Any]) -> dict[str, Any]:
    """A record without the command that it advises: a recording has no resume checkpoints to fork from."""
    if "command" not in row:
        return row
    return {**row, "command": None, "text": without_command(row["text"])}


def halve(file: Path, folder: Path) -> None:
    with safe_open(file, "pt") as source:
        tensors = {name: source.get_tensor(name).half() for name in source.keys()}  # noqa: SIM118
        save_file(tensors, folder / file.name, source.metadata())


def renamed(value: Any) -> Any:
    """The same JSON tree with names of the recordings in place of the paths and names of the lab's runs."""
    if isinstance(value, dict):
        return {key: renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item) for item in value]
    return LAB_RUN.sub(lambda match: NAMES[match[1]], value) if isinstance(value, str) else value


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
