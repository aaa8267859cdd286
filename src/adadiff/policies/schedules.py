"""Policies that ignore the samples: the exit layer is fixed in advance, for all steps or for each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adadiff.policies.base import LINE, ExitPolicy, ExitQuery, check_layer, stretched_rows
from adadiff.utils.errors import InputError
from adadiff.utils.ranges import as_float, as_int
from adadiff.utils.text import counted


@dataclass(frozen=True)
class NeverExit(ExitPolicy):
    """Runs all layers for every sample: the full model.

    Examples:
        >>> NeverExit().table(num_steps=1, depth=4)  # thresholds of layers 1..3: none is ever met
        tensor([[0., 0., 0.]])
    """

    def leaves(self, query: ExitQuery) -> Tensor:
        return torch.zeros(len(query), dtype=torch.bool)

    def table(self, num_steps: int, depth: int) -> Tensor:
        return torch.zeros(num_steps, depth - 1)


@dataclass(frozen=True)
class FixedExit(ExitPolicy):
    """Exits after the same layer at every step, for all samples.

    Args:
        layer: The exit layer, 1..N.

    Examples:
        >>> FixedExit(2).table(num_steps=1, depth=4)  # met after layer 2, whatever the uncertainty
        tensor([[0., 1., 1.]])
    """

    layer: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", as_int(self.layer, "the exit layer"))

    def leaves(self, query: ExitQuery) -> Tensor:
        return torch.full((len(query),), query.layer >= self.layer, dtype=torch.bool)

    def check(self, depth: int, num_steps: int) -> None:
        check_layer("exit layer", self.layer, depth)

    def table(self, num_steps: int, depth: int) -> Tensor | None:
        return ScheduleExit((self.layer,) * num_steps).table(num_steps, depth)


@dataclass(frozen=True)
class ScheduleExit(ExitPolicy):
    """Exits after a layer that depends only on the sampling step, for all samples.

    Args:
        layers: The exit layer at each sampling step, 1..N.

    Examples:
        >>> policy = ScheduleExit((9, 3, 3, 9))
        >>> policy.check(depth=9, num_steps=4)  # raises InputError if it does not fit
        >>> policy.stretched(8).layers
        (9, 9, 3, 3, 3, 3, 9, 9)
    """

    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(as_int(layer, "an exit layer") for layer in self.layers))

    @cached_property
    def _layers(self) -> Tensor:
        return torch.tensor(self.layers)  # (steps,)

    def leaves(self, query: ExitQuery) -> Tensor:
        return query.layer >= self._layers[query.step]

    def check(self, depth: int, num_steps: int) -> None:
        if len(self.layers) != num_steps:
            has = counted(len(self.layers), "exit layer")
            raise InputError(f"the schedule has {has}: give one per step, {num_steps}")
        for layer in self.layers:
            check_layer("an exit layer", layer, depth)

    @property
    def num_steps(self) -> int | None:
        return len(self.layers)

    def stretched(self, num_steps: int) -> ExitPolicy:
        return replace(self, layers=stretched_rows(self.layers, num_steps))

    def table(self, num_steps: int, depth: int) -> Tensor | None:
        return (torch.arange(1, depth) >= self._layers[:, None]).float()


@dataclass(frozen=True)
class CorrectedScheduleExit(ScheduleExit):
    """A step schedule whose early exits are corrected by what the later layers added at earlier full steps.

    Running all layers at every second or third step, and one or two layers at the steps in between, keeps the images
    far closer to the full model's than a medium depth at every step. Exits before the first full step are not
    corrected; a row that comes later, and so lacks the corrections of an earlier full step, runs all layers first.

    After layer 0 the network has not run at all: the last full predictions are extrapolated.

    Args:
        layers: The exit layer at each sampling step, 0..N; a step at layer 0 comes after a full step.
        extrapolation: At each step, the weights of value, slope and curvature by which corrections are carried on from
            the last three full steps; None for a line through the last two, (1, 1, 0), everywhere.

    Examples:
        >>> policy = CorrectedScheduleExit((9, 1, 9, 2))
        >>> policy.corrected_layers(step=0, depth=9)  # the layers that later steps exit after
        (1, 2)
        >>> policy.corrected_layers(step=1, depth=9)  # not a full step: nothing to measure
        ()
    """

    extrapolation: tuple[tuple[float, float, float], ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extrapolation is None:
            return
        rows = tuple(
            tuple(as_float(weight, "a weight of the extrapolation") for weight in row) for row in self.extrapolation
        )
        if len(rows) != len(self.layers) or any(len(row) != 3 or not all(map(math.isfinite, row)) for row in rows):
            raise InputError(
                "the extrapolation holds three finite weights for each step, of value, slope and curvature: "
                f"give {len(self.layers)} rows of three numbers"
            )
        object.__setattr__(self, "extrapolation", rows)

    def check(self, depth: int, num_steps: int) -> None:
        running = tuple(layer or 1 for layer in self.layers)
        ScheduleExit(running).check(depth, num_steps)
        if 0 in self.layers and depth not in self.layers[: self.layers.index(0)]:
            raise InputError(
                f"step {self.layers.index(0)} is at layer 0, which carries on earlier full predictions: run all "
                f"{depth} layers at a step before it"
            )

    def skips(self, step: int) -> bool:
        return self.layers[step] == 0

    def extrapolation_at(self, step: int) -> tuple[float, float, float]:
        return LINE if self.extrapolation is None else self.extrapolation[step]

    def table(self, num_steps: int, depth: int) -> Tensor | None:
        return None if 0 in self.layers else super().table(num_steps, depth)

    def corrected_layers(self, step: int, depth: int) -> tuple[int, ...]:
        if self.layers[step] < depth:
            return ()
        full_later = [later for later in range(step + 1, len(self.layers)) if self.layers[later] == depth]
        used = 2 if self._goes_along_lines else 3  # so many full steps before an exit correct it
        until = full_later[used - 1] if len(full_later) >= used else None
        return tuple(sorted({layer for layer in self.layers[step + 1 : until] if layer < depth}))

    @cached_property
    def _goes_along_lines(self) -> bool:
        return not any(curvature for _, _, curvature in self.extrapolation or ())

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        if self.extrapolation is None:
            del described["extrapolation"]  # as it was before there was any, so that folders of then are continued
        return described

    def without_corrections(self, step: int, depth: int) -> ExitPolicy:
        if depth not in self.layers[:step]:
            return self
        return replace(self, layers=(*self.layers[:step], depth, *self.layers[step + 1 :]))

    def stretched(self, num_steps: int) -> ExitPolicy:
        """Return the schedule for another number of steps, with the same share of full steps in every part of it.

        The distance from an exit to the full steps before it, and so the age of its corrections, scales along.
        """
        deepest, steps = max(self.layers), len(self.layers)
        full, early = ([k for k in range(steps) if (self.layers[k] == deepest) == wanted] for wanted in (True, False))
        if not early:
            return replace(self, layers=(deepest,) * num_steps, extrapolation=None)
        share = num_steps / steps
        full_by_then = share * np.interp(np.arange(num_steps + 1) / share, [*full, steps], np.arange(len(full) + 1))
        runs_all = np.diff(np.ceil(full_by_then - 1e-9)) > 0
        nearest = [min(early, key=lambda step: abs(step + 0.5 - (k + 0.5) / share)) for k in range(num_steps)]
        first = int(runs_all.argmax())  # before the first full step there is nothing to carry on: one layer runs
        layers = (deepest if runs_all[k] else self.layers[step] or int(k < first) for k, step in enumerate(nearest))
        weights = (LINE if runs_all[k] else self.extrapolation_at(step) for k, step in enumerate(nearest))
        return replace(self, layers=tuple(layers), extrapolation=self.extrapolation and tuple(weights))
