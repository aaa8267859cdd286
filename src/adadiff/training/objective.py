"""The training objective: it maps a batch of the training stream to the joint loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from adadiff.conditioning import TextEncoder
from adadiff.exits import AdaptiveModel
from adadiff.exits.losses import JointLoss, joint_loss
from adadiff.training.config import LossConfig


@dataclass(frozen=True)
class Objective:
    """The joint loss of a batch, with per-layer statistics for logging.

    Args:
        loss: The joint loss and its terms.
        layer_errors: Mean squared error of each layer's prediction, (N,), detached.
        layer_uncertainties: Mean uncertainty after each layer, (N,), detached.
    """

    loss: JointLoss
    layer_errors: Tensor
    layer_uncertainties: Tensor


class JointObjective(nn.Module):
    """Adds noise to a batch, runs every exit, and computes the joint loss.

    Args:
        model: The model to train.
        scheduler: Defines the forward process and the quantity that the model predicts.
        config: Weights of the loss terms.
        text_encoder: The text encoder to train with the model, if captions come as tokens.
    """

    def __init__(
        self,
        model: AdaptiveModel,
        scheduler: DDPMScheduler,
        config: LossConfig,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        self.model, self.scheduler, self.config, self.text_encoder = model, scheduler, config, text_encoder

    def forward(
        self,
        image: Tensor,
        noise: Tensor,
        time: Tensor,
        class_labels: Tensor | None = None,
        tokens: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        step: int = 0,
    ) -> Objective:
        """Compute the joint loss of a batch.

        Args:
            image: Images x_0 in [-1, 1], or latents, (batch, channels, height, width).
            noise: The noise eps, shaped like x_0.
            time: Uniform in [0, 1), (batch,); its fraction of the number of time steps is the time step.
            class_labels: Class of each sample, (batch,) int64, if the model takes classes.
            tokens: Tokens of the captions, (batch, length) int64, if the text encoder is trained.
            encoder_hidden_states: Text features, (batch, context_length, context_dim), if the text encoder is frozen.
            step: Optimizer step, counted from 0.
        """
        timesteps = (time * self.scheduler.config.num_train_timesteps).long()
        noisy = self.scheduler.add_noise(image, noise, timesteps)
        target = training_target(self.scheduler, image, noise, timesteps)
        if tokens is not None:
            assert self.text_encoder is not None
            encoder_hidden_states = self.text_encoder(tokens)
        predictions, uncertainties = self.model.all_exits(noisy, timesteps, class_labels, encoder_hidden_states)
        predictions, uncertainties = predictions.float(), uncertainties.float()
        left_out = self.config.alternating and step % 2 == 0
        loss = joint_loss(
            predictions,
            uncertainties,
            target,
            self.config.uncertainty_weight,
            0.0 if left_out else self.config.layerwise_weight,
            self.config.ual_weighting,
        )
        with torch.no_grad():
            layer_errors = (predictions - target).square().flatten(1).mean(1)  # (N,)
            layer_uncertainties = uncertainties.flatten(1).mean(1)
        return Objective(loss, layer_errors, layer_uncertainties)


def training_target(scheduler: DDPMScheduler, image: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return the target of the prediction, the noise or the velocity: (batch, channels, height, width)."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(image, noise, timesteps)
    return noise
