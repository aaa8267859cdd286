"""The search for the policy that meets a goal, among all kinds of policies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from adadiff.calibration.bound import last_safe, upper_bound
from adadiff.calibration.goal import Goal
from adadiff.calibration.influence import measured_influence
from adadiff.calibration.kinds import Kind
from adadiff.calibration.problem import Problem
from adadiff.calibration.record import ExitRecord
from adadiff.calibration.refine import refined_in_rounds
from adadiff.calibration.result import Point
from adadiff.calibration.trials import Trials
from adadiff.policies import ExitPolicy
from adadiff.utils.errors import InputError

COMPUTES = (0.3, 0.45, 0.55, 0.7, 0.85)  # fractions of full compute at which the trade-off is measured
CORRECTIONS = 4  # most trials to bring a policy's measured compute to the requested one
TOLERANCE = 0.003  # accepted difference between measured and requested compute
LEVELS = (0.05, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0)  # predicted errors to test, as fractions of the allowed error
SPEED_TRIALS = 6  # bisection steps towards a speedup, each one timed
REPEATED = 8  # images that the full model samples twice, to measure rounding errors


class Search:
    """Searches for policies: optimises them on the first half of a record's samples, and chooses on the second.

    A single kind is optimised on all of them.

    Args:
        trials: Samples with a policy and measures its losses.
        record: The record of full sampling runs from the same noise as `trials`.
        kinds: Kinds of policies to choose among.
        beside: Kinds whose trade-off is measured too, for comparison.
        refine: Whether corrected schedules are fitted to their own images.
    """

    def __init__(
        self,
        trials: Trials,
        record: ExitRecord,
        kinds: Sequence[Kind],
        beside: Sequence[Kind] = (),
        refine: bool = True,
    ) -> None:
        self.trials, self.kinds, self.beside, self.refine = trials, kinds, beside, refine
        samples = len(record.images)
        half = samples // 2
        optimised = half if len(kinds) > 1 else samples  # the second half is for choosing among kinds
        influence = trials.cache.compute_once(
            "influence", lambda: {"steps": measured_influence(trials.sampling, record)}
        )["steps"]
        parts = trials.sampling.parts
        predictions = trials.sampling.predictions(len(influence))
        self.problem = Problem(record.select(torch.arange(optimised)), influence, parts, predictions)
        self.least_compute = {kind.name: kind.least_compute(parts, len(record.errors)) for kind in (*kinds, *beside)}
        self.optimising, self.choosing = range(optimised), range(half, samples)
        trials.cache_full_images(record.images)

    @cached_property
    def trade_off(self) -> list[Point]:
        """Policies of every kind at several fractions of the full compute."""
        return [
            self._at(kind, compute)
            for kind in (*self.kinds, *self.beside)
            for compute in COMPUTES
            if compute > self.least_compute[kind.name]
        ]

    def for_goal(self, goal: Goal, fresh: Sequence[int]) -> Point:
        """Find the policy for a goal.

        Args:
            goal: The goal to meet.
            fresh: Indices of the samples that a bound on the error is tested on.

        Raises:
            InputError: If the goal cannot be met.
        """
        if goal.compute is not None:
            return self.refined(self.for_compute(goal.compute))
        if goal.speedup is not None:
            return self.refined(self.for_speedup(goal.speedup))
        assert goal.error is not None
        return self.for_error(goal.error, 1 - goal.confidence, fresh)

    def for_compute(self, compute: float) -> Point:
        """Return the policy for a compute budget, of the kind with the least expected error at it."""
        return self.meeting(self._best_at(compute), compute)

    def meeting(self, kind: Kind, compute: float) -> Point:
        """Find the policy of this kind with the most compute within the given one, as measured by sampling with it.

        The budget is adjusted by the difference between measured and requested compute until they agree, and lowered
        further until a policy is within it. Policies above it are returned only if the kind has no other.
        """
        found: list[Point] = []
        within: list[Point] = []
        budget = compute
        while len(found) < CORRECTIONS or not within:
            found.append(self._at(kind, budget))
            excess = found[-1].compute - compute
            if excess <= TOLERANCE:
                within.append(found[-1])
            if abs(excess) <= TOLERANCE or (excess > 0 and budget <= self.least_compute[kind.name]):
                break
            budget -= excess
        return min(within or found, key=lambda point: abs(point.compute - compute))

    def for_speedup(self, speedup: float) -> Point:
        """Find the policy that reaches a speedup, of the kind with the least expected error at compute 1 / speedup.

        Raises:
            InputError: If no trial reaches the speedup.
        """
        kind = self._best_at(1 / speedup)
        low, high = self.least_compute[kind.name], 1.0
        reached: dict[float, ExitPolicy] = {}
        for _ in range(SPEED_TRIALS):
            compute = (low + high) / 2
            policy = self._policy(kind, compute)
            measured = self.trials.speedup(policy)
            reached[measured] = policy
            low, high = (low, compute) if measured < speedup else (compute, high)
        most = max(reached)
        if most < speedup:
            raise InputError(
                f"a speedup of {speedup:g} was not reached on this machine, {most:.2f} at most: request a smaller one"
            )
        least = min(measured for measured in reached if measured >= speedup)
        return self._sampled(kind, reached[least])

    def for_error(self, error: float, delta: float, fresh: Sequence[int]) -> Point:
        """Find the policy of the least compute whose mean loss is shown to be below `error`, at level `delta`.

        Raises:
            InputError: If no policy is shown to have such a loss, or rounding errors alone exceed `error`.
        """
        repeat = self.trials.repeat_error(fresh[:REPEATED])
        if error <= repeat:
            raise InputError(
                f"an error below {error} cannot be measured: the full model sampled again in other batches differs by "
                f"{repeat:.2g} from itself, by rounding; request a larger error, or set --dtype float32"
            )
        kind = min(self.kinds, key=lambda kind: self._curve(kind).compute_at(error))
        tried: list[Point] = []

        def candidates() -> Iterator[NDArray[np.floating]]:
            for level in LEVELS:
                policy = self._policy(kind, self._curve(kind).compute_at(level * error))
                tried.append(self.trials.sample(kind.name, policy, fresh))
                yield tried[-1].losses

        position = last_safe(candidates(), error, delta)
        if position is None:
            shown = upper_bound(tried[0].losses, delta)
            raise InputError(
                f"no policy is shown to keep the error below {error}: the most cautious one tried has an error below "
                f"{shown:.3g} at {tried[0].compute:.0%} of the compute; request that error, or set more --samples"
            )
        return self._sampled(kind, tried[position].policy)

    def refined(self, point: Point) -> Point:
        """Fit the extrapolation of a corrected schedule to its own images, if this search does."""
        if not self.refine:
            return point
        depth = self.trials.sampling.context().depth
        return refined_in_rounds(self.trials, point, depth, self.optimising, self.choosing)

    def _best_at(self, compute: float) -> Kind:
        """Return the kind with the least expected error at this compute, of those that can spend so little."""
        able = [kind for kind in self.kinds if self.least_compute[kind.name] <= compute]
        return min(able or self.kinds, key=lambda kind: self._curve(kind).error_at(compute))

    def _at(self, kind: Kind, compute: float) -> Point:
        return self._sampled(kind, self._policy(kind, compute))

    def _policy(self, kind: Kind, compute: float) -> ExitPolicy:
        """Return the kind's policy for this compute: of several candidates the one that errs least in sampling."""
        candidates = [*map(self.trials.sampling.on_model, kind.candidates(self.problem, compute))]
        if len(candidates) == 1:
            return candidates[0]
        return min(candidates, key=lambda policy: self._sampled(kind, policy).error)

    def _sampled(self, kind: Kind, policy: ExitPolicy) -> Point:
        return self.trials.sample(kind.name, policy, self.choosing)

    def _curve(self, kind: Kind) -> Curve:
        return Curve([point for point in self.trade_off if point.kind == kind.name])


class Curve:
    """Error as a function of compute for one kind of policy, log-linear between measured points.

    Args:
        points: At least one measured point; the curve ends at the full model, with compute 1 and no error.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        ordered = sorted(points, key=lambda point: point.compute)
        self.computes = np.array([point.compute for point in ordered])
        # The lower envelope: an error reached at some compute is also reachable with more.
        self.logs = np.minimum.accumulate([math.log(max(point.error, 1e-12)) for point in ordered])

    def error_at(self, compute: float) -> float:
        """Return the expected error at a compute; beyond the last point it is that of the last point."""
        return math.exp(np.interp(compute, self.computes, self.logs))

    def compute_at(self, error: float) -> float:
        """Return the least compute with this expected error."""
        logs, computes = np.append(self.logs, self.logs[-1] - 5), np.append(self.computes, 0.999)
        return float(np.interp(-math.log(error), -logs, computes))
