"""What stands in a model's place in a pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from adadiff.backbones import Backbone
from adadiff.errors import InputError
from adadiff.exits import AdaptiveModel, AdaptiveOutput, ExitPolicy, NeverExit
from adadiff.exits.flops import PartFlops

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""What `Backbone.embed` takes: samples, (batch,) time steps, class labels, text features."""


class Trajectory(ABC):
    """Predicts the steps of one sampling, one after the other, and keeps what is kept between them."""

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
        """Predict a step; called as `AdaptiveModel` is, but without exits and estimators.

        Raises:
            InputError: If samples shall leave early.
        """
        if not isinstance(policy, NeverExit | None):
            raise InputError("this method has no exits: leave tau and the policy out")
        inputs = (sample, timestep.expand(len(sample)), class_labels, encoder_hidden_states)
        return self.predict(inputs, step, tied_halves)

    @abstractmethod
    def predict(self, inputs: Inputs, step: int, tied_halves: bool) -> AdaptiveOutput:
        """The same with the inputs in one."""


class Rival(nn.Module, ABC):
    """A trained model that is run in another way.

    Args:
        model: The trained model; what a pipeline asks of it, it is told here too.
    """

    model: AdaptiveModel

    def __init__(self, model: AdaptiveModel) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def trajectory(self) -> Trajectory:
        """What predicts the steps of one sampling; all that must be kept between them is kept there."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What this rival was made with, as plain values."""

    def identity(self) -> dict[str, Any]:
        """What the predictions depend on, as plain values."""
        return {"rival": type(self).__name__, **self.settings(), "model": self.model.identity()}

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
    """The output of a rival that has run so many layers for each sample, and no estimator."""
    unknown = torch.full((len(prediction), depth), torch.nan)
    return AdaptiveOutput(prediction, layers_run, unknown, flops)
