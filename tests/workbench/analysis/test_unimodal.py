"""Unimodal regression against scikit-learn's isotonic regression, tried at every peak."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from workbench.analysis.unimodal import isotonic, unimodal


def fit_of(values: np.ndarray) -> np.ndarray:
    return IsotonicRegression().fit_transform(np.arange(len(values)), values) if len(values) else values


def error_of(values: np.ndarray) -> float:
    return float(((fit_of(values) - values) ** 2).sum())


@pytest.mark.parametrize("count", [1, 2, 3, 11, 40])
def test_isotonic_fits_and_errors_of_all_prefixes_are_those_of_scikit_learn(count: int):
    values = np.random.default_rng(count).normal(size=count)
    fitted, errors = isotonic(values.tolist())
    assert fitted == pytest.approx(fit_of(values))
    assert errors == pytest.approx([error_of(values[:k]) for k in range(count + 1)], abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5, 23])
def test_the_unimodal_fit_is_the_best_over_all_peaks(count: int):
    values = np.random.default_rng(100 + count).normal(size=count)
    costs = [error_of(values[:k]) + error_of(values[k:][::-1]) for k in range(count + 1)]
    fit = unimodal(values.tolist())
    assert ((np.array(fit.fitted) - values) ** 2).sum() == pytest.approx(min(costs), abs=1e-12)
    assert fit.gain == pytest.approx(error_of(values) - min(costs), abs=1e-12)
    steps = np.diff(fit.fitted)
    assert not (np.maximum.accumulate(steps[::-1])[::-1][:-1] > 1e-12)[
        steps[:-1] < -1e-12
    ].any()  # no rise after a fall


def test_a_rise_has_no_gain_and_a_peak_keeps_its_shape():
    assert unimodal([0.1, 0.2, 0.2, 0.5]).gain == 0.0
    peak = unimodal([0.1, 0.4, 0.3, 0.2])
    assert peak.fitted == [0.1, 0.4, 0.3, 0.2]
    assert peak.gain == pytest.approx(0.02)  # a rise alone puts 0.3 for the last three rows: 0.01 + 0 + 0.01
