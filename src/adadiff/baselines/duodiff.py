"""DuoDiff: a shallow network for the first steps, the full one afterwards (Fernández et al. 2024, arXiv 2410.09633)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adadiff.baselines.base import Baseline, BaselineSession
from adadiff.exits import AdaptiveModel
from adadiff.runtime import Inputs
from adadiff.utils.errors import InputError


class DuoDiff(Baseline):
    """Samples with a shallow network at the first steps and with the full one at the others.

    Args:
        model: The full network.
        shallow: A network of fewer layers, trained for the same task.
        switch: The first step, counted from 0, that the full network predicts.

    Raises:
        InputError: If the networks are not for the same task, or the step is negative.
    """

    def __init__(self, model: AdaptiveModel, shallow: AdaptiveModel, switch: int) -> None:
        super().__init__(model)
        if _task(model) != _task(shallow):
            raise InputError("the shallow network is for other images or conditions than the full one")
        if switch < 0:
            raise InputError(f"the switch is at step {switch}: it must be at least 0")
        self.shallow, self.switch = shallow, switch

    def settings(self) -> dict[str, Any]:
        return {"switch": self.switch, "shallow": self.shallow.identity()}

    def session(self, rows: int) -> DuoDiffSession:
        """Begin samplings: return a session of `rows` rows."""
        self.shallow.to(self.model.device)  # pipelines move the full network alone
        return DuoDiffSession(self, rows)


class DuoDiffSession(BaselineSession):
    """Predicts each row with the network of its step; nothing is remembered."""

    denoiser: DuoDiff

    def run(self, inputs: Inputs, steps: Tensor, ties: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        early = steps < self.denoiser.switch  # (batch,)
        sample = torch.empty_like(inputs.sample)
        layers_run, flops = torch.empty_like(steps), torch.empty_like(steps)
        for network, mask in ((self.denoiser.shallow, early), (self.denoiser.model, ~early)):
            places = mask.nonzero().squeeze(1).to(sample.device)
            if len(places):
                chosen = inputs.select(places)
                sample[places] = network(chosen.sample, chosen.timestep, **chosen.conditions).sample
            layers_run[mask], flops[mask] = network.depth, network.part_flops.full
        return sample, layers_run, flops


def _task(model: AdaptiveModel) -> tuple[Any, ...]:
    backbone = model.backbone
    return backbone.in_channels, backbone.sample_size, backbone.num_classes, backbone.context_shape
