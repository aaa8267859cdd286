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

    The error of a run of early steps depends on the two full steps before it, and adds up within the run. The best
    schedule for a price is therefore found by dynamic programming over full steps, from the last to the first, among
    those with one layer in each run.
    """

    name, smallest, largest = "corrected schedule", 1e-12, 1e6

    def at(self, problem: Problem, knob: float) -> CorrectedScheduleExit:
        costs = knob * _costs_from_layer_0(problem)
        lengths = np.arange(LONGEST_GAP + 1)
        objectives = _run_errors(problem) + lengths[:, None] * costs[:-1]  # (steps, gap_before, length, layers)
        layer_of, objectives = objectives.argmin(3), objectives.min(3)
        steps, gaps_before, _ = objectives.shape
        # Least objective of all that follows a full step, by its gap_before; its last row stands for the end.
        to_come = np.zeros((steps + 1, gaps_before))
        length_of = np.zeros((steps, gaps_before), dtype=int)
        for full in reversed(range(steps)):
            possible = lengths[: steps - full]
            ends = full + 1 + possible  # the next full step
            following = np.where(ends < steps, costs[-1] + to_come[ends, possible + 1], 0)
            options = objectives[full][:, possible] + following  # (gap_before, length)
            length_of[full], to_come[full] = options.argmin(1), options.min(1)
        layers = _uncorrected_start(problem, costs, costs[-1] + to_come[:-1, 0])
        gap_before = 0
        while len(layers) < steps:
            full = len(layers)
            length = int(length_of[full, gap_before])
            layers += [len(costs) - 1, *[int(layer_of[full, gap_before, length])] * length]
            gap_before = length + 1
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
        layers, depth = policy.layers, len(problem.parts.layers)
        full = [step for step, layer in enumerate(layers) if layer == depth]
        first = full[0] if full else len(layers)
        error = sum(_uncorrected_errors(problem)[step, layer] for step, layer in enumerate(layers[:first]))
        gap_before = 0
        for step, following in itertools.pairwise([*full, len(layers)]):
            if following > step + 1 + LONGEST_GAP:
                return math.inf
            if following > step + 1:
                error += problem.run_error(step, gap_before, layers[step + 1 : following])
            gap_before = following - step
        return float(error)


def _run_errors(problem: Problem) -> NDArray[np.floating]:
    """Return errors of runs after one layer, (steps, LONGEST_GAP + 2, LONGEST_GAP + 1, layers), by length on axis 2.

    The other axes are as in `Problem.run_products`.
    """
    cumulative = problem.run_products.cumsum(-1).cumsum(-2)
    by_length = np.einsum("...ii->...i", cumulative)  # (steps, gap_before, layers, LONGEST_GAP)
    return np.pad(by_length, [(0, 0), (0, 0), (0, 0), (1, 0)]).swapaxes(2, 3).clip(min=0)


def _uncorrected_errors(problem: Problem) -> NDArray[np.floating]:
    """Return the error of exits before the first full step, after layers 0..N, (steps, layers + 1); none after 0."""
    errors = problem.influence.numpy()[:, None] * problem.products[:, 0]
    errors[:, 0] = np.inf
    return errors


def _uncorrected_start(problem: Problem, costs: NDArray[np.floating], from_full: NDArray[np.floating]) -> list[int]:
    """Return the layers of the steps before the first full one, for the least objective.

    Args:
        problem: The problem.
        costs: Price of layers 0..N.
        from_full: Least objective from a first full step on, by that step, (steps,).
    """
    objectives = (_uncorrected_errors(problem) + costs)[:, :-1]  # (steps, layers)
    spent = np.concatenate([[0.0], objectives.min(1).cumsum()])
    first = int((spent + np.append(from_full, 0.0)).argmin())
    return [int(layer) for layer in objectives[:first].argmin(1)]


def _costs_from_layer_0(problem: Problem) -> NDArray[np.floating]:
    """Return the cost of exiting after each of the layers 0..N, (layers + 1,)."""
    parts = problem.parts
    return np.concatenate([[parts.unread / parts.full], _schedule_costs(problem)])


def _schedule_costs(problem: Problem) -> NDArray[np.floating]:
    return problem.costs(torch.zeros(len(problem.parts.layers), dtype=torch.bool)).numpy()


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
