"""Policies that do not look at the samples: a layer for all of them, at every step or at each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from adadiff.errors import InputError
from adadiff.policies.base import ExitPolicy, ExitQuery, check_layer, stretched_rows
from adadiff.ranges import as_int


@dataclass(frozen=True)
class NeverExit(ExitPolicy):
    """Everybody runs all layers: the full model."""

    def leaves(self, query: ExitQuery) -> Tensor:
        return torch.zeros(len(query.samples), dtype=torch.bool)

    def table(self, num_steps: int, depth: int) -> Tensor:
        return torch.zeros(num_steps, depth - 1)


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
        check_layer("exit layer", self.layer, depth)

    def table(self, num_steps: int, depth: int) -> Tensor:
        return ScheduleExit((self.layer,) * num_steps).table(num_steps, depth)


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
            check_layer("an exit layer", layer, depth)

    def stretched(self, num_steps: int) -> ExitPolicy:
        return replace(self, layers=stretched_rows(self.layers, num_steps))

    def table(self, num_steps: int, depth: int) -> Tensor:
        return (torch.arange(1, depth) >= torch.tensor(self.layers)[:, None]).float()


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
