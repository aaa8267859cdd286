"""Base classes of baselines that replace the model in a pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from adadiff.backbones import Backbone
from adadiff.exits import AdaptiveModel, AdaptiveOutput
from adadiff.exits.flops import PartFlops
from adadiff.policies import ExitPolicy, NeverExit
from adadiff.utils.errors import InputError

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""The arguments of `Backbone.embed`: samples, (batch,) time steps, class labels, text features."""


class Trajectory(ABC):
    """Predicts the steps of one sampling run in order, and holds the state that is carried between steps."""

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        policy: ExitPolicy | None = None,
        step: int = 0,
        return_uncertainties: bool = False,
        tied_halves: bool = False,
    ) -> AdaptiveOutput:
        """Predict one step, with the arguments of `AdaptiveModel.forward`, but without exits and estimators.

        Raises:
            InputError: If the policy lets samples exit early.
        """
        if not isinstance(policy, NeverExit | None):
            raise InputError("this method has no exits: leave tau and the policy out")
        inputs = (sample, timestep.expand(len(sample)), class_labels, encoder_hidden_states)
        return self.predict(inputs, step, tied_halves)

    @abstractmethod
    def predict(self, inputs: Inputs, step: int, tied_halves: bool) -> AdaptiveOutput:
        """Predict one step from the inputs as a tuple.

        Args:
            inputs: Samples, time steps and conditions of the batch.
            step: Sampling step, counted from 0.
            tied_halves: Whether sample k of the first half has to run the layers of sample k of the second half.
        """


class Baseline(nn.Module, ABC):
    """Base class of baselines that run a trained model in another way.

    Args:
        model: The trained model; its attributes that a pipeline reads are available here too.
    """

    model: AdaptiveModel

    def __init__(self, model: AdaptiveModel) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def trajectory(self) -> Trajectory:
        """Return the object that predicts the steps of one sampling run and holds the state between them."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the settings of this baseline as plain values."""

    def identity(self) -> dict[str, Any]:
        """Return what the predictions depend on, as plain values."""
        return {"baseline": type(self).__name__, **self.settings(), "model": self.model.identity()}

    @property
    def backbone(self) -> Backbone[Any]:
        return self.model.backbone

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def depth(self) -> int:
        return self.model.depth

    @property
    def class_indices(self) -> tuple[int, ...]:
        return self.model.class_indices

    @property
    def part_flops(self) -> PartFlops:
        return self.model.part_flops


def full_output(prediction: Tensor, layers_run: Tensor, flops: Tensor, depth: int) -> AdaptiveOutput:
    """Build the output of a baseline from the layers run and FLOPs of each sample, (batch,); uncertainties are NaN."""
    unknown = torch.full((len(prediction), depth), torch.nan)
    return AdaptiveOutput(prediction, layers_run, unknown, flops)
