"""From a record to policies: the best one of each kind at a price per FLOP, and the price that meets a budget.

All errors are weighted by their step's influence on the final image, so that they add up over the steps; a cost is a
share of the full model's FLOPs. At a price, each kind of policy minimises error + price * cost, averaged over samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from adadiff.calibration.record import ExitRecord
from adadiff.exits import ExitPolicy, ExitQuery, ScheduleExit, TableExit, ThresholdExit
from adadiff.exits.flops import PartFlops

HALVINGS = 60  # of the logarithm of the price
CANDIDATES = 64  # thresholds that are tried at a step


@dataclass(frozen=True)
class Problem:
    """What is weighed against what.

    Args:
        record: Of full samplings.
        influence: Of each step, (steps,).
        parts: What the model's parts cost.
    """

    record: ExitRecord
    influence: Tensor
    parts: PartFlops

    @property
    def errors(self) -> Tensor:
        """How far leaving there moves the final image, squared and averaged over pixels, (steps, layers, samples)."""
        return self.record.errors.double() * self.influence[:, None, None]

    def costs(self, estimated: Tensor) -> Tensor:
        """What leaving after each layer costs, (layers,), where estimators run after those layers."""
        layers = torch.arange(1, len(self.parts.layers) + 1)
        return self.parts.until_exit(layers, estimated).double() / self.parts.full

    @cached_property
    def _maps(self) -> list[list[tuple[Tensor, Tensor]]]:
        """Uncertainties seen at each step and layer but the last, sorted, with the expected error at each."""
        maps = []
        for errors, uncertainties in zip(self.errors, self.record.uncertainties, strict=True):
            row = []
            for error, uncertainty in zip(errors[:-1], uncertainties[:-1], strict=True):
                seen, order = uncertainty.sort()
                expected = IsotonicRegression().fit_transform(seen.double().numpy(), error[order].numpy())
                row.append((seen, torch.from_numpy(expected)))
            maps.append(row)
        return maps

    def threshold(self, step: int, i: int, bearable: float) -> float:
        """Below which uncertainty after layer i + 1 the expected error is at most this: 0 for none, 1 for any."""
        seen, expected = self._maps[step][i]
        count = int((expected <= bearable).sum())
        if count in (0, len(seen)):
            return float(count > 0)
        return ((seen[count - 1] + seen[count]) / 2).item()

    def outcome(self, policy: ExitPolicy) -> tuple[float, float]:
        """Error and cost of a policy, averaged over the record's samples, the cost also over steps."""
        error, cost = 0.0, 0.0
        for step in range(len(self.influence)):
            exits = exit_layers(policy, step, self.record.uncertainties[step])
            reads = [policy.reads_uncertainty(step, layer) for layer in range(1, len(self.parts.layers))]
            error += self.errors[step].gather(0, exits[None] - 1).mean().item()
            cost += self.costs(torch.tensor([*reads, False]))[exits - 1].mean().item()
        return error, cost / len(self.influence)


def exit_layers(policy: ExitPolicy, step: int, uncertainties: Tensor) -> Tensor:
    """Where samples with these uncertainties, (layers, samples), leave at this step: (samples,) int64 in 1..layers."""
    depth, count = uncertainties.shape
    exits = torch.full((count,), depth)
    remaining = torch.arange(count)
    for layer in range(1, depth):
        if not len(remaining):
            break
        leaving = policy.leaves(ExitQuery(step, layer, remaining, uncertainties[:layer, remaining].T))
        exits[remaining[leaving]] = layer
        remaining = remaining[~leaving]
    return exits


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of policies, each the best of its kind at a price


class Kind(ABC):
    """A kind of policy with one knob: the more of it, the less compute."""

    name: str
    largest: float
    smallest: float

    @abstractmethod
    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        """The policy."""

    def meeting(self, problem: Problem, compute: float) -> ExitPolicy:
        """The policy whose cost is nearest to this fraction of the full model's FLOPs, by bisection of the knob."""
        low, high = math.log(self.smallest), math.log(self.largest)
        tried: list[tuple[float, ExitPolicy]] = []
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            policy = self.at(problem, math.exp(middle))
            cost = problem.outcome(policy)[1]
            tried.append((abs(cost - compute), policy))
            low, high = (middle, high) if cost > compute else (low, middle)
        return min(tried, key=lambda pair: pair[0])[1]


class SingleThreshold(Kind):
    """The paper's: one threshold for all layers and steps."""

    name, smallest, largest = "single threshold", 1e-4, 1.0

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        return ThresholdExit(knob)


class StepThresholds(Kind):
    """One threshold a step: among quantiles of the uncertainties seen there, the one with the least objective."""

    name, smallest, largest = "thresholds per step", 1e-12, 1e6

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        return ThresholdExit(tuple(self._best(problem, step, knob) for step in range(len(problem.influence))))

    def _best(self, problem: Problem, step: int, price: float) -> float:
        seen = problem.record.uncertainties[step, :-1].flatten()
        candidates = [0.0, *seen.quantile(torch.linspace(0, 1, CANDIDATES)).tolist(), 1.0]

        def objective(tau: float) -> float:
            exits = exit_layers(ThresholdExit(tau), 0, problem.record.uncertainties[step])
            estimated = torch.full((len(problem.parts.layers),), tau > 0)
            estimated[-1] = False
            error = problem.errors[step].gather(0, exits[None] - 1).mean()
            return (error + price * problem.costs(estimated)[exits - 1].mean()).item()

        return min(candidates, key=objective)


class Schedule(Kind):
    """One exit layer a step, without looking at the samples: the same optimum with no estimator at run time."""

    name, smallest, largest = "step schedule", 1e-12, 1e6

    def at(self, problem: Problem, knob: float) -> ExitPolicy:
        no_estimator = torch.zeros(len(problem.parts.layers), dtype=torch.bool)
        objective = problem.errors.mean(2) + knob * problem.costs(no_estimator)
        return ScheduleExit(tuple((objective.argmin(1) + 1).tolist()))


class ExcessError(Kind):
    """Leave where the gain that going on is expected to bring is below its price.

    At a step, a sample whose uncertainty after layer i is u is expected to be E_i(u) from the full prediction
    (increasing, by isotonic regression). Going on to layer j is expected to leave E_i(u) * mean E_j / mean E_i, and
    costs c_j - c_i more. So it leaves where, for every j, E_i(u) (1 - mean E_j / mean E_i) <= price (c_j - c_i): below
    a threshold on u, one for each step and layer.
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
                gained = means[step, i] - means[step, i + 1 :]  # of the mean error, by going on to each later layer
                bearable = knob * (costs[i + 1 :] - costs[i]) * means[step, i] / gained.clamp(min=1e-300)
                row.append(problem.threshold(step, i, bearable.min().item()))
            table.append(tuple(row))
        return TableExit(tuple(table))


KINDS: tuple[Kind, ...] = (SingleThreshold(), StepThresholds(), Schedule(), ExcessError())
