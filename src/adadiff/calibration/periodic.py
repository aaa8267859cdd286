"""Periodic corrected schedules, whose samples meet at full steps in a service: the best one for a compute budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adadiff.calibration.kinds import LIKENESSES, MOST_STEPS, Kind, step_costs
from adadiff.calibration.problem import Problem
from adadiff.calibration.record import LONGEST_GAP
from adadiff.calibration.total_error import TotalError
from adadiff.policies import CorrectedScheduleExit
from adadiff.runtime import PartFlops

STARTS = range(1, 7)  # full steps at the beginning: three measure a value, a slope and a curvature
IMPROVED = 12  # schedules, each the best of its period and start, whose patterns are improved
SAMPLED = 2  # schedules, for each assumption on how errors add up, that are worth sampling with

Layers = tuple[int, ...]


@dataclass(frozen=True)
class Period:
    """Full steps at the beginning, then a pattern of early exits and a full step in turn.

    Args:
        start: Full steps at the beginning, and where guidance begins, at least 1.
        pattern: Exit layers in 0..N-1 of the steps between two full ones.
    """

    start: int
    pattern: Layers

    def layers(self, steps: int, depth: int, guidance_begins: int) -> Layers:
        """Return the exit layer of every step, in 0..N.

        Args:
            steps: Number of steps, in evaluations of the model.
            depth: Number of layers N.
            guidance_begins: The step above 0 at which guidance begins, or 0: there the schedule begins again.

        Examples:
            >>> Period(start=2, pattern=(1, 0)).layers(steps=9, depth=5, guidance_begins=0)
            (5, 5, 1, 0, 5, 1, 0, 5, 1)
            >>> Period(start=1, pattern=(1, 0)).layers(steps=9, depth=5, guidance_begins=4)
            (5, 1, 0, 5, 5, 1, 0, 5, 1)
        """
        opening, period = (depth,) * self.start, (*self.pattern, depth)

        def run(length: int) -> Layers:
            return tuple(itertools.islice(itertools.chain(opening, itertools.cycle(period)), length))

        return run(guidance_begins) + run(steps - guidance_begins)


class PeriodicSchedule(Kind):
    """Corrected schedules that are full at every k-th step, with the same exits in between.

    In a service, samples of such a schedule meet at their full steps and stay together, whenever they have begun;
    those of an irregular one do not. For each period and number of full steps at the beginning, the best pattern of
    one layer is found; the patterns of the best of these are changed, a layer at a time, as long as the error of the
    whole sampling falls (`calibration/total_error.py`). A budget that no period meets is overspent by the least.
    """

    name, most_steps = "periodic schedule", MOST_STEPS

    def least_compute(self, parts: PartFlops, steps: int) -> float:
        """Return the least FLOPs of a schedule over the full model's: all layers at the fewest steps, none between."""
        full = math.ceil(steps / (LONGEST_GAP + 1))
        return (full + (steps - full) * parts.unread / parts.full) / steps

    def candidates(self, problem: Problem, compute: float) -> Iterator[CorrectedScheduleExit]:
        found: dict[Layers, CorrectedScheduleExit] = {}
        for likeness in LIKENESSES:
            search = _Search(problem, likeness, compute * len(problem.influence))
            for layers in search.best():
                found.setdefault(layers, CorrectedScheduleExit(layers, search.total.fitted(layers, likeness)[1]))
        yield from found.values()


class _Search:
    """The search for the periods of least expected error within a budget.

    Args:
        problem: What was recorded.
        likeness: How much of the product of two neighbouring steps' errors counts, in [0, 1].
        budget: Most that the steps may cost in all.
    """

    def __init__(self, problem: Problem, likeness: float, budget: float) -> None:
        self.total: TotalError = problem.total_error
        self.likeness, self.budget = likeness, budget
        self.costs: NDArray[np.floating] = step_costs(problem)
        self._errors: dict[Layers, float] = {}

    def best(self) -> list[Layers]:
        """Return the schedules of the best periods, the best first."""
        kept = [[self._constant(start, length) for length in range(1, LONGEST_GAP + 1)] for start in STARTS]
        within = [period for period in itertools.chain(*kept) if period is not None]
        if not within:
            return [self._layers(Period(1, (0,) * LONGEST_GAP))]
        within.sort(key=self._error)
        improved = sorted(map(self._improved, within[:IMPROVED]), key=self._error)
        return list(dict.fromkeys(map(self._layers, improved)))[:SAMPLED]

    def _constant(self, start: int, length: int) -> Period | None:
        """Return the best pattern of so many steps that is of one layer; None if none is within the budget."""
        patterns = (Period(start, (layer,) * length) for layer in range(self.total.depth))
        return min(filter(self._affordable, patterns), key=self._error, default=None)

    def _improved(self, period: Period) -> Period:
        """Change one layer of the pattern, or two, as long as the expected error falls."""
        while True:
            best = min(filter(self._affordable, self._changes(period)), key=self._error, default=period)
            if self._error(best) >= self._error(period):
                return period
            period = best

    def _changes(self, period: Period) -> Iterator[Period]:
        """Yield patterns with another layer at one of their steps, or with a layer moved from one step to another."""
        pattern, depth = period.pattern, self.total.depth
        for place, layer in itertools.product(range(len(pattern)), range(depth)):
            yield _with(period, {place: layer})
        for here, there in itertools.permutations(range(len(pattern)), 2):
            if pattern[here] < depth - 1 and pattern[there] > 0:
                yield _with(period, {here: pattern[here] + 1, there: pattern[there] - 1})

    def _layers(self, period: Period) -> Layers:
        return period.layers(len(self.costs), self.total.depth, self.total.guidance_begins)

    def _affordable(self, period: Period) -> bool:
        return self._cost(period) <= self.budget

    def _cost(self, period: Period) -> float:
        return float(self.costs[np.arange(len(self.costs)), self._layers(period)].sum())

    def _error(self, period: Period) -> tuple[float, float]:
        """Return the expected error; of equal ones, as where all are 0, more compute is better."""
        layers = self._layers(period)
        if layers not in self._errors:
            self._errors[layers] = self.total.fitted(layers, self.likeness)[0]
        return self._errors[layers], -self._cost(period)


def _with(period: Period, changes: Mapping[int, int]) -> Period:
    pattern = tuple(changes.get(place, layer) for place, layer in enumerate(period.pattern))
    return replace(period, pattern=pattern)
