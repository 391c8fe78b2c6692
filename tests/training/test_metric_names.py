"""What objectives record is documented, and the pages have a name for it in both languages."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from apps.language import strings
from training.phases.anchor import AnchorConfig, GramConfig
from training.phases.pretrain import PretrainConfig
from training.progress import ProgressLine

sys.path.insert(0, str(Path(__file__).parent))
from test_objective_steps import IMAGES, batch_of, objective, step_of, trainer_of

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "workbench" / "static" / "renderer.js").read_text(encoding="utf-8")
CONTRACT = (ROOT / "docs" / "run-format.md").read_text(encoding="utf-8")
RECIPES = ("cpu_dinov1", "cpu_dinov2", "cpu_dinov3", "cpu_simclr", "cpu_mocov2", "cpu_mocov3")


def recorded(recipe: str) -> set[str]:
    """Names in the record of one real step; "anchor" stands for Gram anchoring on top of cpu_dinov3."""
    config = objective("cpu_dinov3" if recipe == "anchor" else recipe)
    if recipe == "anchor":
        known = {field.name: getattr(config, field.name) for field in fields(PretrainConfig)}
        config = AnchorConfig(**known, gram=GramConfig(refresh_every=1)).resolve(10, IMAGES)
    trainer = trainer_of(config.build(seed=0))
    record = step_of(trainer, batch_of(0, 3 if isinstance(config, PretrainConfig) else 0))
    return set(record) | {f"rate/{name}" for name in trainer.optim.rates(0)}


@pytest.mark.parametrize("recipe", [*RECIPES, "anchor"])
def test_every_number_of_a_step_is_documented_and_named_in_both_languages(recipe: str) -> None:
    names = recorded(recipe)
    assert not [name for name in sorted(names) if f"`{name}`" not in CONTRACT]
    assert not [name for name in sorted(names) if PAGES.count(f'"{name}": "') != 2]
    for language, table in strings().items():
        assert not [name for name in sorted(names) if f"group.{name.partition('/')[0]}" not in table], language


def test_each_objective_records_its_own_teacher_and_student() -> None:
    """As docs/run-format.md says; what all have apart."""
    own = {
        "cpu_dinov1": {"teacher/entropy", "teacher/prototypes_used", "teacher/momentum", "teacher/center_norm"},
        "cpu_dinov3": {"teacher/entropy", "teacher/prototypes_used", "teacher/momentum"},
        "cpu_simclr": set(),
        "cpu_mocov2": {"teacher/momentum", "teacher/student_distance", "queue/filled", "queue/age"},
        "cpu_mocov3": {"teacher/momentum", "teacher/student_distance", "teacher/student_cosine"},
        "anchor": {
            *("teacher/entropy", "teacher/prototypes_used", "teacher/momentum", "gram/weight", "gram/refreshes"),
        },
    }
    for recipe, expected in own.items():
        names = recorded(recipe)
        assert {name for name in names if name.partition("/")[0] in ("teacher", "queue", "gram")} == expected, recipe


def test_speeds_are_documented_and_named() -> None:
    with ProgressLine(total=4, start=0, images_per_step=2) as progress:
        names = progress.show(2, 1.0, 0.0)
    assert set(names) == {"speed/images_per_second", "speed/data_wait"}
    for name in (*names, "data/bad_images"):
        assert f"`{name}`" in CONTRACT
        assert PAGES.count(f'"{name}": "') == 2


def test_the_start_of_a_fork_is_told_in_chinese_too() -> None:
    """The page's patterns for sentences of the trainer, tried on the ones that `launch` writes (see test_start.py)."""
    patterns = re.findall(r"^ *\[/(\^.+\$)/, ", PAGES, re.MULTILINE)
    assert len(patterns) > 5
    for text in ("recipe cpu_demo, seed 0", "recipe cpu_anchor, seed 1 from run:runs/demo@step=800"):
        assert sum(bool(re.search(pattern, text)) for pattern in patterns) == 1, text
