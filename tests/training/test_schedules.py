"""Schedules against closed forms written as arrays, the way the published training codes build them."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.schedules import Schedule, constant, scaled_learning_rate


def values(schedule: Schedule, steps: int) -> list[float]:
    return [schedule(i) for i in range(steps)]


def test_v1_warms_up_to_the_peak_inclusively_and_reaches_the_end_after_the_run() -> None:
    W, total = 7, 30
    n = total - W
    expected = np.concatenate(
        [np.linspace(0.1, 2.0, W), 0.5 + 0.5 * (2.0 - 0.5) * (1 + np.cos(np.pi * np.arange(n) / n)), [0.5, 0.5]]
    )
    schedule = Schedule(start=0.1, peak=2.0, end=0.5, warmup_steps=W, shape="cosine", convention="v1").resolve(total)
    np.testing.assert_allclose(values(schedule, total + 2), expected, rtol=1e-12)
    assert schedule(W - 1) == schedule(W) == 2.0


def test_v2_leaves_the_peak_to_the_cosine_and_reaches_the_end_on_its_last_step() -> None:
    W, n, total = 7, 11, 30
    t = np.linspace(0, np.pi, n)
    expected = np.concatenate(
        [np.linspace(0.1, 2.0, W, endpoint=False), 0.5 + (2.0 - 0.5) * (1 + np.cos(t)) / 2, np.full(total - W - n, 0.5)]
    )
    schedule = Schedule(start=0.1, peak=2.0, end=0.5, warmup_steps=W, shape="cosine", shape_steps=n, convention="v2")
    np.testing.assert_allclose(values(schedule.resolve(total), total), expected, rtol=1e-12)
    remainder = dataclasses.replace(schedule, shape_steps=None).resolve(total)
    assert remainder(W) == 2.0
    assert remainder(total - 2) > 0.5
    assert remainder(total - 1) == pytest.approx(0.5)


@pytest.mark.parametrize(("convention", "stop"), [("v1", 10), ("v2", 9)])
def test_linear(convention: str, stop: int) -> None:
    schedule = Schedule(peak=1.0, end=0.0, shape="linear", convention=convention).resolve(10)  # pyright: ignore
    np.testing.assert_allclose(values(schedule, 10), [1 - i / stop for i in range(10)], rtol=1e-12)


@pytest.mark.parametrize(("convention", "last"), [("v1", 4), ("v2", 5)])
def test_constant_after_warm_up(convention: str, last: int) -> None:
    schedule = Schedule(start=0.04, peak=0.07, warmup_steps=5, convention=convention)  # pyright: ignore
    np.testing.assert_allclose(values(schedule, 5), [0.04 + 0.03 * i / last for i in range(5)], rtol=1e-12)
    assert {schedule(i) for i in (5, 6, 10**6)} == {0.07}


def test_gram_weight_of_the_7b_run() -> None:
    weight = Schedule(
        peak=0.0, end=2.0, warmup_steps=1_000_000, shape="cosine", shape_steps=1000, convention="v2"
    ).resolve(1_200_000)
    assert weight(999_999) == weight(1_000_000) == 0.0
    assert weight(1_000_500) == pytest.approx(1.0, abs=0.01)
    assert weight(1_000_999) == weight(1_199_999) == 2.0


def test_frozen_steps_are_zero_and_move_nothing_else() -> None:
    free = Schedule(start=0.5, peak=2.0, end=0.1, warmup_steps=4, shape="cosine").resolve(20)
    frozen = dataclasses.replace(free, freeze_steps=6)
    assert values(frozen, 20) == [0.0] * 6 + values(free, 20)[6:]


def test_fractions_become_steps_of_the_run() -> None:
    short = Schedule(peak=1.0, end=0.0, warmup_steps=0.1, shape="cosine", shape_steps=0.5, freeze_steps=0.02)
    resolved = short.resolve(200)
    assert (resolved.warmup_steps, resolved.shape_steps, resolved.freeze_steps) == (20, 100, 4)
    assert resolved(119) > 0
    assert resolved(120) == 0.0
    assert resolved.resolve(200) == resolved


def test_peak_and_end_scale_as_the_released_code_does() -> None:
    for convention, end in (("v1", 0.1), ("v2", 0.4)):
        schedule = Schedule(start=0.3, peak=1.0, end=0.1, shape="cosine", convention=convention).scaled(4)  # pyright: ignore
        assert (schedule.start, schedule.peak, schedule.end) == (0.3, 4.0, pytest.approx(end))
    assert Schedule(peak=1.0, end=1.0).scaled(2)(0) == 2.0


@pytest.mark.parametrize(
    ("rule", "batch", "factor"),
    [
        ("none", 32, 1.0),
        ("linear_wrt_256", 1024, 4.0),
        ("sqrt_wrt_1024", 1024, 4.0),
        ("sqrt_wrt_1024", 2048, 5.656854249492381),
        ("sqrt_wrt_1024", 4096, 8.0),
        ("sqrt_wrt_1024_dinov2", 3072, math.sqrt(3)),
    ],
)
def test_learning_rate_rules(rule: str, batch: int, factor: float) -> None:
    assert scaled_learning_rate(1e-3, batch, rule) == pytest.approx(1e-3 * factor)  # pyright: ignore


def test_published_actual_learning_rates() -> None:
    assert scaled_learning_rate(5e-5, 4096, "sqrt_wrt_1024") == pytest.approx(4e-4)  # 7B
    assert scaled_learning_rate(1e-3, 2048, "sqrt_wrt_1024") == pytest.approx(5.66e-3, rel=1e-3)  # ViT-L, ImageNet-1k
    assert scaled_learning_rate(2e-4, 3072, "sqrt_wrt_1024_dinov2") == pytest.approx(3.46e-4, rel=2e-3)  # DINOv2


@given(
    start=st.floats(0, 1),
    peak=st.floats(0, 1),
    end=st.floats(0, 1),
    warmup=st.integers(0, 20),
    total=st.integers(20, 60),
    shape=st.sampled_from(["cosine", "linear"]),
    convention=st.sampled_from(["v1", "v2"]),
)
def test_values_stay_between_the_three_levels(
    start: float, peak: float, end: float, warmup: int, total: int, shape: str, convention: str
) -> None:
    schedule = Schedule(
        start=start, peak=peak, end=end, warmup_steps=warmup, shape=shape, convention=convention  # pyright: ignore
    ).resolve(total)  # fmt: skip
    low, high = min(start, peak, end), max(start, peak, end)
    assert all(low - 1e-9 <= v <= high + 1e-9 for v in values(schedule, total + 5))
    assert schedule(total) == end
    levels = schedule.extremes()
    assert all(min(levels) - 1e-9 <= v <= max(levels) + 1e-9 for v in values(schedule, total + 5))


def test_extremes_are_the_levels_that_are_used() -> None:
    assert constant(0.5).extremes() == (0.5,)
    assert Schedule(peak=2.0, start=0.1, end=3.0, shape="linear").extremes() == (2.0, 3.0)
    assert Schedule(peak=2.0, start=0.1, warmup_steps=0.1, freeze_steps=3).extremes() == (2.0, 0.1, 0.0)


def test_json_and_back() -> None:
    schedule = Schedule(peak=1e-3, end=1e-6, warmup_steps=0.1, shape="cosine", convention="v2")
    assert Schedule(**json.loads(json.dumps(dataclasses.asdict(schedule)))) == schedule
    assert constant(0.5)(12345) == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(peak=1, shape="cosinus"), "cosinus.*constant, cosine, linear"),
        (lambda: Schedule(peak=1, convention="v3"), "v3.*v1, v2"),
        (lambda: Schedule(peak=1, end=0), "'constant' but end 0 differs from peak 1"),
        (lambda: Schedule(peak=1, warmup_steps=-1), "warmup_steps is -1"),
        (lambda: Schedule(peak=1, warmup_steps=2.5), "warmup_steps is 2.5"),
        (lambda: Schedule(peak=1, warmup_steps=50).resolve(10), "50 steps in a run of 10"),
        (lambda: Schedule(peak=1, end=0, shape="cosine")(3), "call resolve"),
        (lambda: Schedule(peak=1, warmup_steps=0.1)(3), "call resolve"),
        (lambda: constant(1)(-1), "step is -1"),
        (lambda: scaled_learning_rate(1, 8, "cubic"), "cubic.*linear_wrt_256"),  # pyright: ignore
        (lambda: scaled_learning_rate(1, 0, "none"), "batch size is 0"),
    ],
)
def test_mistakes_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
