"""DuoDiff: a shallow network for the first steps, the full one afterwards (Fernández et al. 2024, arXiv 2410.09633)."""

from __future__ import annotations

from typing import Any

from adadiff.baselines.base import Baseline, Inputs, Trajectory, full_output
from adadiff.exits import AdaptiveModel, AdaptiveOutput
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

    def trajectory(self) -> Trajectory:
        return _DuoTrajectory(self)


class _DuoTrajectory(Trajectory):
    def __init__(self, baseline: DuoDiff) -> None:
        self.baseline = baseline

    def predict(self, inputs: Inputs, step: int, tied_halves: bool) -> AdaptiveOutput:
        network = self.baseline.shallow if step < self.baseline.switch else self.baseline.model
        output = network(*inputs, step=step)
        assert isinstance(output, AdaptiveOutput)
        return full_output(output.sample, output.exit_layers, output.flops, self.baseline.depth)


def _task(model: AdaptiveModel) -> tuple[Any, ...]:
    backbone = model.backbone
    return backbone.in_channels, backbone.sample_size, backbone.num_classes, backbone.context_shape
