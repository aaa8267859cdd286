"""Policies that compare a sample's mean uncertainty with thresholds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from adadiff.policies.base import ExitPolicy, ExitQuery, check_layer, checked_tau, stretched_rows
from adadiff.utils.errors import InputError
from adadiff.utils.text import counted


@dataclass(frozen=True)
class ThresholdExit(ExitPolicy):
    """Exits after the first layer whose mean uncertainty is below tau, sample by sample (AdaDiff, section 3.2).

    Args:
        tau: Threshold in [0, 1]: one number, or one per layer (`per="layer"`) or per sampling step (`per="step"`).
            0 never exits.
        per: Whether a sequence of thresholds has one per `"layer"` or one per `"step"`.
        min_layer: No sample exits before this layer, 1..N.

    Examples:
        >>> policy = ThresholdExit(0.05, min_layer=2)
        >>> policy.table(num_steps=2, depth=4)  # one row per step, one column per layer 1..N-1
        tensor([[0.0000, 0.0500, 0.0500],
                [0.0000, 0.0500, 0.0500]])
        >>> ThresholdExit((0.02, 0.08)).stretched(4).tau
        (0.02, 0.02, 0.08, 0.08)
    """

    tau: float | tuple[float, ...]
    per: str = "step"
    min_layer: int = 1

    def __post_init__(self) -> None:
        if self.per not in ("layer", "step"):
            raise InputError(f'thresholds run per "layer" or per "step", not per "{self.per}"')
        given: Any = self.tau
        several = isinstance(given, (list, tuple)) or getattr(given, "ndim", 0) > 0
        object.__setattr__(self, "tau", tuple(map(checked_tau, given)) if several else checked_tau(given))

    def leaves(self, query: ExitQuery) -> Tensor:
        if query.layer < self.min_layer:
            return torch.zeros(len(query), dtype=torch.bool)
        if isinstance(self.tau, tuple):
            return query.uncertainty[:, -1] < self._taus[query.layer - 1 if self.per == "layer" else query.step]
        return query.uncertainty[:, -1] < self.tau

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return layer >= self.min_layer and self._threshold(step, layer) > 0

    def check(self, depth: int, num_steps: int) -> None:
        check_layer("min_layer", self.min_layer, depth)
        if isinstance(self.tau, tuple):
            wanted = depth if self.per == "layer" else num_steps
            if len(self.tau) != wanted:
                has = counted(len(self.tau), "value")
                raise InputError(f"tau has {has}: give one number, or one per {self.per}, {wanted}")

    @property
    def num_steps(self) -> int | None:
        return len(self.tau) if isinstance(self.tau, tuple) and self.per == "step" else None

    def stretched(self, num_steps: int) -> ExitPolicy:
        if isinstance(self.tau, tuple) and self.per == "step":
            return replace(self, tau=stretched_rows(self.tau, num_steps))
        return self

    @cached_property
    def _taus(self) -> Tensor:
        return torch.tensor(self.tau)

    def _threshold(self, step: int, layer: int) -> float:
        if isinstance(self.tau, tuple):
            return self.tau[layer - 1 if self.per == "layer" else step]
        return self.tau

    def table(self, num_steps: int, depth: int) -> Tensor:
        taus = self._taus
        by_layer = taus[: depth - 1] if self.per == "layer" and taus.ndim else taus.reshape(-1, 1)
        return by_layer * (torch.arange(1, depth) >= self.min_layer) * torch.ones(num_steps, 1)


@dataclass(frozen=True)
class TableExit(ExitPolicy):
    """Exits after the first layer whose mean uncertainty is below the threshold of that step and layer.

    Args:
        thresholds: One row per step, with one threshold in [0, 1] for each of the layers 1..N-1. 0 never exits and 1
            always does; neither runs the estimator.

    Examples:
        >>> policy = TableExit(((0.0, 0.0, 0.0), (0.1, 0.2, 1.0)))  # 2 steps of a model of 4 layers
        >>> policy.check(depth=4, num_steps=2)  # raises InputError if it does not fit
        >>> [policy.reads_uncertainty(step=1, layer=layer) for layer in (1, 2, 3)]
        [True, True, False]
    """

    thresholds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows = tuple(tuple(checked_tau(tau) for tau in row) for row in self.thresholds)
        object.__setattr__(self, "thresholds", rows)

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.thresholds)  # (steps, N - 1)

    def leaves(self, query: ExitQuery) -> Tensor:
        tau = self._table[query.step, query.layer - 1]  # (remaining,)
        return (tau == 1) | (query.uncertainty[:, -1] < tau)

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return 0 < self.thresholds[step][layer - 1] < 1

    def check(self, depth: int, num_steps: int) -> None:
        if len(self.thresholds) != num_steps:
            has = counted(len(self.thresholds), "row")
            raise InputError(f"the table has {has}: give one per step, {num_steps}")
        for row in self.thresholds:
            if len(row) != depth - 1:
                raise InputError(f"the table has rows of {len(row)}: give one threshold for layers 1 to {depth - 1}")

    @property
    def num_steps(self) -> int | None:
        return len(self.thresholds)

    def stretched(self, num_steps: int) -> ExitPolicy:
        return replace(self, thresholds=stretched_rows(self.thresholds, num_steps))

    def table(self, num_steps: int, depth: int) -> Tensor:
        return self._table


@dataclass(frozen=True)
class PatienceExit(ExitPolicy):
    """Exits after the k-th layer whose mean uncertainty is below tau, sample by sample.

    The k layers need not be consecutive. With `patience=2, last_patient_layer=N // 2` this is the authors' CIFAR-10
    sampler: in the first half of the layers two must be below tau, in the second half one is enough.

    Args:
        tau: Threshold in [0, 1].
        patience: The number k of layers that must be below tau; 1 is the plain threshold.
        min_layer: The first layer that counts, 1..N.
        last_patient_layer: After this layer, 1..N, one layer below tau is enough; None to ask for k at every layer.

    Examples:
        >>> uncertainty = torch.tensor([[0.05, 0.20, 0.08], [0.20, 0.20, 0.08]])  # 2 rows, after layers 1 to 3
        >>> query = ExitQuery(step=torch.tensor([0, 0]), layer=3, rows=torch.arange(2), uncertainty=uncertainty)
        >>> PatienceExit(0.1, patience=2).leaves(query)
        tensor([ True, False])
    """

    tau: float
    patience: int = 2
    min_layer: int = 1
    last_patient_layer: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", checked_tau(self.tau))
        if self.patience < 1:
            raise InputError(f"patience is {self.patience}: at least one layer must pass")

    def leaves(self, query: ExitQuery) -> Tensor:
        if query.layer < self.min_layer:
            return torch.zeros(len(query), dtype=torch.bool)
        passed = query.uncertainty[:, self.min_layer - 1 :] < self.tau
        patient = self.last_patient_layer is None or query.layer <= self.last_patient_layer
        return passed[:, -1] & (passed.sum(dim=1) >= (self.patience if patient else 1))

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return layer >= self.min_layer

    def check(self, depth: int, num_steps: int) -> None:
        check_layer("min_layer", self.min_layer, depth)
        if self.last_patient_layer is not None:
            check_layer("last_patient_layer", self.last_patient_layer, depth)

    def table(self, num_steps: int, depth: int) -> Tensor | None:
        return ThresholdExit(self.tau, min_layer=self.min_layer).table(num_steps, depth) if self.patience == 1 else None


@dataclass(frozen=True)
class BatchMeanExit(ExitPolicy):
    """Exits with the whole batch after the first layer where the batch's mean uncertainty is below tau.

    This is the authors' released code. A sample's result depends on the rest of its batch, so use it for comparison
    only. It refuses a batch whose rows are at several steps.

    Args:
        tau: Threshold in [0, 1]; 0 never exits.

    Examples:
        >>> query = ExitQuery(torch.tensor([0, 0]), 1, torch.arange(2), uncertainty=torch.tensor([[0.02], [0.16]]))
        >>> BatchMeanExit(0.1).leaves(query)  # the mean is 0.09
        tensor([True, True])
        >>> ThresholdExit(0.1).leaves(query)
        tensor([ True, False])
    """

    tau: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", checked_tau(self.tau))

    def leaves(self, query: ExitQuery) -> Tensor:
        if (query.step != query.step[0]).any():
            raise InputError("BatchMeanExit decides for the whole batch at once: give it rows at one and the same step")
        return (query.uncertainty[:, -1].mean() < self.tau).expand(len(query))

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return self.tau > 0
