"""Which step is advised, by constructed evaluations."""

from __future__ import annotations

import numpy as np

from workbench.analysis.advice import advise
from workbench.analysis.onset import LABELLED, onset

KNN, MIOU = LABELLED


def rows(values: list[float], *, every: int = 200, sigma: float = 0.0) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    return [{"step": every * i, KNN: value + sigma * float(rng.normal())} for i, value in enumerate(values)]


PEAK = [0.30, 0.36, 0.40, 0.44, 0.47, 0.49, 0.50, 0.49, 0.46, 0.43, 0.40, 0.38, 0.36]


def test_the_peak_is_advised_with_its_runner_up_and_the_present_value():
    stream = rows(PEAK)
    advice = advise(stream, onset(stream), range(0, 2401, 200))
    assert advice is not None
    assert (advice.key, advice.best.step, advice.now.step) == (KNN, 1200, 2400)
    assert advice.runner_up is not None
    assert advice.runner_up.step == 800, "neighbours of the best are no rival"
    assert advice.best.value > advice.runner_up.value > advice.now.value


def test_only_published_steps_are_advised():
    stream = rows(PEAK)
    verdict = onset(stream)
    advice = advise(stream, verdict, [200, 2000])
    assert advice is not None
    assert advice.best.step == 2000
    assert advice.runner_up is not None
    assert advice.runner_up.step == 200
    lone = advise(stream, verdict, [2000])
    assert lone is not None
    assert lone.runner_up is None
    assert lone.clear
    assert advise(stream, verdict, []) is None
    assert advise(stream, verdict, [0]) is None, "step 0 is random weights"


def test_one_lucky_evaluation_is_no_teacher():
    stream = rows(PEAK)
    stream[9][KNN] = 0.505  # higher than any, between 0.46 and 0.40
    advice = advise(stream, onset(stream), range(0, 2401, 200))
    assert advice is not None
    assert advice.best.step == 1200


def test_a_near_runner_up_is_called_unclear():
    stream = rows([0.30, *[0.50] * 10, 0.47, 0.44, 0.42, 0.40])
    advice = advise(stream, onset(stream), range(0, 3000, 200))
    assert advice is not None
    assert not advice.clear


def test_without_labels_the_usual_score_is_asked_for_and_nothing_is_advised():
    stream = [{"step": 200 * i, "health/within_variance": 0.4} for i in range(12)]
    assert advise(stream, onset(stream), range(0, 3000, 200)) is None
