"""DuoDiff: a shallow network for the first steps, the full one after (Fernández et al. 2024, arXiv 2410.09633)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adadiff.errors import InputError
from adadiff.exits import AdaptiveModel, AdaptiveOutput, ExitPolicy
from adadiff.rivals.base import Rival, Trajectory, full_output, require_no_exits


class DuoDiff(Rival):
    """Two networks for one sampling.

    Args:
        model: The full network.
        shallow: Of fewer layers, trained for the same task.
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
        return self._predict

    def _predict(
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
        require_no_exits("DuoDiff", policy)
        network = self.shallow if step < self.switch else self.model
        output = network(sample, timestep, class_labels, encoder_hidden_states, step=step)
        assert isinstance(output, AdaptiveOutput)
        return full_output(output.sample, output.exit_layers, output.flops, self.depth)


def _task(model: AdaptiveModel) -> tuple[Any, ...]:
    backbone = model.backbone
    return backbone.in_channels, backbone.sample_size, backbone.num_classes, backbone.context_shape
