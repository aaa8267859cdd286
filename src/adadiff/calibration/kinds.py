"""Kinds of policies: each kind finds its best policy for a compute budget."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from adadiff.calibration.improve import improved
from adadiff.calibration.problem import Problem
from adadiff.calibration.record import LONGEST_GAP
from adadiff.policies import CorrectedScheduleExit, ExitPolicy, ScheduleExit, TableExit, ThresholdExit
from adadiff.runtime import PartFlops

LIKENESSES = (0.9, 0.5)  # of neighbouring steps' errors: small ones stay alike for longer than large ones
MOST_STEPS = 250  # beyond it, all pairs of differences are too many to hold
HALVINGS = 30  # bisection steps on the logarithm of the price


class Kind(ABC):
    """A family of policies.

    Attributes:
        name: Name of the kind, as tables and plots show it.
        most_steps: Most steps that it is searched for.
    """

    name: str
    most_steps: float = math.inf

    def least_compute(self, parts: PartFlops, steps: int) -> float:
        """Return the least FLOPs of a policy of this kind over the full model's: an exit after layer 1 at every step.

        Args:
            parts: FLOPs of the model's parts.
            steps: Number of steps, in evaluations of the model.
        """
        return float(_costs_after_layers(parts)[0])

    @abstractmethod
    def candidates(self, problem: Problem, compute: float) -> Iterator[ExitPolicy]:
        """Yield the policies for this fraction of the full FLOPs that are worth sampling with, the likeliest first."""


class PricedKind(Kind):
    """A family of policies with one parameter, the knob; a larger knob means less compute.

    Where the knob is a price of compute, the kind minimises error + price * cost, averaged over samples.

    Attributes:
        largest: The largest knob that the search tries.
        smallest: The smallest knob that the search tries, above 0.
    """

    largest: float
    smallest: float

    @abstractmethod
    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        """Return the policy of this kind for a value of the knob."""

    def meeting(self, problem: Problem, compute: float) -> ExitPolicy:
        """Find, by bisection of the knob, the policy whose cost is closest to this fraction of the full FLOPs."""
        return min(self._bisected(problem, compute), key=lambda pair: abs(pair[0] - compute))[1]

    def candidates(self, problem: Problem, compute: float) -> Iterator[ExitPolicy]:
        yield self.meeting(problem, compute)

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


class SingleThreshold(PricedKind):
    """One threshold for all layers and steps, as in the paper; the knob is the threshold."""

    name, smallest, largest = "single threshold", 1e-4, 1.0

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        return ThresholdExit(knob)


class StepThresholds(PricedKind):
    """One threshold per step: the quantile of that step's uncertainties that minimises the objective."""

    name, smallest, largest = "thresholds per step", 1e-12, 1e6

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        thresholds, errors, costs = problem.step_candidates
        best = (errors + knob * torch.from_numpy(problem.weights)[:, None] * costs).argmin(1, keepdim=True)
        return ThresholdExit(tuple(thresholds.gather(1, best).squeeze(1).tolist()))


class Schedule(PricedKind):
    """One exit layer per step, equal for all samples, so that no estimator runs while sampling."""

    name, smallest, largest = "step schedule", 1e-12, 1e6

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        costs = np.outer(problem.weights, _costs_after_layers(problem.parts))  # (steps, layers)
        objective = problem.errors.mean(2) + knob * torch.from_numpy(costs)
        return ScheduleExit(tuple((objective.argmin(1) + 1).tolist()))


class CorrectedSchedule(PricedKind):
    """One exit layer per step, with early exits corrected by what later layers added at earlier full steps.

    Layer 0 is among the choices: the network does not run, and the full predictions are extrapolated.

    The best schedule for a price is found in two stages. Dynamic programming over full steps, from the last to the
    first, takes the errors of a run of early steps to add up, and those of different runs to be unrelated; corrections
    go along lines, and there is one layer in each run. Within a budget, `improved` then changes single steps as long as
    the error of the whole sampling falls, with an extrapolation fitted to it (`calibration/total_error.py`).
    """

    name, smallest, largest = "corrected schedule", 1e-12, 1e6

    def least_compute(self, parts: PartFlops, steps: int) -> float:
        """Return the least FLOPs of a schedule over the full model's: all layers at one step, none at the others.

        In a few steps, exits after layer 1 that nothing corrects may take less.
        """
        once = (1 + (steps - 1) * parts.unread / parts.full) / steps
        return min(once, super().least_compute(parts, steps)) if steps <= LONGEST_GAP else once

    def at(self, problem: Problem, knob: float) -> CorrectedScheduleExit:
        costs, weights = knob * _costs_from_layer_0(problem), problem.weights
        lengths, begins = np.arange(LONGEST_GAP + 1), problem.guidance_begins
        errors = _errors_by_length(problem.run_products)
        # (steps, gap_before, length, layers)
        objectives = errors + _run_weights(weights)[:, None, :, None] * costs[:-1]
        layer_of, objectives = objectives.argmin(3), objectives.min(3)
        steps, gaps_before, _ = objectives.shape
        # Least objective of all that follows a full step, by its gap_before; its last row stands for the end.
        to_come = np.zeros((steps + 1, gaps_before))
        length_of = np.zeros((steps, gaps_before), dtype=int)
        for full in reversed(range(steps)):
            # No run goes on where guidance begins, since the unconditional predictions have no corrections there.
            possible = lengths[: (begins if full < begins else steps) - full]
            ends = full + 1 + possible  # the next full step
            cost_of_full = costs[-1] * np.append(weights, 0)
            following = np.where(ends < steps, cost_of_full[ends] + to_come[ends, possible + 1], 0)
            options = objectives[full][:, possible] + following  # (gap_before, length)
            length_of[full], to_come[full] = options.argmin(1), options.min(1)
        layers = _uncorrected_start(problem, costs, costs[-1] * weights + to_come[:-1, 0])
        gap_before = 0
        while len(layers) < steps:
            full = len(layers)
            length = int(length_of[full, gap_before])
            layers += [len(costs) - 1, *[int(layer_of[full, gap_before, length])] * length]
            gap_before = length + 1
        return CorrectedScheduleExit(tuple(layers))

    def meeting(self, problem: Problem, compute: float) -> CorrectedScheduleExit:
        """Return the first of the candidates."""
        return next(self.candidates(problem, compute))

    def candidates(self, problem: Problem, compute: float) -> Iterator[CorrectedScheduleExit]:
        """Yield the best policy within the budget, for each assumption on how errors add up.

        A budget below that of full steps `LONGEST_GAP` apart is spent on fewer of them, at equal distances, and the
        network does not run in between.
        """
        within = [pair for pair in self._bisected(problem, compute) if pair[0] <= compute]
        if not within:
            yield self._sparse(problem, compute)
            return
        found = max(within, key=lambda pair: pair[0])[1]
        assert isinstance(found, CorrectedScheduleExit)
        if len(found.layers) > MOST_STEPS:
            yield found
            return
        costs, budget = step_costs(problem), compute * len(found.layers)
        total, spaced = problem.total_error, self._sparse(problem, compute).layers
        fits = costs[range(len(spaced)), spaced].sum() <= budget + 1e-9  # not where one full step is too much
        starts = [found.layers, spaced] if fits and total.is_possible(spaced) else [found.layers]
        for likeness in LIKENESSES:
            layers = improved(total, likeness, starts, costs, budget)
            yield CorrectedScheduleExit(layers, total.fitted(layers, likeness)[1])

    def _sparse(self, problem: Problem, compute: float) -> CorrectedScheduleExit:
        """Return as many full steps as the budget takes, at least one, at equal distances, with layer 0 in between.

        Where guidance begins all layers run in any case, so that one of the later full steps moves there.
        """
        steps, depth = len(problem.influence), len(problem.parts.layers)
        unread = problem.parts.unread / problem.parts.full
        count = max(1, int(steps * (compute - unread) / (1 - unread) + 1e-9))
        full = {steps * k // count for k in range(count)}
        if problem.guidance_begins and count > 1:
            full.remove(min(full - {0}, key=lambda step: abs(step - problem.guidance_begins)))
            full.add(problem.guidance_begins)
        return CorrectedScheduleExit(tuple(depth if step in full else 0 for step in range(steps)))


def _run_weights(weights: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return what the steps of a run after each step cost, by their number: (steps, LONGEST_GAP + 1)."""
    steps = len(weights)
    until = np.concatenate([[0], weights.cumsum(), np.full(LONGEST_GAP, weights.sum())])
    first = np.arange(steps)[:, None] + 1
    return until[first + np.arange(LONGEST_GAP + 1)] - until[first]


def _errors_by_length(products: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the errors of runs after one layer, (..., length + 1, layers), from products (..., layers, run, run)."""
    by_length = np.einsum("...ii->...i", products.cumsum(-1).cumsum(-2))  # (..., layers, run)
    nothing = [(0, 0)] * (by_length.ndim - 1)
    return np.pad(by_length, [*nothing, (1, 0)]).swapaxes(-1, -2).clip(min=0)


def _uncorrected_start(problem: Problem, costs: NDArray[np.floating], from_full: NDArray[np.floating]) -> list[int]:
    """Return the layers of the steps before the first full one, for the least objective.

    Args:
        problem: The problem.
        costs: Price of layers 0..N.
        from_full: Least objective from a first full step on, by that step, (steps,).
    """
    errors = _errors_by_length(problem.start_products)  # (length + 1, layers)
    objectives = errors + np.append(0, problem.weights.cumsum())[: len(errors), None] * costs[:-1]
    following = np.append(from_full, 0.0)[: len(errors)]
    length = int((objectives.min(1) + following).argmin())
    return [int(objectives[length].argmin())] * length


def step_costs(problem: Problem) -> NDArray[np.floating]:
    """Return the cost of exiting after each of the layers 0..N at each step, (steps, layers + 1)."""
    return np.outer(problem.weights, _costs_from_layer_0(problem))


def _costs_from_layer_0(problem: Problem) -> NDArray[np.floating]:
    """Return the cost of exiting after each of the layers 0..N, (layers + 1,)."""
    parts = problem.parts
    return np.concatenate([[parts.unread / parts.full], _costs_after_layers(parts)])


def _costs_after_layers(parts: PartFlops) -> NDArray[np.floating]:
    """Return the cost of exiting after each of the layers 1..N if no estimator runs, (layers,)."""
    layers = torch.arange(1, len(parts.layers) + 1)
    return parts.until_exit(layers, torch.zeros(len(layers), dtype=torch.bool)).double().numpy() / parts.full


class ExcessError(PricedKind):
    """One threshold per step and layer: a sample exits when running more layers is not worth their price.

    At each step, E_i(u) is the expected error of a sample whose uncertainty after layer i is u (increasing in u, by
    isotonic regression). Running on to layer j is expected to reduce it to E_i(u) * mean E_j / mean E_i, and costs
    c_j - c_i more. So the sample exits if E_i(u) (1 - mean E_j / mean E_i) <= price (c_j - c_i) for every j > i, which
    is a threshold on u.
    """

    name, smallest, largest = "excess error", 1e-12, 1e6

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        layers = problem.errors.shape[1]
        costs = problem.costs(torch.zeros(layers, dtype=torch.bool))
        means = problem.errors.mean(2)
        table = []
        for step, weight in enumerate(problem.weights):
            row = []
            for i in range(layers - 1):
                gained = means[step, i] - means[step, i + 1 :]  # drop of the mean error at each later layer
                max_error = knob * weight * (costs[i + 1 :] - costs[i]) * means[step, i] / gained.clamp(min=1e-300)
                row.append(problem.threshold(step, i, max_error.min().item()))
            table.append(tuple(row))
        return TableExit(tuple(table))


KINDS: tuple[Kind, ...] = (SingleThreshold(), StepThresholds(), Schedule(), CorrectedSchedule(), ExcessError())
