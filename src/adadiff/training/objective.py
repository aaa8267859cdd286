"""From a batch of the training stream to the joint loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

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
    """

    def __init__(self, model: AdaptiveModel, scheduler: DDPMScheduler, config: LossConfig) -> None:
        super().__init__()
        self.model, self.scheduler, self.config = model, scheduler, config

    def forward(self, images: Tensor, noise: Tensor, time: Tensor) -> Objective:
        """Take the loss.

        Args:
            images: x_0 in [-1, 1], (batch, channels, height, width).
            noise: eps, shaped like the images.
            time: Uniform in [0, 1), (batch,): which of the time steps.
        """
        timesteps = (time * self.scheduler.config.num_train_timesteps).long()
        noisy = self.scheduler.add_noise(images, noise, timesteps)
        if self.scheduler.config.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(images, noise, timesteps)
        else:
            target = noise
        predictions, uncertainties = self.model.all_exits(noisy, timesteps)
        predictions, uncertainties = predictions.float(), uncertainties.float()
        loss = joint_loss(
            predictions,
            uncertainties,
            target,
            self.config.uncertainty_weight,
            self.config.layerwise_weight,
            self.config.ual_weighting,
        )
        with torch.no_grad():
            layer_errors = (predictions - target).square().flatten(1).mean(1)
            layer_uncertainties = uncertainties.flatten(1).mean(1)
        return Objective(loss, layer_errors, layer_uncertainties)
