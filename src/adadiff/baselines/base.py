"""Base classes of baselines: denoisers that run a trained model in another way."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from adadiff.exits import AdaptiveModel
from adadiff.policies import ExitPolicy, NeverExit
from adadiff.runtime import Denoiser, Inputs, InternalWeights, PartFlops, Prediction, Session
from adadiff.utils.errors import InputError


class Baseline(Denoiser):
    """Runs a trained model in another way; a baseline has no exits.

    Args:
        model: The trained model.
    """

    def __init__(self, model: AdaptiveModel) -> None:
        self.model = model

    @property
    def depth(self) -> int:
        """Number of layers N of the model."""
        return self.model.depth

    @property
    def part_flops(self) -> PartFlops:
        """FLOPs of each part of the model, for one sample at one step."""
        return self.model.part_flops

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings of this baseline as plain values."""

    def identity(self) -> dict[str, Any]:
        """Return what the predictions depend on, as plain values."""
        return {"baseline": type(self).__name__, **self.settings(), "model": self.model.identity()}


class BaselineSession(Session):
    """Runs samplings with a baseline; a subclass says how a step is predicted."""

    def _predict(
        self,
        inputs: Inputs,
        steps: Tensor,
        policy: ExitPolicy,
        ties: Tensor | None,
        return_uncertainties: bool,
        internal: InternalWeights | None,
    ) -> Prediction:
        if not isinstance(policy, NeverExit) or internal is not None:
            raise InputError("this method has no exits: leave tau, the policy and internal guidance out")
        sample, layers_run, flops = self.run(inputs, steps, ties)
        unknown = torch.full((len(inputs), self.denoiser.depth), torch.nan)
        return Prediction(sample, layers_run, unknown, flops)

    @abstractmethod
    def run(self, inputs: Inputs, steps: Tensor, ties: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Predict one step of every row, and remember what later steps need.

        Args:
            inputs: The inputs, one row for each row of the session.
            steps: The step of each row, counted from 0, (batch,) int64.
            ties: Groups of rows that run the same layers, (batch,) int64, or None.

        Returns:
            Predictions, (batch, channels, height, width), with the number of layers run and the FLOPs spent on each
            row, (batch,) int64 on the CPU.
        """
