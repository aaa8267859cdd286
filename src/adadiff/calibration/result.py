"""The result of a calibration: the chosen policy with its measured error, compute and speedup."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adadiff.calibration.goal import Goal
from adadiff.policies import ExitPolicy
from adadiff.policies.stored import CalibrationContext, StoredPolicy
from adadiff.utils.text import with_error


@dataclass(frozen=True)
class Point:
    """A policy with the compute and the losses measured by sampling with it.

    Args:
        kind: Name of its kind of policy.
        policy: The exit policy.
        compute: FLOPs over the full model's.
        losses: Loss of each sample, (samples,) in [0, 1].
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
        """The standard error of the mean loss."""
        return float(self.losses.std(ddof=1) / math.sqrt(len(self.losses)))

    @property
    def error_in_words(self) -> str:
        """The mean loss with its standard error; where every loss is at the limit of 1, that it is at least 1."""
        return "≥ 1" if (self.losses == 1).all() else with_error(self.error, self.standard_error)


@dataclass(frozen=True)
class Calibration:
    """A policy that meets a goal, with the measurements it was chosen by and those on fresh samples.

    Args:
        goal: The goal of the calibration.
        trade_off: Policies of every kind, measured on the samples used for choosing.
        predicted: The chosen policy on the samples used for choosing.
        checked: The chosen policy on fresh samples.
        error_bound: Upper bound on the true mean loss, with the goal's confidence: the requested error if the goal is
            one, else the bound that the fresh samples give, which had no part in the choice.
        speedup: Speedup on a batch of `TIMED_IMAGES` images, timed alternately with the full model.
        calibrated_for: The model and sampling settings that the policy fits.
        metric: Description of the loss, or the name of the metric function.
        fewer_steps: All layers with fewer steps on the fresh samples, if measured: the numbers of steps that cost just
            less and just more than the policy.
        beside: The best policy of each kind that was not to be chosen, on the fresh samples, for comparison.

    Examples:
        >>> import numpy as np
        >>> from adadiff.policies import ScheduleExit
        >>> point = Point("step schedule", ScheduleExit((9, 4)), compute=0.7, losses=np.array([0.01, 0.03]))
        >>> settings = CalibrationContext(weights=None, depth=9, scheduler="ddim", steps=2, guidance_scale=1.0)
        >>> found = Calibration(Goal(compute=0.7), (point,), point, point, 0.1, 1.4, settings, "squared error")
        >>> found.policy.layers, found.checked.error  # `adadiff.calibrate` returns one; `found.save(folder)` stores it
        ((9, 4), 0.02)
    """

    goal: Goal
    trade_off: tuple[Point, ...]
    predicted: Point
    checked: Point
    error_bound: float
    speedup: float
    calibrated_for: CalibrationContext
    metric: str
    fewer_steps: tuple[Point, ...] = ()
    beside: tuple[Point, ...] = ()

    @property
    def policy(self) -> ExitPolicy:
        """The chosen exit policy."""
        return self.predicted.policy

    @property
    def beats_fewer_steps(self) -> bool | None:
        """Whether the policy errs less than fewer steps at its compute, by 2 standard errors; None if not measured.

        Between two numbers of steps, losses are interpolated: so much a mix of both costs and errs.
        """
        if not self.fewer_steps:
            return None
        policy = self.checked
        computes = [*(point.compute for point in self.fewer_steps), 1.0]
        losses = np.array([*(point.losses for point in self.fewer_steps), np.zeros_like(policy.losses)])
        by_sample = [np.interp(policy.compute, computes, each) for each in losses.T]
        saved = Point("", policy.policy, policy.compute, by_sample - policy.losses)
        return saved.error > 2 * saved.standard_error

    @property
    def stored(self) -> StoredPolicy:
        """The policy and its measurements in the form that model folders store."""
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
        if self.beside:
            found["beside"] = [{"kind": p.kind, "compute": p.compute, "error": p.error} for p in self.beside]
        return self.calibrated_for.stored(self.policy, self.goal.asked, found)

    def save(self, folder: str | Path) -> Path:
        """Write the policy and its measurements into a folder, made if there is none; return the path of the file."""
        return self.stored.save(folder)
