"""From a batch of the training stream to the joint loss."""

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
    """The loss of a batch, and what to watch.

    Args:
        loss: The joint loss and its terms.
        layer_errors: Mean squared error of each layer's prediction, (N,), detached.
        layer_uncertainties: Mean uncertainty after each layer, (N,), detached.
    """

    loss: JointLoss
    layer_errors: Tensor
    layer_uncertainties: Tensor


class JointObjective(nn.Module):
    """Noises a batch, runs every exit, and takes the joint loss.

    Args:
        model: What is trained.
        scheduler: The forward process and what the model predicts.
        config: The loss's weights.
        text_encoder: Trained with the model, where captions come as tokens.
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
        """Take the loss.

        Args:
            image: x_0, in [-1, 1] or a latent, (batch, channels, height, width).
            noise: eps, shaped like x_0.
            time: Uniform in [0, 1), (batch,): which of the time steps.
            class_labels: (batch,) int64, where the model takes classes.
            tokens: Captions for the text encoder that is trained, (batch, any) int64.
            encoder_hidden_states: Text features, where the text encoder is frozen.
            step: Which optimizer step this is, counted from 0.
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
            layer_errors = (predictions - target).square().flatten(1).mean(1)
            layer_uncertainties = uncertainties.flatten(1).mean(1)
        return Objective(loss, layer_errors, layer_uncertainties)


def training_target(scheduler: DDPMScheduler, image: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the model is to predict of such noisy images: the noise, or the velocity."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(image, noise, timesteps)
    return noise
