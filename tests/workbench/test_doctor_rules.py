"""Every rule of the doctor, on a run or config broken on purpose and on one that is just not broken."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from doctor_runs import STEPS, demo_tree, edited, tree_of, write_run

from training.config import as_tree
from training.fork import ForkArguments
from training.recipes import (
    RECIPES,
    cpu_adapt,
    cpu_anchor,
    cpu_continue,
    cpu_continue_naive,
    cpu_mocov2,
    cpu_simclr,
    vit7b16_anchor,
    vitl16_im1k,
)
from workbench.doctor import RULES, Case, Finding, diagnose, examine
from workbench.doctor.case import Machine
from workbench.doctor.read import case_at, run_case
from workbench.runs import Run

Build = Callable[[Path], Case]


@pytest.fixture(autouse=True)
def _memory_is_disk_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small files: nothing here is about power cuts."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


FORK = "run:runs/parent@step=800"


def config(tree: dict[str, Any]) -> Build:
    """The tree as a config.json, read as the command line reads it."""

    def build(folder: Path) -> Case:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(tree))
        return case_at(str(folder / "config.json"))

    return build


def run(**changes: Any) -> Build:
    """A run directory, healthy but for `changes` (see `write_run`)."""
    return lambda folder: run_case(Run(write_run(folder, **changes)))


def on(machine: Machine, build: Build) -> Build:
    return lambda folder: replace(build(folder), machine=machine)


def with_parent(keep_every: int, mean: float = 0.485) -> Build:
    """A config that forks step 100 of a run beside it."""

    def build(folder: Path) -> Case:
        parent = folder.with_name(folder.name + "-parent")
        write_run(
            parent,
            config=demo_tree(loop__keep_every=keep_every, augment__mean=[mean, 0.456, 0.406]),
        )
        fork = f"run:{parent}@step=100"
        return config(tree_of(cpu_anchor(), start__fork=fork))(folder)

    return build


def spoiled(name: str, line: bytes) -> Build:
    def build(folder: Path) -> Case:
        write_run(folder)
        with (folder / name).open("ab") as file:
            file.write(line)
        return run_case(Run(folder))

    return build


def silent(age: float, **changes: Any) -> Build:
    """A run copied from another machine: nobody can be asked whether its writer lives."""

    def build(folder: Path) -> Case:
        write_run(folder, ended=False, **changes)
        (folder / ".lock").unlink()
        for name in ("metrics.jsonl", "evaluations.jsonl", "events.jsonl"):
            stamp = (folder / name).stat().st_mtime - age
            os.utime(folder / name, (stamp, stamp))
        return run_case(Run(folder))

    return build


def until(last: int, curve: Callable[[int], float], then: float) -> Callable[[int], float]:
    return lambda step: curve(step) if step <= last else then


def spikes(*at: int) -> Callable[[int], float]:
    return lambda step: 30.0 if step in at else 0.7


LARGE = {"objective__backbone__embed_dim": 1024}
SMALL_BATCH = tree_of(vitl16_im1k(), batch__batch_size=256)
PEAK = (500, "warn", "dense-peak", "peaked at step 300, declining since 400, confidence 0.97")
FALLING = {"dense/patch_knn": lambda step: 0.35 + 0.1 * min(step, 600 - step) / 300}
LEVEL = 4.852  # ln 128

CASES: dict[str, tuple[str, Build, Build]] = {
    # rule: level, what triggers it, what nearly does and must not
    "torch-torchvision": (
        "error",
        on(Machine({"torch": "2.8.0+cu128", "torchvision": "0.21.0"}), config(demo_tree())),
        on(Machine({"torch": "2.8.0+cu128", "torchvision": "0.23.0+cpu"}), config(demo_tree())),
    ),
    "torch-changed": (
        "info",
        on(Machine({"torch": "2.9.0"}), run(ended=False, info={"machine": {"torch": "2.8.1"}})),
        on(Machine({"torch": "2.8.0"}), run(ended=False, info={"machine": {"torch": "2.8.1+cpu"}})),
    ),
    "disk-full": (
        "error",
        on(Machine(free_bytes=50 << 20), run(ended=False)),
        on(Machine(free_bytes=50 << 30), run(ended=False)),
    ),
    "batch-prototypes": ("warn", config(edited(SMALL_BATCH, batch__batch_size=64)), config(tree_of(vitl16_im1k()))),
    "batch-small": ("info", config(edited(SMALL_BATCH, batch__batch_size=255)), config(SMALL_BATCH)),
    "koleo-batch-of-one": (
        "error",
        config(demo_tree(batch__batch_size=1)),
        config(demo_tree(batch__batch_size=1, objective__koleo_weight=0.0)),
    ),
    "koleo-precision": (
        "warn",
        config(demo_tree(loop__precision="fp16")),
        config(demo_tree(loop__precision="fp16", objective__koleo_weight=0.0)),
    ),
    "images-repeat-in-a-batch": (
        "warn",
        config(demo_tree(data__count=31)),
        config(demo_tree(data__count=32)),
    ),
    "rate-not-scaled": (
        "warn",
        config(edited(tree_of(vitl16_im1k()), batch__batch_size=64)),
        config(tree_of(replace(vitl16_im1k(), batch=replace(vitl16_im1k().batch, batch_size=64)))),
    ),
    "ibot-tiny-masks": (
        "warn",
        config(demo_tree(objective__ibot_weight=1.0, masks__ratio=[0.0, 0.08])),
        config(demo_tree(objective__ibot_weight=1.0)),
    ),
    "ibot-at-once": (
        "warn",
        config(demo_tree(objective__ibot_weight=1.0)),
        config(demo_tree(objective__ibot_weight=1.0, objective__ibot_warmup_steps=200)),
    ),
    "gradients-unclipped": ("info", config(demo_tree(optim__clip_norm=None)), config(demo_tree())),
    "crop-not-whole-patches": (
        "error",
        config(demo_tree(augment__local_size=28)),
        config(demo_tree(augment__local_size=32)),
    ),
    "locals-larger-than-globals": (
        "warn",
        config(demo_tree(augment__local_size=64)),
        config(demo_tree(augment__local_size=48)),
    ),
    "normalisation-mismatch": ("warn", with_parent(100, mean=0.43), with_parent(100)),
    "temperature-hot": (
        "error",
        config(demo_tree(objective__teacher_temperature__peak=0.1)),
        config(demo_tree(objective__teacher_temperature__peak=0.07)),
    ),
    "momentum": (
        "warn",
        config(demo_tree(objective__momentum__peak=0.9999, objective__momentum__start=0.999)),
        config(demo_tree(objective__momentum__peak=0.996, objective__momentum__start=0.996)),
    ),
    "rate-ended": (
        "warn",
        config(demo_tree(optim__lr__shape_steps=400)),
        config(demo_tree(optim__lr__shape_steps=760)),
    ),
    "schedule-length": ("warn", config(demo_tree(loop__steps=1600)), config(demo_tree(loop__steps=800))),
    "no-warm-up": (
        "warn",
        config(demo_tree(optim__lr__warmup_steps=0)),
        config(demo_tree(optim__lr__warmup_steps=0, start__fork=FORK)),
    ),
    "heads-missing": (
        "warn",
        config(tree_of(cpu_continue_naive(), start__weights="hf:weights")),
        config(tree_of(cpu_continue(), start__weights="hf:weights")),
    ),
    "evaluations-rare": (
        "info",
        config(demo_tree(loop__evaluate_every=200)),
        config(demo_tree(loop__evaluate_every=100)),
    ),
    "nothing-kept": (
        "info",
        config(demo_tree(loop__steps=2000)),
        config(demo_tree(loop__steps=2000, loop__keep_every=200)),
    ),
    "gram-weight-zero": (
        "warn",
        config(tree_of(cpu_anchor(), objective__gram__weight__warmup_steps=1_000_000)),
        config(tree_of(cpu_anchor())),
    ),
    "gram-crops-small": (
        "warn",
        config(tree_of(cpu_anchor(), augment__gram_size=40)),
        config(tree_of(cpu_anchor(), augment__gram_size=48)),
    ),
    "gram-crops-unused": (
        "error",
        config(demo_tree(augment__gram_size=96)),
        config(tree_of(cpu_anchor(), start__fork=FORK)),
    ),
    "gram-crops-huge": (
        "info",
        config(tree_of(cpu_anchor(), augment__gram_size=240)),
        config(tree_of(cpu_anchor(), augment__gram_size=192)),
    ),
    "gram-refresh": (
        "warn",
        config(tree_of(cpu_anchor(), objective__gram__refresh_every=300, objective__gram__first_refresh=301)),
        config(tree_of(cpu_anchor(), objective__gram__refresh_every=300, objective__gram__first_refresh=300)),
    ),
    "gram-teacher-late": (
        "warn",
        config(tree_of(cpu_anchor(), start__fork=FORK, objective__gram__teacher="run:runs/parent@step=900")),
        config(tree_of(cpu_anchor(), start__fork=FORK, objective__gram__teacher="run:runs/parent@step=200")),
    ),
    "gram-teacher-none": ("error", config(tree_of(cpu_anchor())), config(tree_of(cpu_anchor(), start__fork=FORK))),
    "gram-tokens": (
        "error",
        config(tree_of(cpu_anchor(), objective__gram__tokens="masked")),
        config(
            tree_of(
                cpu_anchor(),
                objective__gram__tokens="masked",
                objective__gram__level="batch",
                objective__ibot_weight=0.3,
            )
        ),
    ),
    "fork-not-kept": ("error", with_parent(0), with_parent(50)),
    "entropy-uniform": (
        "error",
        run(metrics={"teacher/entropy": lambda step: 0.99}),
        run(metrics={"teacher/entropy": until(400, lambda step: 0.99, 0.9)}),
    ),
    "entropy-one-hot": (
        "error",
        run(metrics={"teacher/entropy": lambda step: 0.001, "teacher/prototypes_used": lambda step: 0.03}),
        run(metrics={"teacher/entropy": lambda step: 0.1}),
    ),
    "dead-prototypes": (
        "warn",
        run(metrics={"teacher/prototypes_used": lambda step: 0.2}),
        run(metrics={"teacher/prototypes_used": until(400, lambda step: 0.2, 0.5)}),
    ),
    "loss-stuck": (
        "error",
        run(metrics={"loss/dino": lambda step: LEVEL}),
        run(metrics={"loss/dino": lambda step: LEVEL - 0.06}),
    ),
    "koleo-high": (
        "warn",
        run(metrics={"loss/koleo": lambda step: 6.0}),
        run(metrics={"loss/koleo": until(400, lambda step: 6.0, 3.0)}),
    ),
    "contrast-collapse": (
        "error",
        run(config=tree_of(cpu_simclr()), metrics={"contrast/spread": lambda step: 0.05}),
        run(config=tree_of(cpu_simclr()), metrics={"contrast/spread": lambda step: 0.9}),
    ),
    "rank-low": (
        "error",
        run(scores={"health/effective_rank": lambda step: 1.5}),
        run(scores={"health/effective_rank": until(500, lambda step: 1.5, 9.0)}),
    ),
    "steps-skipped": (
        "warn",
        run(events=[(300, "warn", "nan-skipped", "loss not finite: step 300 left weights alone")]),
        run(events=[(300, "info", "saved", "nan-skipped")]),
    ),
    "losses-null": (
        "error",
        run(metrics={"loss/koleo": lambda step: None if step == 400 else 1.0}),
        run(metrics={"contrast/spread": lambda step: None}),
    ),
    "gradient-spikes": (
        "warn",
        run(metrics={"gradient_norm/backbone": spikes(200, 400, 600)}),
        run(metrics={"gradient_norm/backbone": spikes(20, 40, 60)}),
    ),
    "data-wait": (
        "warn",
        run(metrics={"speed/data_wait": lambda step: 0.5}),
        run(metrics={"speed/data_wait": until(200, lambda step: 0.5, 0.1)}),
    ),
    "bad-images": (
        "warn",
        run(metrics={"data/bad_images": lambda step: 2.0}, events=[(40, "warn", "bad-image", "a.png: truncated")]),
        run(metrics={"data/bad_images": lambda step: 0.0}),
    ),
    "slowed-down": (
        "info",
        run(metrics={"speed/images_per_second": until(700, lambda step: 90.0, 20.0)}),
        run(metrics={"speed/images_per_second": until(700, lambda step: 90.0, 60.0)}),
    ),
    "steps-backwards": (
        "error",
        run(steps=[*range(20, 420, 20), *range(300, 801, 20)]),
        run(steps=range(20, 801, 20)),
    ),
    "steps-missing": (
        "warn",
        run(steps=[*range(20, 320, 20), *range(500, 801, 20)]),
        run(steps=[*range(10, 320, 10), *range(340, 801, 40)]),
    ),
    "resumed-in-circles": (
        "warn",
        run(events=[(300, "info", "resumed", "continued from step 300")] * 3),
        run(events=[(step, "info", "resumed", "continued") for step in (100, 200, 300, 300)]),
    ),
    "config-not-what-ran": (
        "error",
        run(metrics={"rate/lr": until(600, lambda step: 0.004, 0.008)}),
        run(metrics={"rate/lr": lambda step: 0.004}),
    ),
    "run-and-config-differ": ("error", run(info={"seed": 7}), run(info={"seed": 0})),
    "weights-of-another-run": (
        "error",
        run(architecture={"class": "VisionTransformer", "config": {"embed_dim": 384}}),
        run(architecture={"class": "VisionTransformer", "config": {"embed_dim": 96, "drop_path": 0.3}}),
    ),
    "ended-badly": ("error", run(ended=False), run(ended=False, events=[(500, "info", "stopped", "stopped")])),
    "checkpoint-rejected": (
        "warn",
        run(events=[(200, "warn", "checkpoint-rejected", "step-000300: truncated")]),
        run(events=[(200, "warn", "torn-line", "cut")]),
    ),
    "record-damaged": ("warn", spoiled("metrics.jsonl", b"[1, 2]\n"), spoiled("metrics.jsonl", b'{"step": 82')),
    "snapshots-missing": ("warn", run(probes=[0, 200, 600, 800]), run(probes=[0, 200, 400, 600, 800])),
    "dense-peak": ("warn", run(events=[PEAK]), run(events=[(500, "info", "saved", "dense-peak")])),
    "dense-peak-not-kept": (
        "warn",
        run(events=[PEAK], scores=FALLING),
        run(events=[PEAK], scores=FALLING, config=demo_tree(loop__keep_every=100)),
    ),
    "dense-decline": (
        "warn",
        run(scores=FALLING),
        run(scores={"dense/patch_knn": until(700, FALLING["dense/patch_knn"], 0.43)}),
    ),
    "dense-below-start": (
        "warn",
        run(scores={"dense/patch_knn": lambda step: 0.30 if step else 0.35}),
        run(scores={"dense/patch_knn": until(600, lambda step: 0.30 if step else 0.35, 0.34)}),
    ),
    "patches-copy-class-token": (
        "warn",
        run(scores={"health/cls_patch_cosine": lambda step: 0.3 + 0.5 * max(step - 300, 0) / 500}),
        run(scores={"health/cls_patch_cosine": lambda step: 0.3 + 0.5 * max(200 - step, 0) / 200}),
    ),
    "norm-outliers": (
        "warn",
        run(scores={"health/norm_outliers": lambda step: 0.05}),
        run(scores={"health/norm_outliers": lambda step: 0.05 if step < 800 else 0.01}),
    ),
    "loss-near-uniform": (
        "fine",
        run(ended=False, steps=range(20, 61, 20), metrics={"loss/dino": lambda step: LEVEL}),
        run(ended=False, steps=range(20, 61, 20), metrics={"loss/dino": lambda step: 4.0}),
    ),
    "loss-rises-at-warm-up": (
        "fine",
        run(metrics={"loss/dino": lambda step: 4.0 + min(step, 200) / 500 - max(step - 200, 0) / 600}),
        run(metrics={"loss/dino": lambda step: 4.0 + step / 500}),
    ),
    "loss-rises-with-a-weight": (
        "fine",
        run(
            config=demo_tree(objective__ibot_weight=0.3, objective__ibot_warmup_steps=200),
            metrics={"loss/total": lambda step: 4.6 + min(step, 200) / 500},
        ),
        run(metrics={"loss/total": lambda step: 4.6 + min(step, 200) / 500}),
    ),
    "ibot-v-shape": (
        "fine",
        run(metrics={"loss/ibot": lambda step: 1.5 + abs(step - 300) / 500}),
        run(metrics={"loss/ibot": lambda step: 2.5 - step / 800}),
    ),
    "queue-fills": (
        "fine",
        run(
            config=tree_of(cpu_mocov2()),
            metrics={
                "queue/filled": lambda step: min(step / 200, 1.0),
                "loss/contrast": lambda step: 2.0 + min(step, 200) / 100,
            },
        ),
        run(
            config=tree_of(cpu_mocov2()),
            metrics={"queue/filled": lambda step: min(step / 200, 1.0), "loss/contrast": lambda step: 4 - step / 800},
        ),
    ),
    "loss-flat-scores-rise": (
        "fine",
        run(metrics={"loss/total": lambda step: 4.5}),
        run(metrics={"loss/total": lambda step: 4.5}, scores={n: lambda s: 0.4 for n in ("global/knn", *FALLING)}),
    ),
    "koleo-negative": (
        "fine",
        run(metrics={"loss/koleo": lambda step: -0.1}),
        run(metrics={"loss/koleo": lambda step: 0.1}),
    ),
    "dense-dip-at-warm-up": (
        "fine",
        run(scores={"dense/patch_knn": lambda step: 0.35 + (-0.05 if step == 100 else 0.1 * step / STEPS)}),
        run(scores={"dense/patch_knn": lambda step: 0.35 + (-0.05 if step == 400 else 0.1 * step / STEPS)}),
    ),
}


def found(rule: str, case: Case) -> list[Finding]:
    """What the rule finds; the rule itself must not raise, whatever `diagnose` would make of it."""
    (one,) = [each for each in RULES if each.name == rule]
    list(one.check(case))
    return [finding for finding in diagnose(case) if finding.rule == rule]


def test_every_rule_has_its_cases() -> None:
    assert list(CASES) == [rule.name for rule in RULES]
    assert len(RULES) >= 20


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_sees_what_is_broken_and_nothing_else(rule: str, tmp_path: Path) -> None:
    level, broken, near = CASES[rule]
    seen = found(rule, broken(tmp_path / "broken"))
    assert [finding.level for finding in seen][:1] == [level]
    assert not found(rule, near(tmp_path / "near"))
    for finding in seen:
        for text in (finding.title, finding.text, finding.fix):
            assert set(text) == {"en", "zh"}
            assert text["en"].isprintable()
            assert text["zh"].isprintable()
        assert re.search(r"[\u4e00-\u9fff]", finding.title["zh"] + finding.text["zh"])
        assert not re.search(r"[\u4e00-\u9fff]", finding.title["en"] + finding.text["en"] + finding.fix["en"])
        assert re.search(r"\d", finding.text["en"]) or rule in ("gram-teacher-none", "gram-tokens"), "no numbers"
        numbers = [set(re.findall(r"\d+\.?\d*", finding.text[language])) for language in ("en", "zh")]
        assert numbers[0] & numbers[1] or not numbers[0]
        assert finding.steps is None or finding.steps[0] <= finding.steps[1]


def options() -> set[str]:
    """The options of `python -m training`, from the fields of the configs of all recipes."""

    def paths(tree: dict[str, Any], prefix: str) -> set[str]:
        deeper = [paths(value, f"{prefix}{key}.") for key, value in tree.items() if isinstance(value, dict)]
        return {f"{prefix}{key}".replace("_", "-") for key in tree}.union(*deeper)

    of_recipes = set().union(*(paths(as_tree(recipe.build()), "") for recipe in RECIPES.values()))
    return of_recipes | {item.name for item in fields(ForkArguments)} | {"run", "print-config"}


@pytest.mark.parametrize("rule", [name for name, (level, _, _) in CASES.items() if level != "fine"])
def test_the_fixes_name_options_that_exist(rule: str, tmp_path: Path) -> None:
    for finding in found(rule, CASES[rule][1](tmp_path / "broken")):
        for language in ("en", "zh"):
            named = re.findall(r"--([a-z][\w.-]*)", finding.fix[language])
            assert not set(named) - options()
        assert finding.fix["en"] != "nothing"


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_as_they_are_pass(recipe: str, tmp_path: Path) -> None:
    """No warning about a recipe of ours, once it is given the fork or weights that it asks for."""
    tree = as_tree(RECIPES[recipe].build().resolve())
    forked = RECIPES[recipe].phase != "pretrain" or recipe in ("lab_unstressed", "lab_induced")
    if forked and not tree["start"]["fork"]:
        tree = edited(tree, start__fork=FORK)
    case = config(tree)(tmp_path / "recipe")
    grave = {finding.rule for finding in diagnose(case) if finding.level in ("warn", "error")}
    assert grave == set()


def test_a_healthy_run_is_left_in_peace(tmp_path: Path) -> None:
    findings = examine(Run(write_run(tmp_path / "run")))
    assert not [finding for finding in findings if finding.level in ("warn", "error")]
    near = [name for name, (level, _, build) in CASES.items() if level == "fine"]
    assert not {finding.rule for finding in findings} & set(near)


def test_findings_come_gravest_first(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run",
        metrics={"loss/dino": lambda step: LEVEL, "loss/koleo": lambda step: -1.0, "speed/data_wait": lambda step: 0.9},
        config=demo_tree(optim__clip_norm=None),
    )
    levels = [finding.level for finding in examine(Run(folder))]
    assert levels == sorted(levels, key=["error", "warn", "info", "fine"].index)
    assert set(levels) == {"error", "warn", "info", "fine"}


def test_the_stages_of_anchoring_are_told_in_words(tmp_path: Path) -> None:
    """The published settings pass; each contradiction of the Gram options names what contradicts what."""
    assert not [f for f in diagnose(config(tree_of(vit7b16_anchor()))(tmp_path / "a")) if f.level == "error"]
    live = tree_of(cpu_anchor(), start__fork=FORK, objective__gram__teacher="ema")
    said = {f.rule: f for f in diagnose(config(live)(tmp_path / "b"))}
    assert said["gram-refresh"].level == "error"
    assert "live EMA teacher" in said["gram-crops-unused"].text["en"]
    mixed = tree_of(cpu_adapt(), start__fork=FORK, resolutions__choices=[[64, 24, 48, 1.0], [96, 28, 144, 0.0]])
    said = {f.rule: f for f in diagnose(config(mixed)(tmp_path / "c"))}
    assert "48 pixels, the student 64" in said["gram-crops-small"].text["en"]
    assert "resolutions.choices[1] is 28" in said["crop-not-whole-patches"].text["en"]


def test_satellite_weights_want_their_own_statistics(tmp_path: Path) -> None:
    weights = "dinov3:vitl16:weights/dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth"
    tree = tree_of(cpu_continue(), start__weights=weights)
    (finding,) = found("normalisation-mismatch", config(tree)(tmp_path / "a"))
    assert "0.43 0.411 0.296" in finding.fix["en"]
    right = edited(tree, augment__mean=[0.43, 0.411, 0.296], augment__std=[0.213, 0.156, 0.143])
    assert not found("normalisation-mismatch", config(right)(tmp_path / "b"))
    bytes_ = edited(tree, augment__mean=[123.7, 116.3, 103.5])
    assert found("normalisation-mismatch", config(bytes_)(tmp_path / "c"))[0].level == "error"


def test_a_silent_run_is_told_from_a_young_one(tmp_path: Path) -> None:
    young = range(20, 401, 20)
    (finding,) = found("ended-badly", silent(3600, steps=young)(tmp_path / "a"))
    assert finding.level == "warn"
    assert "--run" in finding.fix["en"]
    assert not found("ended-badly", silent(0, steps=young)(tmp_path / "b"))


def test_the_fork_that_a_peak_calls_for_is_a_command(tmp_path: Path) -> None:
    """It anchors to the published weights at the peak, and names this run as the parent, quoted for a shell."""
    folder = write_run(tmp_path / "my run", events=[PEAK], scores=FALLING)
    (finding,) = [f for f in examine(Run(folder)) if f.rule == "dense-peak"]
    assert finding.steps == (300, STEPS)
    words = shlex.split(finding.fix["en"])
    assert words[:5] == ["python", "-m", "training", "fork", str(folder)]
    assert words[5:] == ["--teacher", f"run:{folder}@step=200"], "weights are saved every 200"
    assert "confidence 0.97" in finding.text["zh"]
    assert "45 % at step 300" in finding.text["en"]


def test_dips_and_declines_exclude_each_other(tmp_path: Path) -> None:
    """Evaluations of the other backbones of a run do not mix into the curves."""
    folder = write_run(tmp_path / "run", scores=FALLING)
    rules = {finding.rule for finding in examine(Run(folder))}
    assert "dense-decline" in rules
    assert "dense-dip-at-warm-up" not in rules
