"""Schedules: a number for every step, from a handful of plain numbers that JSON can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

Shape = Literal["constant", "cosine", "linear"]
Convention = Literal["v1", "v2"]
LrScaling = Literal["none", "linear_wrt_256", "sqrt_wrt_1024", "sqrt_wrt_1024_dinov2"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up from `start` to `peak`, then `shape` from `peak` to `end`, then `end` for ever.

    The two official conventions place their endpoints differently (W warm-up steps, n steps of the shape, step i):

    - "v1" (DINO, DINOv2, DINOv3 `optim.*`): warm-up start + (peak - start) * i / (W - 1), both ends reached;
      then t = i / n for i = 0 … n - 1, so `end` is first reached one step after the shape.
    - "v2" (DINOv3 `schedules.*`): warm-up start + (peak - start) * i / W, the peak not reached within it;
      then t = i / (n - 1), so `end` is reached on the last step of the shape.

    with cosine end + (peak - end) * (1 + cos(pi t)) / 2 and linear peak + (end - peak) * t.
    Numbers of steps may be fractions of the run (a float below 1) until `resolve` turns them into integers.
    """

    peak: float
    start: float = 0.0
    """Value of the first warm-up step; unused without warm-up."""
    end: float | None = None
    """Last value; None means `peak`."""
    warmup_steps: int | float = 0
    shape: Shape = "constant"
    shape_steps: int | float | None = None
    """n; None takes all steps after the warm-up. DINOv3's Gram weight: warm-up 1,000,000 at 0, then cosine in 1,000."""
    total_steps: int | None = None
    """Steps of the run; set by `resolve`."""
    freeze_steps: int | float = 0
    """The value is 0 for so many first steps, without moving the rest (the frozen last layer of the heads)."""
    convention: Convention = "v1"

    def __post_init__(self) -> None:
        for name, allowed in (("shape", get_args(Shape)), ("convention", get_args(Convention))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Schedule.{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")
        for name in ("warmup_steps", "shape_steps", "freeze_steps"):
            _check_steps(name, getattr(self, name))
        if self.shape == "constant" and self.end not in (None, self.peak):
            raise ValueError(
                f"Schedule has shape 'constant' but end {self.end} differs from peak {self.peak}; "
                "drop end, or choose shape 'cosine' or 'linear'."
            )

    def resolve(self, total_steps: int) -> Schedule:
        """The same schedule for a run of `total_steps` steps: fractions become whole steps, rounded.

        Raises ValueError when the warm-up is longer than the run.
        """
        warmup = to_steps(self.warmup_steps, total_steps)
        if warmup > total_steps:
            raise ValueError(
                f"Schedule warms up for {warmup} steps in a run of {total_steps}; shorten warmup_steps "
                "(a float below 1 is a fraction of the run) or lengthen the run."
            )
        return replace(
            self,
            warmup_steps=warmup,
            shape_steps=None if self.shape_steps is None else to_steps(self.shape_steps, total_steps),
            freeze_steps=to_steps(self.freeze_steps, total_steps),
            total_steps=total_steps,
        )

    def scaled(self, factor: float) -> Schedule:
        """Times `factor`, as the learning-rate rules do it: peak only in "v1", peak and end in "v2", never start."""
        end = self.end if self.end is None or self.convention == "v1" else self.end * factor
        if self.shape == "constant":
            end = None
        return replace(self, peak=self.peak * factor, end=end)

    def extremes(self) -> tuple[float, ...]:
        """The levels between which all values lie: peak, `start` if it warms up, `end`, 0 if it is frozen at first."""
        levels = [self.peak]
        levels += [self.start] if self.warmup_steps else []
        levels += [] if self.end is None else [self.end]
        return tuple(levels + ([0.0] if self.freeze_steps else []))

    def __call__(self, step: int) -> float:
        """Value at `step` (0 is the first optimizer step). Raises ValueError for a schedule that needs `resolve`."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0.")
        warmup, n, freeze = self._whole_steps()
        if step < freeze:
            return 0.0
        if step < warmup:
            last = warmup - 1 if self.convention == "v1" else warmup
            return _mix(self.start, self.peak, step / max(1, last))
        end = self.peak if self.end is None else self.end
        if self.shape == "constant":
            return self.peak
        i = step - warmup
        if i >= n:
            return end
        t = i / n if self.convention == "v1" else i / max(1, n - 1)
        if self.shape == "linear":
            return _mix(self.peak, end, t)
        return _mix(end, self.peak, (1 + math.cos(math.pi * t)) / 2)

    def _whole_steps(self) -> tuple[int, int, int]:
        """(warm-up, shape, frozen) steps as integers."""
        n = self.shape_steps
        if n is None and self.shape != "constant" and self.total_steps is not None:
            n = self.total_steps - self.warmup_steps
        counts = (self.warmup_steps, 0 if self.shape == "constant" else n, self.freeze_steps)
        if any(c is None or is_fraction(c) for c in counts):
            raise ValueError(
                f"{self} does not know the length of the run; call resolve(total_steps) on it once before using it."
            )
        return int(counts[0]), int(counts[1] or 0), int(counts[2])


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return Schedule(peak=value)


def scaled_learning_rate(lr: float, batch_size: int, rule: LrScaling) -> float:
    """Learning rate for a global batch of `batch_size` images over all processes.

    "linear_wrt_256": lr * B / 256 (DINO). "sqrt_wrt_1024": lr * 4 * sqrt(B / 1024) (DINOv3; the 4 means that recipes
    state a quarter of the rate at 1024). "sqrt_wrt_1024_dinov2": lr * sqrt(B / 1024). "none": lr.

    Raises ValueError for another rule or a batch below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch size is {batch_size}; it must be at least 1 image.")
    factors = {
        "none": 1.0,
        "linear_wrt_256": batch_size / 256,
        "sqrt_wrt_1024": 4 * math.sqrt(batch_size / 1024),
        "sqrt_wrt_1024_dinov2": math.sqrt(batch_size / 1024),
    }
    if rule not in factors:
        raise ValueError(f"learning-rate scaling rule is {rule!r}; choose one of {', '.join(factors)}.")
    return lr * factors[rule]


def is_fraction(steps: int | float) -> bool:
    """Whether a number of steps is still a fraction of the run: a float strictly between 0 and 1."""
    return isinstance(steps, float) and 0 < steps < 1


def to_steps(steps: int | float, total_steps: int) -> int:
    """Whole steps: a fraction times `total_steps`, rounded; other numbers as they are."""
    return round(steps * total_steps) if is_fraction(steps) else int(steps)


def _mix(a: float, b: float, share: float) -> float:
    """From a (share 0) to b (share 1), exact at both ends."""
    return a * (1 - share) + b * share


def _check_steps(name: str, steps: int | float | None) -> None:
    if steps is None:
        return
    if steps < 0 or (steps > 1 and steps != int(steps)):
        raise ValueError(
            f"Schedule.{name} is {steps}; give a whole number of steps, or a fraction of the run between 0 and 1."
        )
