"""AdaptiveModel: a backbone with an exit after every layer.

Training runs all layers and every exit (`all_exits`). Sampling lets each sample exit on its own (`forward`): when the
policy decides that a sample exits, the head of that layer makes its prediction, the sample is dropped from the batch,
and the remaining samples run the next layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401 - diffusers looks for the base class here when it loads a pipeline
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from adadiff.backbones import BACKBONES, Backbone, LayerState
from adadiff.exits.flops import PartFlops, count_part_flops
from adadiff.exits.heads import HEADS
from adadiff.exits.uncertainty import ESTIMATORS, build_estimators
from adadiff.policies import ExitPolicy, ExitQuery, NeverExit
from adadiff.runtime.corrections import Corrections
from adadiff.utils.errors import InputError, lookup
from adadiff.utils.fingerprints import model_fingerprint
from adadiff.utils.verified import VerifiedModel


@dataclass
class AdaptiveOutput(BaseOutput):
    """The output of `AdaptiveModel`: predictions, and for each sample its exit layer, uncertainties and FLOPs.

    Args:
        sample: Predictions, (batch, channels, height, width).
        exit_layers: The layer each sample exited after, (batch,) int64 in 1..N, on the CPU.
        uncertainties: Mean uncertainty of each sample after each layer, (batch, N) float32 on the CPU; NaN where no
            estimator ran.
        flops: FLOPs spent on each sample, (batch,) int64, on the CPU.
    """

    sample: Tensor
    exit_layers: Tensor
    uncertainties: Tensor
    flops: Tensor


class AdaptiveModel(VerifiedModel):
    """A denoiser with an exit after every layer; without a policy it runs all layers, like any diffusers denoiser.

    Args:
        sample_size: Side of the square image, or its height and width, in pixels.
        in_channels: Channels of the image.
        out_channels: Channels of the prediction; must equal `in_channels`. diffusers' pipelines read it in the config.
        backbone_type: Kind of backbone, a key of `adadiff.backbones.BACKBONES`.
        backbone_config: The backbone's other settings: further arguments of its class.
        head_type: Output heads g_i: `"shared"` or `"per_layer"`.
        estimator_type: Uncertainty estimators u_i: `"concat"`, `"token"`, `"attention"`, `"shared_token"` (BERxiT) or
            `"saturation"` (CALM).
        class_names: Names of classes 0, 1, ..., if the model takes classes and they have names.
        null_class: The class that stands for "no class", if the model was trained with one.

    Raises:
        InputError: If a name is unknown or the sizes do not fit together.

    Examples:
        >>> import torch
        >>> from adadiff.policies import FixedExit
        >>> small = {"patch_size": 4, "width": 32, "depth": 3, "num_heads": 2}
        >>> model = AdaptiveModel(sample_size=8, in_channels=1, backbone_config=small).eval()
        >>> with torch.no_grad():
        ...     output = model(torch.zeros(2, 1, 8, 8), timestep=10, policy=FixedExit(1))
        >>> output.sample.shape
        torch.Size([2, 1, 8, 8])
        >>> output.exit_layers
        tensor([1, 1])
    """

    _supports_gradient_checkpointing = True
    backbone: Backbone[Any]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int | None = None,
        backbone_type: str = "uvit",
        backbone_config: dict[str, Any] | None = None,
        head_type: str = "shared",
        estimator_type: str = "concat",
        class_names: list[str] | None = None,
        null_class: int | None = None,
    ) -> None:
        super().__init__()
        if out_channels not in (None, in_channels):
            raise InputError(f"out_channels is {out_channels}: it must be in_channels, {in_channels}")
        self.register_to_config(out_channels=in_channels)
        size = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
        backbone_class = lookup(backbone_type, BACKBONES, "backbone")
        self.backbone = backbone_class(sample_size=size, in_channels=in_channels, **(backbone_config or {}))
        self.heads = lookup(head_type, HEADS, "head")(self.backbone)
        self.estimators = build_estimators(lookup(estimator_type, ESTIMATORS, "estimator"), self.backbone)

    @property
    def depth(self) -> int:
        """Number of layers N."""
        return self.backbone.depth

    @property
    def class_indices(self) -> tuple[int, ...]:
        """The classes that can be sampled, without the null class; empty if the model takes no classes."""
        return tuple(k for k in range(self.backbone.num_classes or 0) if k != self.config.null_class)

    @cached_property
    def part_flops(self) -> PartFlops:
        """FLOPs of each part of the model, for one sample."""
        return count_part_flops(self)

    def trajectory(self) -> Callable[..., AdaptiveOutput]:
        """Return a function that predicts the steps of one sampling run and keeps its corrections between them.

        The model itself keeps no state between calls.
        """
        return partial(self.__call__, corrections=Corrections())

    def identity(self) -> dict[str, Any]:
        """Return what the predictions depend on, a fingerprint of the weights and configuration, as plain values."""
        return {"fingerprint": model_fingerprint(self)}

    def start_from(self, backbone: Backbone[Any]) -> None:
        """Copy a trained backbone's weights; reset per-layer heads to copies of its head.

        Raises:
            RuntimeError: If the sizes differ.
        """
        self.backbone.load_state_dict(backbone.state_dict())
        self.heads = HEADS[self.config.head_type](self.backbone)

    def predict(self, i: int, state: LayerState) -> Tensor:
        """Compute g_i(L_i), the prediction after layer i: (batch, channels, height, width)."""
        return self.heads(i, self.backbone.patch_tokens(state), self.backbone.head)

    def uncertainty(self, i: int, state: LayerState, before: LayerState) -> Tensor:
        """Estimate u_i, the uncertainty after layer i, from the states after and before it.

        Tokens and time embedding are detached, so that the estimators never train the backbone.

        Returns:
            (batch, patches, patch values) in [0, 1].
        """
        tokens, previous = (self.backbone.patch_tokens(each).detach() for each in (state, before))
        return self.estimators[(i - 1) % len(self.estimators)](tokens, state.time.detach(), previous)

    def all_exits(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the prediction and the uncertainty of every layer, for training.

        Args:
            sample: Noisy images x_t, (batch, channels, height, width).
            timestep: Time step of each sample, (batch,).
            class_labels: Class of each sample, (batch,) int64, if the model takes classes.
            encoder_hidden_states: Text features, (batch, context_length, context_dim), if the model takes text.

        Returns:
            Predictions and uncertainties, each (N, batch, channels, height, width).
        """
        state = self.backbone.embed(sample, timestep, class_labels, encoder_hidden_states)
        predictions, uncertainties = [], []
        for i in range(1, self.depth + 1):
            before, state = state, self.backbone.layer(i, state)
            predictions.append(self.predict(i, state))
            uncertainties.append(self.backbone.unpatchify(self.uncertainty(i, state, before)))
        return torch.stack(predictions), torch.stack(uncertainties)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        policy: ExitPolicy | None = None,
        step: int = 0,
        return_uncertainties: bool = False,
        tied_halves: bool = False,
        corrections: Corrections | None = None,
        return_dict: bool = True,
    ) -> AdaptiveOutput | tuple[Tensor, ...]:
        """Predict, with each sample exiting after the layer that the policy decides.

        Args:
            sample: Noisy images x_t, (batch, channels, height, width).
            timestep: Time step, one for the whole batch or one per sample, (batch,).
            class_labels: Class of each sample, (batch,) int64, if the model takes classes.
            encoder_hidden_states: Text features, (batch, context_length, context_dim), if the model takes text.
            policy: The exit policy; by default no sample exits early.
            step: Sampling step, counted from 0, for policies that depend on it.
            return_uncertainties: Run the estimator after every layer, for all samples that have not exited.
            tied_halves: Tie sample k of the batch's first half to sample k of its second half: they exit together,
                after the first layer where the policy lets both exit.
            corrections: Corrections measured at earlier steps of this batch, updated in place; by default none.
            return_dict: Whether to return an `AdaptiveOutput` or a tuple of its fields.

        Raises:
            InputError: If the shapes or conditions do not fit the model.
        """
        policy, corrections = policy or NeverExit(), corrections or Corrections()
        if corrections.are_lost(len(sample)):
            policy = policy.without_corrections(step, self.depth)
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        reads = [return_uncertainties or policy.reads_uncertainty(step, i) for i in range(1, self.depth)]
        estimated = torch.tensor([*reads, return_uncertainties])

        prediction = torch.empty_like(sample)
        exit_layers = torch.full((len(sample),), self.depth)  # (batch,)
        uncertainties = torch.full((len(sample), self.depth), torch.nan)  # (batch, N)
        remaining, history = torch.arange(len(sample)), uncertainties.clone()
        corrected = policy.corrected_layers(step, self.depth)
        read_off: dict[int, Tensor] = {}  # by layer to be corrected: predictions of the remaining samples

        state = self.backbone.embed(sample, timestep, class_labels, encoder_hidden_states)
        for i in range(1, self.depth + 1):
            before, state = state, self.backbone.layer(i, state)
            if estimated[i - 1]:
                history[:, i - 1] = self.uncertainty(i, state, before).mean((1, 2), dtype=torch.float32)
            if i == self.depth:
                leaving = torch.ones(len(remaining), dtype=torch.bool)
            else:
                leaving = policy.leaves(ExitQuery(step, i, remaining, history[:, :i]))
                if tied_halves:
                    leaving = leaving.unflatten(0, (2, -1)).all(0).repeat(2)
            if leaving.any():
                leavers, everybody = remaining[leaving], bool(leaving.all())
                left_state = state if everybody else state.select(_positions(leaving, sample.device))
                places = leavers.to(sample.device)
                left = self.predict(i, left_state)
                if i < self.depth:
                    left = corrections.correct(i, step, len(sample), places, left)
                prediction[places] = left.to(prediction.dtype)
                exit_layers[leavers], uncertainties[leavers] = i, history[leaving]
                if everybody:
                    break
                remaining, history = remaining[~leaving], history[~leaving]
                staying = _positions(~leaving, sample.device)
                state = state.select(staying)
                read_off = {layer: early[staying] for layer, early in read_off.items()}
            if i in corrected:
                read_off[i] = self.predict(i, state)
        for layer, early in read_off.items() if i == self.depth else ():
            corrections.measure(layer, step, len(sample), places, left - early)

        flops = self.part_flops.until_exit(exit_layers, estimated, corrected)
        output = AdaptiveOutput(prediction, exit_layers, uncertainties, flops)
        return output if return_dict else output.to_tuple()


def _positions(mask: Tensor, device: torch.device) -> Tensor:
    return mask.nonzero().squeeze(1).to(device)
