"""The degradation lab: arms fork from where they say, differences are paired, page and films come out."""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.__main__ import main as train
from training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "training")]
import lab_films  # noqa: E402
import lab_page  # noqa: E402
import lab_scores  # noqa: E402
from lab_chain import ARMS, STAGES, Lab  # noqa: E402
from tiny import OVERRIDES  # noqa: E402

STRESSED, ANCHORED = ("induced", "cured", "late", "early"), ("cured", "late", "early")
PATCH = "dense/patch_knn"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab whose detector named the peak at step 750, without any run yet."""
    monkeypatch.setattr(Lab, "advised", lambda self, seed: ("healthy", 750))
    return Lab(folder=tmp_path, seeds=(3,))


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_differs_from_the_anchor_only_where_it_says(name: str, lab: Lab, capsys: pytest.CaptureFixture[str]):
    trees = []
    for each in ("healthy", name):
        assert train([*lab.command(each, 3)[3:], "--print-config"]) == 0
        trees.append(json.loads(capsys.readouterr().out))
    healthy, arm = trees
    assert (arm["objective"]["stress"]["leak_weight"] > 0) == (name in STRESSED)
    assert ("gram" in arm["objective"]) == (name in ANCHORED)
    assert arm["recipe"].startswith("lab_induced") == (name in STRESSED), "induced by name, wherever it is shown"
    assert all(arm[part] == healthy[part] for part in ("data", "augment", "masks", "evaluation"))
    assert arm["optim"]["lr"]["peak"] == healthy["optim"]["lr"]["peak"]
    networks = ("backbone", "dino_head", "ibot_head", "koleo_weight", "dino_weight")
    assert all(arm["objective"][part] == healthy["objective"][part] for part in networks)


def test_the_cures_differ_in_their_gram_teacher_alone(lab: Lab):
    words = {name: lab.command(name, 3) for name in ANCHORED}
    teachers = {name: found[found.index("--objective.gram.teacher") + 1] for name, found in words.items()}
    step = lab.random_early_step(3)
    assert teachers == {
        "cured": f"run:{lab.folder}/seed3-healthy@step=750",
        "late": "fork",
        "early": f"run:{lab.folder}/seed3-healthy@step={step}",
    }
    rest = []
    for name, found in words.items():
        mine = (teachers[name], str(lab.path(name, 3)))
        rest.append([word for word in found if word not in mine])
    assert rest[0] == rest[1] == rest[2]


def test_what_is_forked_from_and_anchored_to_is_kept_by_the_recipes(lab: Lab):
    healthy, induced = (RECIPES[name].build().loop for name in ("lab_healthy", "lab_induced"))
    assert lab.fork % induced.keep_every == 0
    assert lab.published == healthy.probe_every
    assert {lab.random_early_step(seed) for seed in range(200)} == set(range(50, 401, 50))
    for name, arm in ARMS.items():
        assert RECIPES[arm.recipe].build().loop.steps == lab.steps(name) or name == "relieved"
    done: set[str] = {""}
    for stage in STAGES:
        assert all(ARMS[name].parent in done for name in stage)
        done |= set(stage)
    assert done == {"", *ARMS}


def made_up_scores(seeds: int) -> dict[int, lab_scores.Scores]:
    rng, keys = np.random.default_rng(0), lab_page.COLUMNS
    return {
        seed: {
            name: [{key: float(rng.normal(0.4, 0.05)) for key in keys} for _ in range(lab_scores.DRAWS)]
            for name in lab_scores.MOMENTS
        }
        for seed in range(seeds)
    }


def test_differences_are_paired_and_errors_are_those_of_the_mean():
    scores = made_up_scores(3)
    found = lab_scores.estimate(scores, PATCH, "cured", "sick")
    table = np.array([[[row[PATCH] for row in one[name]] for name in ("cured", "sick")] for one in scores.values()])
    by_seed = (table[:, 0] - table[:, 1]).mean(axis=1)
    assert found.seeds == pytest.approx(list(by_seed))
    assert (found.mean, found.error) == pytest.approx((by_seed.mean(), by_seed.std(ddof=1) / math.sqrt(3)))
    alone = lab_scores.estimate({0: scores[0]}, PATCH, "cured", "sick")
    draws = list(table[0, 0] - table[0, 1])
    assert alone.error == pytest.approx(statistics.stdev(draws) / math.sqrt(lab_scores.DRAWS))


def test_recovery_is_one_back_at_the_anchor_and_nothing_where_it_began():
    scores = made_up_scores(2)
    for one in scores.values():
        one["relieved"], one["late"] = one["healthy"], one["sick"]
    assert lab_scores.recovered(scores, PATCH, "relieved") == pytest.approx([1, 1])
    assert lab_scores.recovered(scores, PATCH, "late") == pytest.approx([0, 0])


@pytest.mark.parametrize(
    ("sick", "cured", "drop_met", "cure_met"),
    [(0.33, 0.38, True, True), (0.33, 0.36, True, False), (0.37, 0.39, False, True)],
)
def test_a_missed_number_is_called_missed(lab: Lab, sick: float, cured: float, drop_met: bool, cure_met: bool):
    scores = made_up_scores(3)
    for seed, one in scores.items():
        for name, level in (("healthy", 0.4), ("sick", sick + 0.001 * seed), ("cured", cured)):
            one[name] = [row | {PATCH: level} for row in one[name]]
    for line, met in ((lab_page.drop_line(lab, scores), drop_met), (lab_page.recovery_line(scores), cure_met)):
        assert line.startswith("- **Met.**" if met else "- **Missed.**")


def test_a_drop_within_its_error_is_missed_however_large(lab: Lab):
    scores = made_up_scores(3)
    for seed, one in scores.items():
        one["healthy"] = [row | {PATCH: 0.5} for row in one["healthy"]]
        one["sick"] = [row | {PATCH: 0.5 - 0.1 * seed} for row in one["sick"]]
    assert lab_page.drop_line(lab, scores).startswith("- **Missed.**")


def test_a_tiny_chain_gets_its_page_and_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cadence = [f"--loop.{what}-every" for what in ("log", "probe", "evaluate", "keep")]
    extra = (*OVERRIDES[: OVERRIDES.index("--loop.log-every")], *(word for name in cadence for word in (name, "1")))
    lab = Lab(folder=tmp_path, anchor=4, fork=3, cure=3, published=1, extra=extra)
    for stage in STAGES:
        for name in stage:
            assert train(lab.command(name, 0)[3:]) == 0
    monkeypatch.setattr(lab_scores, "SIZES", {"train_scenes": 6, "test_scenes": 4, "bank": 20, "queries": 6})
    monkeypatch.setattr(lab_page, "SIZES", lab_scores.SIZES)
    monkeypatch.setattr(lab_films, "PROBES", 2)
    lab_films.draw_all(lab, tmp_path / "images")
    scores = lab_scores.measure(lab)
    page = lab_page.write_page(lab, scores, tmp_path / "page.md", "make lab", pictures=True).read_text(encoding="utf-8")
    pictures = ["lab-curves.png", *(f"lab-{name}.{kind}" for name in ARMS for kind in ("png", "gif"))]
    assert {path.name for path in (tmp_path / "images").iterdir()} == set(pictures)
    assert page.count("induced") > 5
    assert all(f"images/lab-{name}.png" in page for name in ARMS)
    with Image.open(tmp_path / "images" / "lab-cured.gif") as film:
        assert film.n_frames == 5 + 3 + 3, "the anchor, the stress up to the fork, the cure"
    monkeypatch.setattr(lab_scores, "_measure_one", None)
    again = lab_scores.measure(lab)  # as JSON, in which a gauge that is undefined here equals itself
    assert json.dumps(again) == json.dumps(scores), "what was measured is not measured again"
    assert lab.run("cured", 0).parent == {"run": "seed0-induced", "step": 3}
    assert [row["step"] for row in lab.stream(0)] == list(range(0, 11))


def test_one_colour_means_one_feature_in_all_frames():
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 3, 5, 8, generator=generator)
    frames = [lab_films.Frame("healthy", 0, patches), lab_films.Frame("induced", 9, 2 * patches.flip(0))]
    palette = lab_films.fit_palette(frames)
    queries = [(0, 0), (2, 4)]
    first, _ = lab_films.maps_of(frames[0], palette, queries)
    again, cosines = lab_films.maps_of(frames[1]._replace(patches=patches.flip(0)), palette, queries)
    torch.testing.assert_close(first, again.flip(0))
    assert torch.equal(cosines[0, 0, 0], cosines[1, 2, 4]), "a patch is 1 to itself, at the end of the fixed range"


def test_the_query_is_a_patch_of_the_largest_object():
    mask = torch.zeros(24, 40, dtype=torch.int64)
    mask[0:4, 0:4] = 7
    mask[10:22, 20:38] = 3
    assert lab_films.object_patch(mask, 8) == (1, 3)
