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

HALVINGS = 30  # of the logarithm of the price
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

    @cached_property
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

    @cached_property
    def step_candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Thresholds worth a try at each step, and the error and the cost of each, (steps, candidates)."""
        steps, layers, samples = self.errors.shape
        estimated = torch.arange(layers) < layers - 1
        price = self.costs(estimated)
        thresholds, errors, costs = [], [], []
        for step in range(steps):
            seen = self.record.uncertainties[step, :-1]
            quantiles = seen.flatten().quantile(torch.linspace(0, 1, CANDIDATES))
            taus = torch.cat([torch.zeros(1), quantiles, torch.ones(1)])
            passed = torch.cat([seen < taus[:, None, None], torch.ones(len(taus), 1, samples, dtype=torch.bool)], 1)
            exits = passed.int().argmax(1)
            thresholds.append(taus)
            errors.append(self.errors[step].gather(0, exits).mean(1))
            costs.append(price[exits].mean(1))
            costs[-1][0] = 1.0  # at a threshold of 0 no estimator runs
        return torch.stack(thresholds), torch.stack(errors), torch.stack(costs)

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
        thresholds, errors, costs = problem.step_candidates
        best = (errors + knob * costs).argmin(1, keepdim=True)
        return ThresholdExit(tuple(thresholds.gather(1, best).squeeze(1).tolist()))


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
