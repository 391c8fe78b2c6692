"""The verdict on streams of evaluations: what it calls, what it leaves alone, and that it never looks ahead."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.analysis.onset import GAUGES, LABELLED, OnsetConfig, curve, noise, onset, smoothed

KNN, MIOU = LABELLED


def stream(
    values: list[float], *, every: int = 200, key: str = KNN, sigma: float = 0.004, seed: int = 0, **more: float
):
    """Rows of `key` with noise; the first one is step 0, a random init."""
    rng = np.random.default_rng(seed)
    return [
        {"step": every * i, "backbone": "teacher", key: value + sigma * float(rng.normal()), **more}
        for i, value in enumerate(values)
    ]


def merged(*streams: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for row in rows for name, value in row.items()} for rows in zip(*streams, strict=True)]


RISE = [0.30, *np.linspace(0.36, 0.50, 12)]
PEAK = [*RISE, *np.linspace(0.49, 0.40, 10)]


def test_a_rise_is_rising_a_level_is_a_plateau_and_a_fall_is_a_peak():
    assert onset(stream(RISE)).state == "rising"
    assert onset(stream([0.3, *[0.45] * 20])).state == "plateau"
    verdict = onset(stream(PEAK))
    assert verdict.state == "peaked"
    assert verdict.peak_step == pytest.approx(2400, abs=200)
    assert verdict.since == pytest.approx(2600, abs=200)
    assert verdict.confidence > 0.95
    lead = verdict.turns[0]
    assert (lead.key, lead.drop) == (KNN, pytest.approx(0.09, abs=0.015))


def test_the_alarm_comes_within_a_few_evaluations_and_not_before_the_fall():
    rows = stream(PEAK)
    first = next(n for n in range(len(rows)) if onset(rows[: n + 1]).state == "peaked")
    assert 12 < first <= 18


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 22), st.lists(st.floats(0, 1), min_size=3, max_size=3), st.booleans())
def test_the_verdict_at_evaluation_n_is_a_function_of_rows_0_to_n(n: int, future: list[float], clear: bool):
    rows = stream(PEAK)
    before = onset(rows[: n + 1])
    changed = [*rows[: n + 1]] if clear else rows[: n + 1] + [{"step": 10**6 + i, KNN: v} for i, v in enumerate(future)]
    onset(changed)
    assert onset(changed[: n + 1]) == before


@pytest.mark.parametrize("bottom", [40, 70, 100])
@pytest.mark.parametrize("every", [10, 20, 50])
def test_the_warm_up_dip_never_fires(bottom: int, every: int):
    """From a random init, dense scores fall for up to 100 steps, by far more than the noise, and come back slowly."""
    steps = np.arange(0, 401, every)
    dip = 0.35 - 0.12 * np.minimum(steps / bottom, 1) * np.exp(-np.maximum(steps - bottom, 0) / 120)
    rows = merged(
        stream(dip.tolist(), every=every), *(stream((s * dip).tolist(), every=every, key=g) for g, s in GAUGES.items())
    )
    for n in range(1, len(rows) + 1):
        verdict = onset(rows[:n])
        assert verdict.state not in ("peaked", "falling")
        assert not verdict.early_warning


def test_a_fork_of_a_good_run_may_peak_at_its_step_0_but_a_random_init_may_not():
    rows = stream([0.50, 0.47, 0.44, 0.42, 0.41, 0.40, 0.40, 0.39], every=100)
    forked = onset(rows, OnsetConfig(warmup_steps=0, trained=True))
    assert (forked.state, forked.peak_step, forked.since) == ("peaked", 0, 100)
    scratch = onset(rows, OnsetConfig(warmup_steps=100))
    assert (scratch.state, scratch.peak_step) == ("falling", None)


def test_one_bad_evaluation_is_no_decline():
    rows = stream([*RISE, 0.50, 0.50, 0.30])
    assert onset(rows).state != "peaked"
    assert onset([*rows, {"step": 3200, KNN: 0.50}, {"step": 3400, KNN: 0.50}]).state != "peaked"


def test_a_drop_below_two_points_or_below_the_recorded_error_is_a_plateau():
    small = [*RISE, *[0.5] * 10, *[0.485] * 15]
    assert onset(stream(small, sigma=0.001)).state == "plateau"
    assert onset(stream(small, sigma=0.001), OnsetConfig(smallest_drop=0.01)).state == "peaked"
    assert onset(stream(PEAK, **{f"{KNN}:se": 0.12})).state == "plateau"
    assert onset(stream(PEAK, **{f"{KNN}:se": 0.01})).state == "peaked"


def test_recorded_standard_errors_do_not_blunt_the_detector_but_a_drop_must_exceed_them():
    """They are between images, and all rows saw the same images: what scatters from row to row is far less."""
    verdicts = {error: onset(stream(PEAK, **{f"{KNN}:se": error})) for error in (0.002, 0.02, 0.2)}
    assert len({verdict.confidence for verdict in verdicts.values()}) == 1
    assert verdicts[0.02].state == "peaked"
    assert verdicts[0.2].state != "peaked", "9 points are nothing beside an error of 20"


def test_labels_that_disagree_call_no_decline():
    rising = stream([0.17, *np.linspace(0.18, 0.28, len(PEAK) - 1)], key=MIOU)
    verdict = onset(merged(stream(PEAK), rising))
    assert (verdict.state, verdict.disagree) == ("plateau", (MIOU,))
    flat = stream([0.2] * len(PEAK), key=MIOU, seed=1)
    assert onset(merged(stream(PEAK), flat)).state == "peaked"


def test_gauges_warn_only_together_and_never_decide():
    names = list(GAUGES)
    falling = {key: [0.5 + GAUGES[key] * (value - 0.5) for value in PEAK] for key in names}
    steady = stream([0.3, *[0.45] * (len(PEAK) - 1)], seed=5)
    one = onset(merged(steady, stream(falling[names[0]], key=names[0])))
    assert (one.state, one.early_warning) == ("plateau", False)
    two = onset(merged(steady, *(stream(falling[key], key=key, seed=9) for key in names[:2])))
    assert (two.state, two.early_warning) == ("plateau", True)
    better = stream([0.8 - 0.3 * i / len(PEAK) for i in range(len(PEAK))], key=names[2])
    assert not onset(
        merged(steady, *(stream(falling[key], key=key, seed=9) for key in names[:2]), better)
    ).early_warning
    alone = onset(merged(*(stream(falling[key], key=key, seed=9) for key in names)))
    assert (alone.state, alone.early_warning) == ("warm-up", True)


def test_rows_without_a_number_are_skipped_and_nothing_is_no_error():
    assert onset([]).state == "warm-up"
    assert onset([{"step": 0}, {"step": 100, KNN: None}]).state == "warm-up"
    rows = stream(PEAK)
    holes = [row if i % 3 else {"step": row["step"], KNN: None} for i, row in enumerate(rows)]
    assert curve(holes, KNN, OnsetConfig()).steps == [row["step"] for i, row in enumerate(rows) if i % 3]
    for odd in (math.nan, math.inf, 1e300, -(10**400), "0.5", None, True):
        assert onset([row | {KNN: odd} if i == 4 else row for i, row in enumerate(rows)]).state == "peaked"


def test_the_noise_is_found_beside_a_straight_rise_with_uneven_steps():
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 30, 600)).tolist()
    values = [0.001 * step + 0.02 * rng.normal() for step in steps]
    assert noise(steps, values, 0.02) == pytest.approx(0.02, rel=0.1)
    assert noise([0, 1], [0.1, 0.9], 0.03) == pytest.approx(0.03)
    assert smoothed([1.0, 2.0, 6.0]) == pytest.approx([4 / 3, 11 / 4, 14 / 3])
    assert smoothed([0.5]) == [0.5]


def test_false_alarms_on_plateaus_stay_below_five_per_cent():
    """60 runs of 30 evaluations that only level off, noise 1 point: a few alarms in all would be too many."""
    alarms = 0
    for seed in range(60):
        rows = merged(
            stream([0.3, *[0.45] * 29], sigma=0.01, seed=seed),
            stream([0.15, *[0.2] * 29], sigma=0.01, seed=1000 + seed, key=MIOU),
        )
        alarms += any(onset(rows[:n]).state == "peaked" for n in range(5, 31))
    assert alarms <= 3
