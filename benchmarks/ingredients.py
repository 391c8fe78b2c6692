"""What does each ingredient of DINOv3 do to a small, finished training? One is changed at a time, three seeds each.

    python benchmarks/ingredients.py runs/ingredients

Runs what is not there yet (18 trainings, about 3 CPU-minutes each), evaluates all on scenes that no training saw, and
writes workbench/recorded/ingredients.json, which a notebook shows, and docs/ingredients.md, which is made from that
file alone (`--page-only` makes it again).
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from finished_runs import DOCS, FRESH, SHOWN, fresh_suite, plan_of, score
from ingredients_page import page
from lab_chain import run_command

from training.evaluation.plan import EvaluationPlan
from workbench.features import Backbone
from workbench.images import normalize
from workbench.runs import RECORDED_RUNS, Run

BASE = "base"
STEPS, LARGE = 600, 128
"""Steps of a run; pixels of the larger scenes, twice the side of the usual ones."""
COMMON = "--data.library builtin --data.classes None --data.per-class None --data.backgrounds None --batch.workers 0 "
COMMON += f"--loop.steps {STEPS} --loop.evaluate-every 200 --loop.save-every {STEPS} --loop.probe-every 100"
GAUGES = ("near_cosine", "far_cosine", "within_variance", "cls_patch_cosine", "effective_rank", "norm_outliers")
KEYS = (*SHOWN, *(f"health/{name}" for name in GAUGES))
TRAINING = ("teacher/entropy", "teacher/prototypes_used", "loss/koleo")
RECORD = RECORDED_RUNS / "ingredients.json"


class Variant(NamedTuple):
    """One change to the base recipe."""

    title: str
    field: str
    """The only field of the config, dotted, that may differ from the base."""
    value: str
    """As the command line takes it."""

    @property
    def options(self) -> list[str]:
        return [f"--{self.field.replace('_', '-')}", self.value] if self.field else []


VARIANTS = {
    BASE: Variant("the base, cpu_dinov3", "", ""),
    "softmax": Variant("softmax and a centre for Sinkhorn-Knopp", "objective.centering", "softmax"),
    "noibot": Variant("without iBOT", "objective.ibot_weight", "0"),
    "nokoleo": Variant("without KoLeo", "objective.koleo_weight", "0"),
    "registers": Variant("with 4 registers", "objective.backbone.num_registers", "4"),
    "rescale": Variant("with RoPE rescale 2", "objective.backbone.rope_rescale", "2.0"),
}


def main(
    folder: Path,
    /,
    seeds: tuple[int, ...] = (0, 1, 2),
    jobs: int = 2,
    docs: Path = DOCS,
    record: Path = RECORD,
    page_only: bool = False,
) -> None:
    """Train what is missing in `folder`, evaluate all of it, write `record` and the page about it into `docs`.

    `jobs`: runs at a time, each on one thread. `page_only`: the page from the record, without any run.
    """
    if not page_only:
        run_missing(folder, seeds, jobs)
        runs = {name: [Run(folder / f"{name}-{seed}") for seed in seeds] for name in VARIANTS}
        check_all(runs)
        record.write_text(as_json(measure(runs)), encoding="utf-8")
    text = page(json.loads(record.read_text(encoding="utf-8")))
    (docs / "ingredients.md").write_text(text, encoding="utf-8")
    print(text)


def run_missing(folder: Path, seeds: tuple[int, ...], jobs: int) -> None:
    """Run every training of `folder` that has not reached its last step."""
    commands = [
        command(name, seed, folder) for seed in seeds for name in VARIANTS if not finished(folder / f"{name}-{seed}")
    ]
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(run_command, commands))
    if any(codes):
        raise SystemExit("a training failed; the lines above say why. Run the same again to go on.")


def command(name: str, seed: int, folder: Path) -> list[str]:
    words = [sys.executable, "-m", "training", "pretrain", "cpu_dinov3", "--run", str(folder / f"{name}-{seed}")]
    return [*words, "--seed", str(seed), *COMMON.split(), *VARIANTS[name].options]


def finished(path: Path) -> bool:
    return (path / "run.json").exists() and Run(path).steps()[-1:] == [STEPS]


def check_all(runs: dict[str, list[Run]]) -> None:
    """Refuse a run that differs from the base of its seed in anything but its field, or not at all."""
    for name, group in runs.items():
        for run, base in zip(group, runs[BASE], strict=True):
            ours, theirs = leaves(run.config), leaves(base.config)
            differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            expected = [VARIANTS[name].field] if VARIANTS[name].field else []
            if differing != expected:
                raise SystemExit(f"{run.name} differs from {base.name} in {differing}; it should in {expected}")


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of a nested record."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def measure(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Everything the page and the notebook show: by variant, values a seed, their mean, and differences to the base."""
    first = runs[BASE][0]
    usual = plan_of(first)
    sizes = replace(usual.config, suite=replace(usual.config.suite, size=LARGE))
    plans = {"": usual, f"{LARGE} px ": EvaluationPlan(sizes, usual.scenes, patch_size=usual.patch_size)}
    suites = {prefix: fresh_suite(first, plan, "known") for prefix, plan in plans.items()}

    def scores(backbone: Backbone) -> dict[str, float]:
        found = {
            prefix + key: value for prefix, suite in suites.items() for key, value in score(suite, backbone).items()
        }
        return {prefix + key: found[prefix + key] for prefix in suites for key in (KEYS if not prefix else SHOWN)}

    rows = {name: [scores(run.backbone()) | last_metrics(run) for run in group] for name, group in runs.items()}
    start = [scores(run.backbone(step=0)) for run in runs[BASE]]
    return {
        "recipe": first.info["recipe"],
        "steps": STEPS,
        "seeds": [run.info["seed"] for run in runs[BASE]],
        "batch_size": first.config["batch"]["batch_size"],
        "fresh_scenes_offset": FRESH,
        "sizes": {
            name: getattr(usual.config.suite, name) for name in ("train_scenes", "test_scenes", "queries", "size")
        },
        "classes": len(usual.known.present),
        "identities": len(usual.known.cutouts),
        "step 0": summary(start),
        "variants": {
            name: {
                "title": VARIANTS[name].title,
                "options": " ".join(VARIANTS[name].options),
                "values": summary(rows[name]),
                "difference": summary(differences(rows[name], rows[BASE])) if name != BASE else {},
                "curves": curves(runs[name]),
                "attention": attention_shares(runs[name]),
            }
            for name in runs
        },
    }


def differences(rows: list[dict[str, float]], base: list[dict[str, float]]) -> list[dict[str, float]]:
    """Values less those of the base run of the same seed."""
    return [{key: row[key] - other[key] for key in row} for row, other in zip(rows, base, strict=True)]


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """By name: the value of each seed, their mean, and its standard error (sample deviation over root of the count)."""
    found = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        found[key] = {"mean": statistics.mean(values), "se": error, "seeds": values}
    return found


def last_metrics(run: Run) -> dict[str, float]:
    """Means over the last 100 steps of what training itself recorded."""
    rows = [row for row in run.metrics()[0] if row["step"] > STEPS - 100]
    return {key: statistics.mean(row[key] for row in rows) for key in TRAINING}


def curves(runs: list[Run]) -> dict[str, list[list[float]]]:
    """By score: [step, mean over seeds] of the evaluations that the runs wrote while they trained."""
    steps = [row["step"] for row in runs[0].evaluations()[0]]
    tables = [{row["step"]: row for row in run.evaluations()[0]} for run in runs]
    return {key: [[step, statistics.mean(table[step][key] for table in tables)] for step in steps] for key in SHOWN}


@torch.no_grad()
def attention_shares(runs: list[Run]) -> list[list[float]]:
    """By block: shares of attention on class token, registers and patches, mean over queries, heads, probe images."""
    shares = []
    for run in runs:
        backbone = run.backbone()
        images = normalize(run.probe_images().images, run.info["input"]["mean"], run.info["input"]["std"])
        for block in range(backbone.depth):
            features = backbone.features(images, layer=block, attention=True)
            assert features.attention is not None
            mean, registers = features.attention.mean((0, 1, 2)), features.registers.shape[1]
            parts = mean[:1], mean[1 : 1 + registers], mean[1 + registers :]
            shares.append([float(part.sum()) for part in parts])
    depth = len(shares) // len(runs)
    return [[statistics.mean(column) for column in zip(*shares[k::depth], strict=True)] for k in range(depth)]


def as_json(tree: dict[str, Any]) -> str:
    """Indented, with five digits of every number, and lists of numbers on one line."""
    text = json.dumps(rounded(tree), indent=1)
    return re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def rounded(item: Any) -> Any:
    if isinstance(item, float):
        return float(f"{item:.5g}")
    if isinstance(item, dict):
        return {key: rounded(value) for key, value in item.items()}
    return [rounded(value) for value in item] if isinstance(item, list) else item


if __name__ == "__main__":
    tyro.cli(main, prog=Path(sys.argv[0]).name)
