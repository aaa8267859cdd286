"""What a calibration found: the policy, and what was measured of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adadiff.calibration.goal import Goal
from adadiff.exits import ExitPolicy
from adadiff.policies.stored import Circumstances, StoredPolicy


@dataclass(frozen=True)
class Point:
    """A policy, and what sampling with it came to.

    Args:
        kind: Name of its kind.
        policy: When samples leave.
        compute: FLOPs over the full model's.
        losses: Of each sample, (samples,) in [0, 1].
    """

    kind: str
    policy: ExitPolicy
    compute: float
    losses: NDArray[np.floating]

    @property
    def error(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean loss."""
        return float(self.losses.std(ddof=1) / math.sqrt(len(self.losses)))


@dataclass(frozen=True)
class Calibration:
    """A policy for a goal, and what is known of it.

    Args:
        goal: What was asked.
        trade_off: Policies of every kind, on the samples that the choice was made by.
        predicted: The chosen one on these samples.
        checked: The same on fresh samples.
        error_bound: Above its true mean loss, with the goal's confidence: the error that was asked for, or, the fresh
            samples having had no part in the choice, what they show.
        speedup: Of a batch of `TIMED_IMAGES`, measured in turns with the full model.
        calibrated_for: What it belongs to.
        metric: What losses are, in words, or the name of the function that gave them.
    """

    goal: Goal
    trade_off: tuple[Point, ...]
    predicted: Point
    checked: Point
    error_bound: float
    speedup: float
    calibrated_for: Circumstances
    metric: str

    @property
    def policy(self) -> ExitPolicy:
        """When samples leave."""
        return self.predicted.policy

    @property
    def stored(self) -> StoredPolicy:
        """As it is kept in a model folder."""
        found = {
            "kind": self.predicted.kind,
            "compute": self.checked.compute,
            "error": self.checked.error,
            "error_bound": self.error_bound,
            "confidence": self.goal.confidence,
            "speedup": self.speedup,
            "samples": len(self.checked.losses),
            "metric": self.metric,
        }
        return StoredPolicy(self.policy, self.calibrated_for, self.goal.asked, found)

    def save(self, folder: Path) -> Path:
        """Write the policy into a model folder."""
        return self.stored.save(folder)
