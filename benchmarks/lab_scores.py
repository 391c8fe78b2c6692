"""The lab's scores: every arm's teacher on scenes that no training has seen, paired over seeds."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from typing import NamedTuple

from finished_runs import FRESH, plan_of, score
from lab_chain import ARMS, Lab

from training.evaluation.plan import EvaluationPlan

DRAWS = 3
"""Independent draws of all scenes: with one seed, errors come from them alone."""
SIZES = {"train_scenes": 250, "test_scenes": 300, "bank": 600, "queries": 400, "patches_per_class": 400}
CACHE = "scores.json"
"""In the lab's folder, so that a second page costs nothing; delete it to measure again."""

Scores = dict[str, list[dict[str, float]]]
"""Moment -> one entry a draw, score -> value."""

MOMENTS = {
    "random": ("healthy", "random weights, step 0"),
    "healthy": ("healthy", "healthy anchor"),
    "control": ("control", "control"),
    "control, later": ("control", "control, as long as the cures"),
    "sick": ("induced", "induced stress, where the cures begin"),
    "sicker": ("induced", "induced stress, as long as the cures"),
    "cured": ("cured", "induced stress + Gram, advised teacher"),
    "late": ("late", "induced stress + Gram, last checkpoint as teacher"),
    "early": ("early", "induced stress + Gram, random early teacher"),
    "relieved": ("relieved", "stress removed, no Gram"),
}
"""The backbones of the table: name -> arm, title."""


def step_of(lab: Lab, moment: str) -> int:
    """The step of its arm at which a moment is measured."""
    return {"random": 0, "control": lab.fork, "sick": lab.fork}.get(moment, lab.steps(MOMENTS[moment][0]))


class Estimate(NamedTuple):
    """A mean with its standard error, and the seeds behind it."""

    mean: float
    error: float
    seeds: list[float]

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f}"


def measure(lab: Lab) -> dict[int, Scores]:
    """Scores by seed. Runs that the cache knows are not measured again."""
    path = lab.folder / CACHE
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for seed in lab.seeds:
        made_from = {name: lab.run(name, seed).info["created"] for name in ARMS} | {"draws": DRAWS, **SIZES}
        if known.get(str(seed), {}).get("made_from") != made_from:
            known[str(seed)] = {"made_from": made_from, "scores": _measure_one(lab, seed)}
            path.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return {seed: known[str(seed)]["scores"] for seed in lab.seeds}


def _measure_one(lab: Lab, seed: int) -> Scores:
    run = lab.run("healthy", seed)
    plan = plan_of(run, None)
    config = replace(plan.config, suite=replace(plan.config.suite, **SIZES))
    plan = EvaluationPlan(config, plan.scenes, patch_size=plan.patch_size)
    mean, std = (tuple(run.info["input"][name]) for name in ("mean", "std"))
    backbones = {name: lab.run(arm, seed).backbone(step=step_of(lab, name)) for name, (arm, _) in MOMENTS.items()}
    scores: Scores = {name: [] for name in backbones}
    for draw in range(DRAWS):
        suite = plan.suite(mean, std, offset=FRESH * (draw + 1))
        for name, backbone in backbones.items():
            scores[name].append(score(suite, backbone))
    return scores


def estimate(scores: dict[int, Scores], key: str, plus: str, minus: str | None = None) -> Estimate:
    """The score `key` of `plus`, or its paired difference to `minus`.

    With several seeds the error is that of their mean; with one it is that of the mean over draws of scenes, which
    says nothing about another training.
    """
    by_seed = {seed: _differences(one, key, plus, minus) for seed, one in scores.items()}
    means = [statistics.mean(values) for values in by_seed.values()]
    spread = means if len(means) > 1 else next(iter(by_seed.values()))
    error = statistics.stdev(spread) / math.sqrt(len(spread)) if len(spread) > 1 else math.nan
    return Estimate(statistics.mean(means), error, means)


def _differences(scores: Scores, key: str, plus: str, minus: str | None) -> list[float]:
    first = [row[key] for row in scores[plus]]
    if minus is None:
        return first
    return [a - row[key] for a, row in zip(first, scores[minus], strict=True)]


def recovered(scores: dict[int, Scores], key: str, moment: str) -> list[float]:
    """By seed, the share of the induced loss that `moment` brings back from where it was forked."""
    gains, losses = estimate(scores, key, moment, "sick").seeds, estimate(scores, key, "healthy", "sick").seeds
    return [gain / loss if loss else math.nan for gain, loss in zip(gains, losses, strict=True)]
