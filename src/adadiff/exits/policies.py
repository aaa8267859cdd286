"""Exit policies: when does a sample leave?

A policy looks at the mean uncertainties of the samples still there and says which of them leave. It keeps nothing
between calls, so that one object serves any number of samples, steps and threads. A new rule is one class here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from adadiff.errors import InputError
from adadiff.files import model_folder
from adadiff.ranges import as_float, as_int

Row = TypeVar("Row")


@dataclass(frozen=True)
class ExitQuery:
    """What a policy may look at after a layer.

    Args:
        step: Sampling step, counted from 0.
        layer: The layer just run, 1..N-1 (after layer N everybody leaves unasked).
        samples: Which of the batch's samples are still there, (remaining,) int64, on the CPU.
        uncertainty: Their mean uncertainties after layers 1..layer, (remaining, layer) float32 in [0, 1], on the CPU;
            NaN after layers where no estimator ran.
    """

    step: int
    layer: int
    samples: Tensor
    uncertainty: Tensor


class ExitPolicy(ABC):
    """The rule by which samples leave."""

    @abstractmethod
    def leaves(self, query: ExitQuery) -> Tensor:
        """Which of the remaining samples leave after this layer: (remaining,) bool."""

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        """Whether the policy wants the uncertainty after this layer at this step; estimators run only where it does."""
        return False

    def corrected_layers(self, step: int, depth: int) -> tuple[int, ...]:
        """After which layers samples are read off at this step although they go on, if they run all `depth` layers.

        What going on added to these predictions corrects those of exits there at later steps (`corrections.py`).
        """
        return ()

    def without_corrections(self, step: int, depth: int) -> ExitPolicy:
        """What takes its place at a step before which the corrections of its exits were lost."""
        return self

    def check(self, depth: int, num_steps: int) -> None:  # noqa: B027 - most policies fit any model
        """Raise InputError where the policy does not fit a model of so many layers or so many sampling steps."""

    def stretched(self, num_steps: int) -> ExitPolicy:
        """For another number of sampling steps: at each what it says at the same point of the way."""
        return self

    @staticmethod
    def from_pretrained(folder: str | os.PathLike[str]) -> ExitPolicy:
        """The policy that `adadiff calibrate` stored in a model folder, or in a packaged model, by its name.

        Raises:
            InputError: If there is none, it makes no sense, or it belongs to other weights.
        """
        from adadiff.exits.stored import StoredPolicy  # which knows all policies

        return StoredPolicy.load(model_folder(folder)).policy

    def describe(self) -> dict[str, Any]:
        """The policy's name and settings, as plain values."""
        return {"policy": type(self).__name__, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class NeverExit(ExitPolicy):
    """Everybody runs all layers: the full model."""

    def leaves(self, query: ExitQuery) -> Tensor:
        return torch.zeros(len(query.samples), dtype=torch.bool)


@dataclass(frozen=True)
class FixedExit(ExitPolicy):
    """Everybody leaves after the same layer, at every step.

    Args:
        layer: The exit layer, 1..N.
    """

    layer: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", as_int(self.layer, "the exit layer"))

    def leaves(self, query: ExitQuery) -> Tensor:
        return torch.full((len(query.samples),), query.layer >= self.layer, dtype=torch.bool)

    def check(self, depth: int, num_steps: int) -> None:
        _check_layer("exit layer", self.layer, depth)


@dataclass(frozen=True)
class ScheduleExit(ExitPolicy):
    """Everybody leaves after a layer that depends on the step alone.

    Args:
        layers: The exit layer at each sampling step, 1..N.
    """

    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(as_int(layer, "an exit layer") for layer in self.layers))

    def leaves(self, query: ExitQuery) -> Tensor:
        return torch.full((len(query.samples),), query.layer >= self.layers[query.step], dtype=torch.bool)

    def check(self, depth: int, num_steps: int) -> None:
        if len(self.layers) != num_steps:
            raise InputError(f"the schedule has {len(self.layers)} exit layers: give one per step, {num_steps}")
        for layer in self.layers:
            _check_layer("an exit layer", layer, depth)

    def stretched(self, num_steps: int) -> ExitPolicy:
        return replace(self, layers=_stretched(self.layers, num_steps))


@dataclass(frozen=True)
class CorrectedScheduleExit(ScheduleExit):
    """A schedule whose early exits are corrected by what the layers after them added at earlier, full steps.

    With all layers at every second or third step and one or two at those between, the images stay far nearer to the
    full model's than with a depth in the middle at every step. Before the first full step exits are not corrected.

    Args:
        layers: The exit layer at each sampling step, 1..N.
    """

    def corrected_layers(self, step: int, depth: int) -> tuple[int, ...]:
        if self.layers[step] < depth:
            return ()
        full_later = [later for later in range(step + 1, len(self.layers)) if self.layers[later] == depth]
        until = full_later[1] if len(full_later) > 1 else None  # exits are corrected by the last two full steps
        return tuple(sorted({layer for layer in self.layers[step + 1 : until] if layer < depth}))

    def without_corrections(self, step: int, depth: int) -> ExitPolicy:
        return replace(self, layers=(*self.layers[:step], depth, *self.layers[step + 1 :]))

    def stretched(self, num_steps: int) -> ExitPolicy:
        """As many full steps in a row of steps as before, and so corrections as recent, at every point of the way."""
        deepest, steps = max(self.layers), len(self.layers)
        full, early = ([k for k in range(steps) if (self.layers[k] == deepest) == wanted] for wanted in (True, False))
        if not early:
            return replace(self, layers=(deepest,) * num_steps)
        share = num_steps / steps
        full_by_then = share * np.interp(np.arange(num_steps + 1) / share, [*full, steps], np.arange(len(full) + 1))
        runs_all = np.diff(np.ceil(full_by_then - 1e-9)) > 0
        nearest = [min(early, key=lambda step: abs(step + 0.5 - (k + 0.5) / share)) for k in range(num_steps)]
        layers = (deepest if all_run else self.layers[step] for all_run, step in zip(runs_all, nearest, strict=True))
        return replace(self, layers=tuple(layers))


@dataclass(frozen=True)
class ThresholdExit(ExitPolicy):
    """A sample leaves after the first layer whose mean uncertainty is below tau (AdaDiff, section 3.2).

    Args:
        tau: Threshold in [0, 1]: one number, or one per layer (`per="layer"`) or per sampling step (`per="step"`).
            0 never leaves.
        per: What a sequence of thresholds runs over.
        min_layer: No sample leaves before this layer, 1..N.
    """

    tau: float | tuple[float, ...]
    per: str = "step"
    min_layer: int = 1

    def __post_init__(self) -> None:
        if self.per not in ("layer", "step"):
            raise InputError(f'thresholds run per "layer" or per "step", not per "{self.per}"')
        given: Any = self.tau
        several = isinstance(given, (list, tuple)) or getattr(given, "ndim", 0) > 0
        object.__setattr__(self, "tau", tuple(map(_checked_tau, given)) if several else _checked_tau(given))

    def leaves(self, query: ExitQuery) -> Tensor:
        if query.layer < self.min_layer:
            return torch.zeros(len(query.samples), dtype=torch.bool)
        return query.uncertainty[:, -1] < self._threshold(query.step, query.layer)

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return layer >= self.min_layer and self._threshold(step, layer) > 0

    def check(self, depth: int, num_steps: int) -> None:
        _check_layer("min_layer", self.min_layer, depth)
        if isinstance(self.tau, tuple):
            wanted = depth if self.per == "layer" else num_steps
            if len(self.tau) != wanted:
                raise InputError(f"tau has {len(self.tau)} values: give one number, or one per {self.per}, {wanted}")

    def stretched(self, num_steps: int) -> ExitPolicy:
        if isinstance(self.tau, tuple) and self.per == "step":
            return replace(self, tau=_stretched(self.tau, num_steps))
        return self

    def _threshold(self, step: int, layer: int) -> float:
        if isinstance(self.tau, tuple):
            return self.tau[layer - 1 if self.per == "layer" else step]
        return self.tau


@dataclass(frozen=True)
class TableExit(ExitPolicy):
    """A threshold for every step and layer.

    Args:
        thresholds: For each step one for each of the layers 1..N-1, in [0, 1]. 0 never leaves and 1 always does;
            neither asks the estimator.
    """

    thresholds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows = tuple(tuple(_checked_tau(tau) for tau in row) for row in self.thresholds)
        object.__setattr__(self, "thresholds", rows)

    def leaves(self, query: ExitQuery) -> Tensor:
        tau = self.thresholds[query.step][query.layer - 1]
        if tau == 1:
            return torch.ones(len(query.samples), dtype=torch.bool)
        return query.uncertainty[:, -1] < tau

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return 0 < self.thresholds[step][layer - 1] < 1

    def check(self, depth: int, num_steps: int) -> None:
        if len(self.thresholds) != num_steps:
            raise InputError(f"the table has {len(self.thresholds)} rows: give one per step, {num_steps}")
        for row in self.thresholds:
            if len(row) != depth - 1:
                raise InputError(f"the table has rows of {len(row)}: give one threshold for layers 1 to {depth - 1}")

    def stretched(self, num_steps: int) -> ExitPolicy:
        return replace(self, thresholds=_stretched(self.thresholds, num_steps))


@dataclass(frozen=True)
class PatienceExit(ExitPolicy):
    """A sample leaves after the layer at which its uncertainty is below tau for the k-th time.

    The layers need not be in succession. With `patience=2, last_patient_layer=N // 2` this is the authors' CIFAR-10
    sampler: in the first half the second layer that passes, after it the first.

    Args:
        tau: Threshold in [0, 1].
        patience: The k layers that must pass; 1 is the plain threshold.
        min_layer: The first layer that counts, 1..N.
        last_patient_layer: After this layer, 1..N, one that passes is enough; None for patience to the end.
    """

    tau: float
    patience: int = 2
    min_layer: int = 1
    last_patient_layer: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", _checked_tau(self.tau))
        if self.patience < 1:
            raise InputError(f"patience is {self.patience}: at least one layer must pass")

    def leaves(self, query: ExitQuery) -> Tensor:
        if query.layer < self.min_layer:
            return torch.zeros(len(query.samples), dtype=torch.bool)
        passed = query.uncertainty[:, self.min_layer - 1 :] < self.tau
        patient = self.last_patient_layer is None or query.layer <= self.last_patient_layer
        return passed[:, -1] & (passed.sum(dim=1) >= (self.patience if patient else 1))

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return layer >= self.min_layer

    def check(self, depth: int, num_steps: int) -> None:
        _check_layer("min_layer", self.min_layer, depth)
        if self.last_patient_layer is not None:
            _check_layer("last_patient_layer", self.last_patient_layer, depth)


@dataclass(frozen=True)
class BatchMeanExit(ExitPolicy):
    """The whole batch leaves after the first layer where its mean uncertainty is below tau: the authors' released code.

    What a sample gets depends on its neighbours; it is here to be compared with.

    Args:
        tau: Threshold in [0, 1]; 0 never leaves.
    """

    tau: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "tau", _checked_tau(self.tau))

    def leaves(self, query: ExitQuery) -> Tensor:
        return (query.uncertainty[:, -1].mean() < self.tau).expand(len(query.samples))

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return self.tau > 0


def _stretched(rows: tuple[Row, ...], num_steps: int) -> tuple[Row, ...]:
    return tuple(rows[int((step + 0.5) / num_steps * len(rows))] for step in range(num_steps))


def _checked_tau(tau: float) -> float:
    number = as_float(tau, "tau")
    if not 0 <= number <= 1:
        raise InputError(f"tau is {tau}: an uncertainty, and so a threshold, is between 0 and 1")
    return number


def _check_layer(name: str, layer: int, depth: int) -> None:
    if not 1 <= layer <= depth:
        raise InputError(f"{name} is {layer}: the model's layers are numbered 1 to {depth}")
