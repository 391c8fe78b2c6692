"""Have dense features peaked? A verdict on a run's stream of evaluations, at each evaluation, from what came before.

For each curve: does a rise followed by a fall fit better than a rise alone? The statistic is the likelihood ratio of
the best unimodal fit against the best monotone one; its threshold is calibrated by simulation over a whole run, so
that looking again at every evaluation is paid for (benchmarks/onset.py, docs/onset.md). Scores measured with labels
decide. Label-free gauges can only warn, and only where several agree: each of them alone has misled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from workbench.analysis.unimodal import Unimodal, unimodal

Begun = Literal["random", "weights", "fork"]
"""What the first weights of a run are: random, a given backbone with new heads, or all of another run."""
State = Literal["warm-up", "rising", "plateau", "peaked", "falling"]
Row = Mapping[str, Any]

LABELLED = {"dense/patch_knn": 1, "dense/linear_miou": 1}
"""Dense scores that need labels, and which direction is the better one."""
GAUGES = {"health/within_variance": 1, "health/cls_patch_cosine": -1, "health/far_cosine": -1}
"""Label-free gauges of dense health, and which direction is the better one (DINOv3 section 4.1)."""
STANDARD_ERROR = ":se"
"""What a score's name is followed by in the name of its standard error."""

_PRIOR_ROWS = 4
_TAIL_START, _TAIL_SCALE = -2.4, 7.64
"""On a plateau of up to 80 evaluations, the largest evidence of a drop of two points exceeds g with probability
exp((start - g) / scale): the tail that `benchmarks/onset.py --calibrate` fits."""
_CLEAR = 2.0
"""Standard errors from which a rise is called one."""
LARGEST = 1e9
"""Values beyond it are no scores and no gauges: a damaged or foreign record, left out as one that is no number."""


@dataclass(frozen=True, kw_only=True)
class OnsetConfig:
    """What is known of the run's beginning, and when a decline counts."""

    warmup_steps: int = 100
    """Rows of earlier steps are not judged: from random weights dense scores fall at first and come back."""
    trained: bool = False
    """The run began with trained weights (a fork, given weights): step 0 is judged, and may be the peak."""
    confidence: float = 0.95
    """Needed to call a decline: 1 - the chance of a false alarm in a whole run that only levels off."""
    smallest_drop: float = 0.02
    """Smaller losses of a labelled score (a fraction: two points) are a plateau; where the rows record a larger
    standard error, that is the least."""
    smallest_turn: float = 0.015
    """The same for a label-free gauge."""
    typical_noise: float = 0.01
    """Scatter of a score from one evaluation to the next on the same images, before enough rows tell."""
    typical_gauge_noise: float = 0.005
    """The same for a label-free gauge."""
    memory_steps: float = 80.0
    """Over so many steps weights and their moving average wander together: rows that are closer repeat each other."""
    agreeing: int = 2
    """So many gauges must have turned for an early warning."""
    min_rows: int = 4
    """A curve of fewer judged rows is "warm-up"."""


def config_for(begun: Begun) -> OnsetConfig:
    """A fork has no warm-up dip; given weights with new heads have one, but their step 0 may be the peak."""
    return OnsetConfig(warmup_steps=0, trained=True) if begun == "fork" else OnsetConfig(trained=begun == "weights")


class Turn(NamedTuple):
    """What one curve says, in its own unit."""

    key: str
    state: State
    peak_step: int
    """The best row, each smoothed with its neighbours."""
    since: int | None
    """The first row whose fitted level is below the peak's; None where there is none."""
    peak: float
    """Mean of the best two neighbouring rows."""
    now: float
    """Mean of the newest two rows."""
    drop: float
    """How much worse `now` is than `peak`; 0 or more."""
    error: float
    """Standard error of `drop`."""
    confidence: float
    """That this curve has turned, counted over all curves of its kind (Bonferroni)."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the rows up to `step` say. "falling": worse ever since the warm-up, so there is no peak to go back to."""

    step: int
    state: State
    peak_step: int | None = None
    since: int | None = None
    confidence: float = 0.0
    """Of a decline."""
    turns: tuple[Turn, ...] = ()
    """Every labelled score, the strongest evidence of a decline first."""
    gauges: tuple[Turn, ...] = ()
    """Every label-free gauge, likewise."""
    early_warning: bool = False
    """Enough gauges have turned, and no other one clearly improved since."""
    disagree: tuple[str, ...] = ()
    """Labelled scores that rose since another one's peak: no decline is called while they do."""


class Curve(NamedTuple):
    """The judged rows of one score, turned so that higher is better."""

    steps: list[int]
    values: list[float]
    error: float
    """Standard error between images as the rows record it, in the middle; 0 where they do not."""
    before: list[float]
    """Values of the rows that are not judged."""


def onset(rows: Sequence[Row], config: OnsetConfig | None = None) -> Verdict:
    """The verdict on `rows`: records of one backbone in the order of their steps (docs/run-format.md).

    A row without a score is skipped for that score. The verdict at evaluation n is a function of rows 0..n.
    Sources: the decline, DINOv3 section 4.1 and arXiv 2510.17299; the fit, `workbench.analysis.unimodal`.
    """
    config = config or OnsetConfig()
    step = int(rows[-1]["step"]) if rows else 0
    turns = _turns(rows, LABELLED, config.smallest_drop, config.typical_noise, config)
    gauges = _turns(rows, GAUGES, config.smallest_turn, config.typical_gauge_noise, config)
    warning = _warns(rows, gauges, config)
    if not turns:
        return Verdict(step=step, state="warm-up", gauges=gauges, early_warning=warning)
    lead = turns[0]
    seen = Verdict(
        step=step,
        state="rising" if any(turn.state == "rising" for turn in turns) else "plateau",
        confidence=lead.confidence,
        turns=turns,
        gauges=gauges,
        early_warning=warning,
    )
    if lead.state not in ("peaked", "falling"):
        return seen
    if better := _better_since(rows, turns, lead.peak_step, config, config.smallest_drop):
        return replace(seen, state="plateau", disagree=better)
    if lead.state == "falling":
        return replace(seen, state="falling")
    return replace(seen, state="peaked", peak_step=lead.peak_step, since=lead.since)


def curve(rows: Sequence[Row], key: str, config: OnsetConfig, sign: int = 1) -> Curve:
    """The values of `key` in `rows`, times `sign`, split into those judged and those of the warm-up."""
    steps, values, errors, before = [], [], [], []
    for row in rows:
        value, error = _number(row.get(key)), _number(row.get(key + STANDARD_ERROR))
        if value is None:
            continue
        if row["step"] < config.warmup_steps and not (config.trained and row["step"] == 0):
            before.append(sign * value)
            continue
        steps.append(int(row["step"]))
        values.append(sign * value)
        errors.append(error or 0.0)
    return Curve(steps, values, sorted(errors)[len(errors) // 2] if errors else 0.0, before)


def noise(steps: Sequence[int], values: Sequence[float], prior: float) -> float:
    """Standard deviation of one value around the curve's course.

    From each row's distance to the line between its neighbours, whose variance is 1 + a^2 + (1 - a)^2 times the
    noise's for a row at share a of the way; `prior`, in the same unit, counts as four such rows.
    """
    total, rows = _PRIOR_ROWS * prior**2, _PRIOR_ROWS
    for i in range(1, len(values) - 1):
        a = (steps[i] - steps[i - 1]) / max(steps[i + 1] - steps[i - 1], 1)
        off = values[i] - (1 - a) * values[i - 1] - a * values[i + 1]
        total, rows = total + off**2 / (1 + a**2 + (1 - a) ** 2), rows + 1
    return math.sqrt(total / rows)


def evidence(
    steps: Sequence[int], values: Sequence[float], sigma: float, memory_steps: float
) -> tuple[Unimodal, float]:
    """The best unimodal fit, and its gain over a rise alone in squared noise.

    Rows that remember each other (correlation exp(-gap / memory_steps)) show arcs that independent ones would not:
    the noise counts 1 + 3 times that more, found by simulation at gaps of 10 to 200 steps.
    """
    fit, gap = unimodal(values), (steps[-1] - steps[0]) / max(len(steps) - 1, 1)
    return fit, fit.gain / (sigma**2 * (1 + 3 * math.exp(-gap / memory_steps)))


def smoothed(values: Sequence[float]) -> list[float]:
    """Each value averaged with its neighbours, weights 1, 2, 1; at the ends 2, 1."""
    padded = [values[0], *values, values[-1]] if values else []
    middle = [(a + 2 * b + c) / 4 for a, b, c in zip(padded, padded[1:], padded[2:], strict=False)]
    if len(values) > 1:
        middle[0], middle[-1] = (2 * values[0] + values[1]) / 3, (2 * values[-1] + values[-2]) / 3
    return middle


def chance(gain: float) -> float:
    """Probability that a plateau shows `evidence` this large in a run of up to 80 evaluations."""
    return min(1.0, math.exp((_TAIL_START - gain) / _TAIL_SCALE))


def _turns(
    rows: Sequence[Row], keys: Mapping[str, int], least: float, prior: float, config: OnsetConfig
) -> tuple[Turn, ...]:
    """What each of `keys` says, declines first; `prior` is what their noise is before the rows tell.

    The standard errors that rows record are between images. A run is evaluated on the same images every time, so from
    row to row a score scatters much less than that.
    """
    curves = {key: curve(rows, key, config, sign) for key, sign in keys.items()}
    curves = {key: found for key, found in curves.items() if len(found.values) >= config.min_rows}
    turns = []
    for key, found in curves.items():
        sigma = noise(found.steps, found.values, prior)  # not found.error: all rows saw the same images
        turns.append(_turn(key, keys[key], found, sigma, least, len(curves), config))
    return tuple(sorted(turns, key=lambda turn: (turn.state not in ("peaked", "falling"), -turn.confidence)))


def _turn(key: str, sign: int, found: Curve, sigma: float, least: float, curves: int, config: OnsetConfig) -> Turn:
    """What one curve of noise `sigma` says; `curves` is how many are judged beside it."""
    steps, values = found.steps, found.values
    fit, gain = evidence(steps, values, sigma, config.memory_steps)
    top = max(fit.fitted)
    level = [i for i, value in enumerate(fit.fitted) if value == top]
    best = max(level, key=smoothed(values).__getitem__)
    pairs = [(a + b) / 2 for a, b in pairwise(values)]
    peak, now = max(pairs), pairs[-1]
    confidence = max(0.0, 1 - curves * chance(gain))
    fell = len(values) - 1 - level[-1] >= 2 and confidence >= config.confidence
    if fell and peak - max(values[-2:]) >= max(least, found.error):  # both, so that one bad row is no decline
        low = min([*found.before, *values[: level[0]]], default=math.inf)
        rose = config.trained or low <= peak - _CLEAR * sigma
        state: State = "peaked" if rose else "falling"
    else:
        state = "rising" if _rises(steps, values, sigma) else "plateau"
    since = steps[level[-1] + 1] if level[-1] + 1 < len(steps) else None
    return Turn(key, state, steps[best], since, sign * peak, sign * now, peak - now, sigma, confidence)


def _rises(steps: Sequence[int], values: Sequence[float], sigma: float) -> bool:
    """Whether a line through the last third of the rows (at least 4) rises clearly."""
    last = max(4, len(values) // 3)
    x, y = steps[-last:], values[-last:]
    middle = sum(x) / last
    spread = sum((step - middle) ** 2 for step in x)
    slope = sum((step - middle) * value for step, value in zip(x, y, strict=True)) / spread
    return slope >= _CLEAR * sigma / math.sqrt(spread)


def _warns(rows: Sequence[Row], gauges: tuple[Turn, ...], config: OnsetConfig) -> bool:
    turned = [turn for turn in gauges if turn.state == "peaked"]
    if len(turned) < config.agreeing:
        return False
    return not _better_since(rows, gauges, turned[0].peak_step, config, config.smallest_turn)


def _better_since(
    rows: Sequence[Row], turns: tuple[Turn, ...], step: int, config: OnsetConfig, least: float
) -> tuple[str, ...]:
    """Curves among `turns` whose newest two rows are clearly better than the two up to `step`."""
    better = []
    for turn in turns:
        found = curve(rows, turn.key, config, (LABELLED | GAUGES)[turn.key])
        before = [value for at, value in zip(found.steps, found.values, strict=True) if at <= step][-2:]
        rise = sum(found.values[-2:]) / 2 - sum(before) / max(len(before), 1) if before else 0.0
        if rise >= max(least, _CLEAR * turn.error):
            better.append(turn.key)
    return tuple(better)


def _number(value: Any) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    return float(value) if plain else None
