"""The comparison of ingredients: the page is the record's, a variant changes what it says, differences are paired."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import ingredients  # noqa: E402
from ingredients_page import QUANTILES, agreement, clear, page  # noqa: E402

from training.__main__ import main as train  # noqa: E402

RECORD = json.loads(ingredients.RECORD.read_text(encoding="utf-8"))


def test_the_page_is_made_from_the_record() -> None:
    assert (ROOT / "docs" / "ingredients.md").read_text(encoding="utf-8") == page(RECORD)


def test_the_record_is_small_and_whole() -> None:
    assert ingredients.RECORD.stat().st_size < 64 * 1024
    assert list(RECORD["variants"]) == list(ingredients.VARIANTS)
    base = RECORD["variants"][ingredients.BASE]["values"]
    for name, variant in RECORD["variants"].items():
        for key, entry in variant["difference"].items():
            pairs = zip(variant["values"][key]["seeds"], base[key]["seeds"], entry["seeds"], strict=True)
            assert all(math.isclose(a - b, d, abs_tol=2e-3) for a, b, d in pairs), (name, key)


def test_errors_are_those_of_the_mean() -> None:
    (entry,) = ingredients.summary([{"x": 1.0}, {"x": 2.0}, {"x": 6.0}]).values()
    assert entry == {"mean": 3.0, "se": pytest.approx(math.sqrt(7 / 3)), "seeds": [1.0, 2.0, 6.0]}
    assert ingredients.differences([{"x": 3.0}], [{"x": 1.0}]) == [{"x": 2.0}]


def test_only_what_leaves_out_zero_is_called_more_than_noise() -> None:
    t = QUANTILES[3]
    assert clear({"mean": -1.0, "se": 0.2}, t)
    assert not clear({"mean": 1.0, "se": 0.3}, t)
    assert not clear({"mean": 0.0, "se": 0.0}, t)
    assert (agreement([-1, -2]), agreement([1, 0]), agreement([1, -1])) == (
        "all seeds down",
        "all seeds up or equal",
        "seeds disagree",
    )


def test_a_run_that_changes_something_else_or_nothing_is_refused() -> None:
    """As a switch did that took out what the base has not: its runs were equal to the base's in every digit."""
    base, other = (SimpleNamespace(name="r", config={"objective": {"koleo_weight": w}}) for w in (0.1, 0.0))
    ingredients.check_all({"base": [base], "nokoleo": [other]})
    for name, run in (("noibot", other), ("nokoleo", base)):
        with pytest.raises(SystemExit, match="differs from r in"):
            ingredients.check_all({"base": [base], name: [run]})


@pytest.mark.parametrize("name", [name for name in ingredients.VARIANTS if name != ingredients.BASE])
def test_a_variant_differs_from_the_base_where_it_says(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees = []
    for each in (ingredients.BASE, name):
        assert train([*ingredients.command(each, 0, tmp_path)[3:], "--print-config"]) == 0
        trees.append(ingredients.leaves(json.loads(capsys.readouterr().out)))
    base, changed = trees
    assert [key for key in base if base[key] != changed[key]] == [ingredients.VARIANTS[name].field]
