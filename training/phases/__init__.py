"""Phases of training. The loop in `training/trainer.py` knows `Phase` and no phase by name."""

from training.phases.phase import Objective, Phase, StepLosses

__all__ = ["Objective", "Phase", "StepLosses"]
