"""Kinds of policies: each kind finds its best policy for a price of compute, or for a compute budget.

For a price, a kind minimises error + price * cost, averaged over samples.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from adadiff.calibration.problem import Problem
from adadiff.calibration.record import LONGEST_GAP
from adadiff.policies import CorrectedScheduleExit, ExitPolicy, ScheduleExit, TableExit, ThresholdExit

HALVINGS = 30  # bisection steps on the logarithm of the price


class Kind(ABC):
    """A family of policies with one parameter, the knob; a larger knob means less compute.

    Attributes:
        name: Name of the kind, as tables and plots show it.
        largest: The largest knob that the search tries.
        smallest: The smallest knob that the search tries, above 0.
    """

    name: str
    largest: float
    smallest: float

    @abstractmethod
    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        """Return the policy of this kind for a value of the knob."""

    def meeting(self, problem: Problem, compute: float) -> ExitPolicy:
        """Find, by bisection of the knob, the policy whose cost is closest to this fraction of the full FLOPs."""
        return min(self._bisected(problem, compute), key=lambda pair: abs(pair[0] - compute))[1]

    def _bisected(self, problem: Problem, compute: float) -> list[tuple[float, ExitPolicy]]:
        """Bisect the knob towards a fraction of the full model's FLOPs; return all (cost, policy) pairs tried."""
        low, high = math.log(self.smallest), math.log(self.largest)
        tried = []
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            policy = self.at(problem, math.exp(middle))
            tried.append((problem.outcome(policy)[1], policy))
            low, high = (middle, high) if tried[-1][0] > compute else (low, middle)
        return tried


class SingleThreshold(Kind):
    """One threshold for all layers and steps, as in the paper; the knob is the threshold."""

    name, smallest, largest = "single threshold", 1e-4, 1.0

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        return ThresholdExit(knob)


class StepThresholds(Kind):
    """One threshold per step: the quantile of that step's uncertainties that minimises the objective."""

    name, smallest, largest = "thresholds per step", 1e-12, 1e6

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        thresholds, errors, costs = problem.step_candidates
        best = (errors + knob * costs).argmin(1, keepdim=True)
        return ThresholdExit(tuple(thresholds.gather(1, best).squeeze(1).tolist()))


class Schedule(Kind):
    """One exit layer per step, equal for all samples, so that no estimator runs while sampling."""

    name, smallest, largest = "step schedule", 1e-12, 1e6

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        objective = problem.errors.mean(2) + knob * torch.from_numpy(_schedule_costs(problem))
        return ScheduleExit(tuple((objective.argmin(1) + 1).tolist()))


class CorrectedSchedule(Kind):
    """One exit layer per step, with early exits corrected by what later layers added at earlier full steps.

    Layer 0 is among the choices: the network does not run, and the full predictions are extrapolated.

    The error of an exit depends on which two earlier steps were full. The best schedule for a price is therefore found
    by dynamic programming over these two steps, from the last step to the first.
    """

    name, smallest, largest = "corrected schedule", 1e-12, 1e6

    def at(self, problem: Problem, knob: float) -> CorrectedScheduleExit:
        objective = problem.corrected_errors + knob * _costs_from_layer_0(problem)
        steps, _, _, choices_of_layer = objective.shape
        depth = choices_of_layer - 1
        # Least objective of the remaining steps, by gap and gap_before (see `Problem.corrected_errors`). The last gap,
        # LONGEST_GAP + 1, is too old for corrections: only a full step may follow.
        to_come = np.zeros((LONGEST_GAP + 2, LONGEST_GAP + 2))
        choices = []
        for step in reversed(range(steps)):
            options = np.full((*to_come.shape, depth + 1), np.inf)
            options[0, :, :-1] = objective[step, 0, :, :-1] + to_come[0, :, None]
            options[1:-1, :, :-1] = objective[step, 1:, :, :-1] + to_come[2:, :, None]
            options[:, :, -1] = objective[step, 0, 0, -1] + to_come[1, :, None]  # full: gap becomes gap_before
            choices.append(options.argmin(2))
            to_come = options.min(2)
        layers, gaps = [], (0, 0)
        for choice in reversed(choices):
            layers.append(int(choice[gaps]))
            gaps = _gaps_after(gaps, full=layers[-1] == depth)
        return CorrectedScheduleExit(tuple(layers))

    def meeting(self, problem: Problem, compute: float) -> CorrectedScheduleExit:
        """Find the best policy within the budget, then spend the rest on deeper exits at single steps.

        Each round deepens the step that lowers the error most per additional FLOP.
        """
        within = [pair for pair in self._bisected(problem, compute) if pair[0] <= compute]
        policy = max(within, key=lambda pair: pair[0])[1] if within else self.at(problem, self.largest)
        assert isinstance(policy, CorrectedScheduleExit)
        costs = _costs_from_layer_0(problem)
        while True:
            error, layers = self.error(problem, policy), policy.layers
            remaining = compute * len(layers) - sum(costs[layer] for layer in layers)
            values = {}
            for step, layer in itertools.product(range(len(layers)), range(len(costs))):
                more = costs[layer] - costs[layers[step]]
                if 0 < more <= remaining:
                    deeper = CorrectedScheduleExit((*layers[:step], layer, *layers[step + 1 :]))
                    values[deeper] = (error - self.error(problem, deeper)) / more
            best = max(values, key=values.__getitem__, default=policy)
            if values.get(best, 0) <= 0:
                return policy
            policy = best

    def error(self, problem: Problem, policy: CorrectedScheduleExit) -> float:
        """Return the expected error; infinity if an exit is more than `LONGEST_GAP` steps after a full step."""
        layers, steps = np.array(policy.layers), np.arange(len(policy.layers))
        is_full = layers == len(problem.parts.layers)
        full = np.concatenate([[-1, -1], np.flatnonzero(is_full)])  # with two sentinel entries
        passed = np.cumsum(is_full) - is_full
        last, before = full[passed + 1], full[passed]
        gaps, gaps_before = np.where(last >= 0, steps - last, 0), np.where(before >= 0, last - before, 0)
        if (gaps[~is_full] > LONGEST_GAP).any():
            return math.inf
        early = (steps, gaps, gaps_before, layers)
        return float(problem.corrected_errors[tuple(index[~is_full] for index in early)].sum())


def _costs_from_layer_0(problem: Problem) -> NDArray[np.floating]:
    """Return the cost of exiting after each of the layers 0..N, (layers + 1,)."""
    parts = problem.parts
    return np.concatenate([[parts.unread / parts.full], _schedule_costs(problem)])


def _schedule_costs(problem: Problem) -> NDArray[np.floating]:
    return problem.costs(torch.zeros(len(problem.parts.layers), dtype=torch.bool)).numpy()


def _gaps_after(gaps: tuple[int, int], full: bool) -> tuple[int, int]:
    """Return (gap, gap_before) at the next step; 0 stands for no full step (see `Problem.corrected_errors`)."""
    gap, gap_before = gaps
    if full:
        return 1, gap
    return (gap + 1 if gap else 0), gap_before


class ExcessError(Kind):
    """One threshold per step and layer: a sample exits when running more layers is not worth their price.

    At each step, E_i(u) is the expected error of a sample whose uncertainty after layer i is u (increasing in u, by
    isotonic regression). Running on to layer j is expected to reduce it to E_i(u) * mean E_j / mean E_i, and costs
    c_j - c_i more. So the sample exits if E_i(u) (1 - mean E_j / mean E_i) <= price (c_j - c_i) for every j > i, which
    is a threshold on u.
    """

    name, smallest, largest = "excess error", 1e-12, 1e6

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        steps, layers, _ = problem.errors.shape
        costs = problem.costs(torch.zeros(layers, dtype=torch.bool))
        means = problem.errors.mean(2)
        table = []
        for step in range(steps):
            row = []
            for i in range(layers - 1):
                gained = means[step, i] - means[step, i + 1 :]  # drop of the mean error at each later layer
                max_error = knob * (costs[i + 1 :] - costs[i]) * means[step, i] / gained.clamp(min=1e-300)
                row.append(problem.threshold(step, i, max_error.min().item()))
            table.append(tuple(row))
        return TableExit(tuple(table))


KINDS: tuple[Kind, ...] = (SingleThreshold(), StepThresholds(), Schedule(), CorrectedSchedule(), ExcessError())
