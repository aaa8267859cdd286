"""AdaptiveModel: a backbone with an exit after every layer.

Training runs all layers and every exit (`all_exits`). Called as it is, the model runs all layers like any denoiser of
diffusers (`forward`). A session of it (`runtime/exits.py`) runs it under an exit policy.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from diffusers import ModelMixin  # noqa: F401 - diffusers looks for the base class here when it loads a pipeline
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from adadiff.backbones import Backbone, LayerState, backbone_named
from adadiff.exits.flops import count_part_flops
from adadiff.exits.heads import HEADS
from adadiff.exits.uncertainty import ESTIMATORS, build_estimators
from adadiff.runtime import ExitNetwork, PartFlops
from adadiff.utils.errors import InputError, lookup
from adadiff.utils.fingerprints import model_fingerprint
from adadiff.utils.verified import VerifiedModel


class AdaptiveModel(VerifiedModel, ExitNetwork):
    """A diffusers denoiser with an exit after every layer: a call runs all layers, a session exits by a policy.

    Args:
        sample_size: Side of the square image, or its height and width, in pixels.
        in_channels: Channels of the image.
        out_channels: Channels of the prediction; must equal `in_channels`. diffusers' pipelines read it in the config.
        backbone_type: Kind of backbone, a key of `adadiff.backbones.BACKBONES`.
        backbone_config: The backbone's other settings: fields of its class's `Config` and of `InputSpec`.
        head_type: Output heads g_i: `"shared"` or `"per_layer"`.
        estimator_type: Uncertainty estimators u_i: `"concat"`, `"token"`, `"attention"`, `"shared_token"` (BERxiT) or
            `"saturation"` (CALM).
        class_names: Names of classes 0, 1, ..., if the model takes classes and they have names.
        null_class: The class that stands for "no class", if the model was trained with one.

    Raises:
        InputError: If a name is unknown, a backbone's module was not imported, or the sizes do not fit together.

    Examples:
        >>> import torch
        >>> from adadiff.policies import FixedExit
        >>> from adadiff.runtime import Inputs
        >>> small = {"patch_size": 4, "width": 32, "depth": 3, "num_heads": 2}
        >>> model = AdaptiveModel(sample_size=8, in_channels=1, backbone_config=small).eval()
        >>> model(torch.zeros(2, 1, 8, 8), timestep=10).sample.shape
        torch.Size([2, 1, 8, 8])
        >>> inputs, steps = Inputs(torch.zeros(2, 1, 8, 8), timestep=torch.tensor([10, 10])), torch.tensor([0, 0])
        >>> model.session(2).predict(inputs, steps, FixedExit(1)).exit_layers
        tensor([1, 1])
    """

    _supports_gradient_checkpointing = True
    backbone: Backbone[Any]

    @register_to_config
    def __init__(
        self,
        *,  # diffusers takes arguments without names for default values when it rebuilds a model from its config
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
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        backbone_class = backbone_named(backbone_type)
        self.backbone = backbone_class.from_settings((height, width), in_channels, **(backbone_config or {}))
        self.heads = lookup(head_type, HEADS, "head")(self.backbone)
        self.estimators = build_estimators(lookup(estimator_type, ESTIMATORS, "estimator"), self.backbone)

    @property
    def class_indices(self) -> tuple[int, ...]:
        """The classes that can be sampled, without the null class; empty if the model takes no classes."""
        return tuple(k for k in range(self.backbone.num_classes or 0) if k != self.config.null_class)

    @cached_property
    def part_flops(self) -> PartFlops:
        """FLOPs of each part of the model, for one sample at one step."""
        with torch.device("meta"):
            twin = type(self).from_config(self.config)
        return count_part_flops(twin)

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
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict with all layers.

        Args:
            sample: Noisy images x_t, (batch, channels, height, width).
            timestep: Time step, one for the whole batch or one per sample, (batch,).
            class_labels: Class of each sample, (batch,) int64, if the model takes classes.
            encoder_hidden_states: Text features, (batch, context_length, context_dim), if the model takes text.
            return_dict: Whether to return an output whose `sample` is the prediction, or a tuple of it alone.

        Raises:
            InputError: If the shapes or conditions do not fit the model.
        """
        timestep = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        prediction = self.backbone(sample, timestep, class_labels, encoder_hidden_states)
        return Transformer2DModelOutput(prediction) if return_dict else (prediction,)
