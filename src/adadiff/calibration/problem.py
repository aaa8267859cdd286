"""The optimisation problem of a calibration: error and cost of every exit, by step, layer and sample.

Errors are weighted by their step's influence on the final image, so that they can be summed over steps. Costs are
fractions of the full model's FLOPs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from adadiff.calibration.record import LONGEST_GAP, ExitRecord
from adadiff.calibration.total_error import TotalError, guidance_start
from adadiff.policies import ExitPolicy, ExitQuery
from adadiff.runtime import PartFlops

CANDIDATES = 64  # thresholds tried at each step


@dataclass(frozen=True)
class Problem:
    """The data that policies are optimised on: recorded exits, influence of the steps, and FLOPs.

    Args:
        record: Every exit's error and uncertainty along full sampling runs.
        influence: Influence of each step on the final image, (steps,).
        parts: FLOPs of the model's parts.
        predictions: Predictions that each step takes, (steps,): 2 where it is guided, else 1. By default equally many.
    """

    record: ExitRecord
    influence: Tensor
    parts: PartFlops
    predictions: Tensor | None = None

    @cached_property
    def weights(self) -> NDArray[np.floating]:
        """What each step costs over the mean of all steps, with all layers: (steps,), 1 on average."""
        if self.predictions is None:
            return np.ones(len(self.influence))
        return (self.predictions / self.predictions.double().mean()).numpy()

    @cached_property
    def guided(self) -> NDArray[np.bool_]:
        """Which steps are guided, (steps,); none if all steps take equally many predictions."""
        return self.weights > self.weights.min()

    @cached_property
    def guidance_begins(self) -> int:
        """The step, above 0, at which guidance begins; 0 if no step or the first one is guided.

        The unconditional predictions lack corrections there, so that all layers run if an earlier step was a full one.
        """
        return guidance_start(self.guided)

    @cached_property
    def errors(self) -> Tensor:
        """Mean squared change of the final image caused by each exit, (steps, layers, samples)."""
        return self.record.errors.double() * self.influence[:, None, None]

    def costs(self, estimated: Tensor, corrected: Sequence[int] = ()) -> Tensor:
        """Return the cost of exiting after each layer, (layers,).

        Args:
            estimated: For each layer whether an estimator runs after it, (layers,) bool.
            corrected: The layers whose corrections are measured.
        """
        layers = torch.arange(1, len(self.parts.layers) + 1)
        measured = torch.isin(layers, torch.tensor(corrected))
        return self.parts.until_exit(layers, estimated, measured).double() / self.parts.full

    @cached_property
    def products(self) -> NDArray[np.floating]:
        """Mean products of differences after layers 0..N at a step and k steps earlier.

        (steps, WINDOW, layers + 1, layers + 1), by the layer at the later step and by that at the earlier one.
        """
        return self.record.products.double().mean(4).numpy()

    @cached_property
    def total_error(self) -> TotalError:
        """The expected error of corrected schedules, over the whole sampling."""
        return TotalError(self.products, self.influence.numpy(), self.guided)

    @cached_property
    def run_products(self) -> NDArray[np.floating]:
        """Products of the errors that corrected exits after one full step make of the final image.

        (steps, LONGEST_GAP + 2, layers, LONGEST_GAP, LONGEST_GAP): after the full step of the first axis, with the full
        step before it so many steps earlier (0 for none), exits after layers 0..N-1. The last two axes are the steps
        since the full step, less 1, of two exits after the same layer; on the diagonal is the error of one. Errors of a
        run of early steps are alike, as all carry on the same corrections, so that they add up to more than their own
        squares. Steps after the last one have no error. Where guidance has begun since the full step before, there is
        no line to carry the corrections on along: they stay as they are.
        """
        begins = self.guidance_begins
        steps, _, exits, _ = self.products.shape
        influence = np.sqrt(np.concatenate([self.influence.numpy(), np.zeros(LONGEST_GAP)]))
        table = np.zeros((steps, LONGEST_GAP + 2, exits - 1, LONGEST_GAP, LONGEST_GAP))
        gaps = np.arange(1, LONGEST_GAP + 1)
        for full in range(steps):
            for gap_before in range(min(LONGEST_GAP + 1, full) + 1):
                # The exit k steps after the full one errs by d_k - (1 + c) d_full + c d_before, c = k / gap_before.
                at = [*(full + gaps), full, full - gap_before]
                has_line = gap_before and not full - gap_before < begins <= full
                c = gaps / gap_before if has_line else np.zeros(LONGEST_GAP)
                weights = np.column_stack([np.eye(LONGEST_GAP), -(1 + c), c])  # (exits of the run, len(at))
                errors = weights @ self._gram(at)[:-1] @ weights.T  # (layers, exits of the run, exits of the run)
                felt = influence[full + gaps]
                table[full, gap_before] = errors * felt[:, None] * felt
        return table

    def _gram(self, at: Sequence[int]) -> NDArray[np.floating]:
        """Return the products of the differences at any two of some steps, (layers + 1, len(at), len(at))."""
        steps, _, exits, _ = self.products.shape
        gram = np.zeros((exits, len(at), len(at)))
        for (i, one), (j, other) in itertools.product(enumerate(at), repeat=2):
            if max(one, other) < steps:
                gram[:, i, j] = self.products[max(one, other), abs(one - other)].diagonal()
        return gram

    @cached_property
    def start_products(self) -> NDArray[np.floating]:
        """Products as `run_products`, of exits before the first full step, which are not corrected.

        (layers, LONGEST_GAP, LONGEST_GAP): exits after layers 0..N-1, at two of the first steps. Infinite after layer
        0, which has nothing to carry on.
        """
        at = range(min(LONGEST_GAP, len(self.influence)))
        felt = np.sqrt(self.influence.numpy()[: len(at)])
        products = self._gram(at)[:-1] * felt[:, None] * felt
        products[0] = np.inf
        return products

    @cached_property
    def _maps(self) -> list[list[tuple[Tensor, Tensor]]]:
        """For each step and layer before the last, the sorted uncertainties with the expected error at each."""
        maps = []
        for errors, uncertainties in zip(self.errors, self.record.uncertainties, strict=True):
            row = []
            for error, uncertainty in zip(errors[:-1], uncertainties[:-1], strict=True):
                seen, order = uncertainty.sort()
                expected = IsotonicRegression().fit_transform(seen.double().numpy(), error[order].numpy())
                row.append((seen, torch.from_numpy(expected)))
            maps.append(row)
        return maps

    def threshold(self, step: int, i: int, max_error: float) -> float:
        """Return the uncertainty after layer i + 1 below which the expected error is at most `max_error`.

        0 if no recorded uncertainty qualifies, 1 if all do.
        """
        seen, expected = self._maps[step][i]
        count = int((expected <= max_error).sum())
        if count in (0, len(seen)):
            return float(count > 0)
        return ((seen[count - 1] + seen[count]) / 2).item()

    @cached_property
    def step_candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Candidate thresholds for each step, with their errors and costs, each (steps, candidates)."""
        steps, layers, samples = self.errors.shape
        estimated = torch.arange(layers) < layers - 1
        price = self.costs(estimated)
        thresholds, errors, costs = [], [], []
        for step in range(steps):
            seen = self.record.uncertainties[step, :-1]
            quantiles = seen.flatten().quantile(torch.linspace(0, 1, CANDIDATES))
            taus = torch.cat([torch.zeros(1), quantiles, torch.ones(1)])
            passed = torch.cat([seen < taus[:, None, None], torch.ones(len(taus), 1, samples, dtype=torch.bool)], 1)
            exits = passed.int().argmax(1)  # (candidates, samples), counted from 0
            thresholds.append(taus)
            errors.append(self.errors[step].gather(0, exits).mean(1))
            costs.append(price[exits].mean(1))
            costs[-1][0] = 1.0  # with threshold 0 no estimator runs
        return torch.stack(thresholds), torch.stack(errors), torch.stack(costs)

    def outcome(self, policy: ExitPolicy) -> tuple[float, float]:
        """Return a policy's error, summed over steps, and cost, averaged over steps; both averaged over samples.

        The error is that of uncorrected exits; steps at layer 0 are left out of it.
        """
        error, cost = 0.0, 0.0
        for step, weight in enumerate(self.weights.tolist()):
            if policy.skips(step):
                cost += self.parts.unread / self.parts.full
                continue
            exits = exit_layers(policy, step, self.record.uncertainties[step])
            depth = len(self.parts.layers)
            reads = [policy.reads_uncertainty(step, layer) for layer in range(1, depth)]
            costs = self.costs(torch.tensor([*reads, False]), policy.corrected_layers(step, depth))
            error += self.errors[step].gather(0, exits[None] - 1).mean().item()
            cost += weight * costs[exits - 1].mean().item()
        return error, cost / len(self.influence)


def exit_layers(policy: ExitPolicy, step: int, uncertainties: Tensor) -> Tensor:
    """Return the exit layers of samples with these uncertainties, (layers, samples): (samples,) int64 in 1..layers."""
    depth, count = uncertainties.shape
    exits = torch.full((count,), depth)
    remaining = torch.arange(count)
    for layer in range(1, depth):
        if not len(remaining):
            break
        steps = torch.full_like(remaining, step)
        exiting = policy.leaves(ExitQuery(steps, layer, remaining, uncertainties[:layer, remaining].T))
        exits[remaining[exiting]] = layer
        remaining = remaining[~exiting]
    return exits
