"""The runtime contract: what can predict a step, and what is remembered of each sample between its steps.

A sample's step and its memory are its own. Samples at different steps may share a call, join a batch and leave it at
any time; what is predicted for one never depends on the others.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from adadiff.policies import ExitPolicy
from adadiff.runtime.flops import PartFlops
from adadiff.runtime.memory import RowMemory
from adadiff.utils.errors import InputError


@dataclass(frozen=True)
class Inputs:
    """The inputs of one call, one row per prediction.

    Args:
        sample: Noisy images x_t, (batch, channels, height, width).
        timestep: Time step of each row, (batch,).
        conditions: What the predictions are conditioned on, by the name of the backbone's argument, (batch, ...) each.
    """

    sample: Tensor
    timestep: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sample)

    def select(self, rows: Tensor) -> Inputs:
        """Return the inputs of some rows; `rows` holds their positions, (selected,) int64, on the inputs' device."""
        conditions = {name: values[rows] for name, values in self.conditions.items()}
        return Inputs(self.sample[rows], self.timestep[rows], conditions)


@dataclass(frozen=True)
class InternalWeights:
    """Weights of internal guidance for the rows of one call (`sampling/guidance.py` chooses them).

    A row's prediction becomes g + w * (g - g_k), where g_k is read off after layer k.

    Args:
        layer: The layer k, 1..N-1.
        weights: Weight w of each row, (batch,) float32 on the CPU; 0 for none.
    """

    layer: int
    weights: Tensor


@dataclass(frozen=True)
class Prediction:
    """The predictions of one call, with each row's exit layer, uncertainties and FLOPs.

    Args:
        sample: Predictions, (batch, channels, height, width).
        exit_layers: Number of layers run for each row, (batch,) int64 in 0..N, on the CPU.
        uncertainties: Mean uncertainty of each row after each layer, (batch, N) float32 on the CPU; NaN where no
            estimator ran.
        flops: FLOPs spent on each row, (batch,) int64, on the CPU.
    """

    sample: Tensor
    exit_layers: Tensor
    uncertainties: Tensor
    flops: Tensor

    def select(self, rows: Tensor | slice) -> Prediction:
        """Return the predictions of some rows."""
        return replace(self, **{name: values[rows] for name, values in vars(self).items()})


class Session(ABC):
    """The memory of running samplings, one row per sample (two for a guided one), and the prediction of their steps.

    Args:
        denoiser: The denoiser that predicts.
        rows: Number of rows; nothing is remembered of them yet.

    Examples:
        >>> import torch
        >>> from adadiff import AdaptiveModel, FixedExit
        >>> from adadiff.runtime import Inputs
        >>> small = {"patch_size": 4, "width": 32, "depth": 3, "num_heads": 2}
        >>> model = AdaptiveModel(sample_size=8, in_channels=1, backbone_config=small)
        >>> session = model.session(2)
        >>> inputs = Inputs(torch.zeros(2, 1, 8, 8), timestep=torch.tensor([900, 500]))
        >>> steps = torch.tensor([0, 4])  # the first sample begins, the second is at its fifth step
        >>> session.predict(inputs, steps, FixedExit(1)).exit_layers
        tensor([1, 1])
        >>> session = session.select(torch.tensor([1])).join(model.session(3))  # one has finished, three more begin
        >>> len(session)
        4
    """

    def __init__(self, denoiser: Denoiser, rows: int) -> None:
        self.denoiser, self.memory = denoiser, RowMemory(rows)

    def __len__(self) -> int:
        return self.memory.rows

    @torch.no_grad()
    def predict(
        self,
        inputs: Inputs,
        steps: Tensor,
        policy: ExitPolicy,
        ties: Tensor | None = None,
        return_uncertainties: bool = False,
        internal: InternalWeights | None = None,
    ) -> Prediction:
        """Predict one step of every row, and remember what later steps need.

        Args:
            inputs: One row of inputs for each row of the session, in the same order.
            steps: The step that each row is at, counted from 0, (batch,) int64 on the CPU.
            policy: The exit policy.
            ties: Groups of rows that exit together, once all of a group may: a group number for each row, (batch,)
                int64 >= 0 on the CPU. None if each row exits on its own.
            return_uncertainties: Run the estimator after every layer, for all rows that have not exited.
            internal: Internal guidance, for rows that run beyond its layer. Corrected exits before that layer are
                guided too, as corrections lead to the guided prediction of a full step.

        Raises:
            InputError: If the numbers of rows differ, the inputs do not fit the model, or the policy or the internal
                guidance does not fit the denoiser or rows at several steps.
        """
        weights = steps if internal is None else internal.weights
        given: dict[str, Sized] = {"inputs": inputs, "steps": steps, "ties": steps if ties is None else ties}
        given["weights of internal guidance"] = weights
        for name, rows in given.items():
            if len(rows) != len(self):
                raise InputError(f"the {name} have {len(rows)} rows: give one for each row of the session, {len(self)}")
        if internal is not None and not 1 <= internal.layer < self.denoiser.depth:
            raise InputError(
                f"internal guidance by layer {internal.layer}: choose one of the layers 1 to {self.denoiser.depth - 1}"
            )
        return self._predict(inputs, steps, policy, ties, return_uncertainties, internal)

    @abstractmethod
    def _predict(
        self,
        inputs: Inputs,
        steps: Tensor,
        policy: ExitPolicy,
        ties: Tensor | None,
        return_uncertainties: bool,
        internal: InternalWeights | None,
    ) -> Prediction:
        """Predict as `predict` says; the numbers of rows are equal."""

    def select(self, rows: Tensor) -> Self:
        """Return a session of some rows, with what is remembered of them; `rows` are positions, (selected,) int64."""
        return self._with(self.memory.select(rows))

    def join(self, other: Self) -> Self:
        """Return a session of these rows, followed by those of another session of the same denoiser.

        Raises:
            InputError: If the other session is one of another denoiser.
        """
        if other.denoiser is not self.denoiser:
            raise InputError("the sessions belong to two denoisers: join sessions of one denoiser")
        return self._with(self.memory.join(other.memory))

    def clear(self, rows: Tensor) -> None:
        """Forget what is remembered of some rows, as for new samples; `rows` are positions, (cleared,) int64."""
        self.memory.clear(rows)

    def _with(self, memory: RowMemory) -> Self:
        session = copy.copy(self)
        session.memory = memory
        return session


class Denoiser(ABC):
    """What can predict the steps of samplings: a model with exits, or another method that saves compute."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of layers N of the full model."""

    @property
    @abstractmethod
    def part_flops(self) -> PartFlops:
        """FLOPs of each part of the full model, for one sample at one step."""

    @abstractmethod
    def session(self, rows: int) -> Session:
        """Begin samplings: return a session of `rows` rows of which nothing is remembered."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what the predictions depend on, as plain values that can be compared and stored."""
