"""Training losses (AdaDiff, sections 3.2 and 3.3), as functions on tensors.

Shapes: `predictions` and `uncertainties` are (layers, batch, channels, height, width), layer N last; `target`, the
noise or velocity that the model learns to predict, is (batch, channels, height, width).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

UalWeighting = Literal["detached", "normalized", "uniform", "index"]


def simple_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Compute L_simple = mean (prediction - target)^2 of the full model (DDPM, Ho et al. 2020, equation 14)."""
    return (prediction - target).square().mean()


def pseudo_uncertainty(predictions: Tensor, target: Tensor) -> Tensor:
    """Compute u*_i = tanh |g_i(L_i) - target|, in [0, 1), detached: the target of the uncertainty estimators."""
    return torch.tanh((predictions - target).abs()).detach()


def uncertainty_loss(uncertainties: Tensor, predictions: Tensor, target: Tensor) -> Tensor:
    """Compute the estimators' loss, L_u = mean_i mean (u_i - u*_i)^2, over all layers."""
    return (uncertainties - pseudo_uncertainty(predictions, target)).square().mean()


def layerwise_loss(
    predictions: Tensor, uncertainties: Tensor, target: Tensor, weighting: UalWeighting = "detached"
) -> Tensor:
    """Compute L_UAL, the uncertainty-aware layer-wise loss over layers 1..N-1, or a baseline's layer-wise loss.

    Args:
        predictions: Predictions of all layers, g_i(L_i).
        uncertainties: Uncertainties after all layers, u_i.
        target: The noise or velocity to predict.
        weighting: `"detached"`: mean_{i<N} (1 - mean u_i) * mean (g_i - target)^2, each sample with its own weight,
            which carries no gradient. `"normalized"`: the authors' released code; a layer's weight is its certainty
            averaged over the batch, divided by the sum over layers 1..N-1, and carries gradient. `"uniform"`: the
            unweighted sum over layers 1..N-1 (BERxiT, Xin et al. 2021). `"index"`: layer i has weight i / N, so that
            together with L_simple the weights are proportional to the layer number (CALM, Schuster et al. 2022).
    """
    errors = (predictions[:-1] - target).square().flatten(2).mean(2)  # (layers - 1, batch)
    if weighting == "uniform":
        return errors.mean(1).sum()
    if weighting == "index":
        return (torch.arange(1, len(predictions), device=errors.device) / len(predictions) * errors.mean(1)).sum()
    certainty = 1 - uncertainties[:-1].flatten(2).mean(2)  # (layers - 1, batch)
    if weighting == "detached":
        return (certainty.detach() * errors).mean()
    layer_certainty = certainty.mean(1)
    return (layer_certainty / layer_certainty.sum() * errors.mean(1)).sum()


@dataclass(frozen=True)
class JointLoss:
    """The joint loss and its three terms, as scalar tensors."""

    total: Tensor
    simple: Tensor
    uncertainty: Tensor
    layerwise: Tensor


def joint_loss(
    predictions: Tensor,
    uncertainties: Tensor,
    target: Tensor,
    uncertainty_weight: float = 1.0,
    layerwise_weight: float = 1.0,
    ual_weighting: UalWeighting = "detached",
) -> JointLoss:
    """Compute L = L_simple + lambda * L_u + beta * L_UAL; in the paper lambda = beta = 1.

    Args:
        predictions: Predictions of all layers, g_i(L_i).
        uncertainties: Uncertainties after all layers, u_i.
        target: The noise or velocity to predict.
        uncertainty_weight: lambda.
        layerwise_weight: beta.
        ual_weighting: Layer weights in L_UAL, as `layerwise_loss` takes them.
    """
    simple = simple_loss(predictions[-1], target)
    uncertainty = uncertainty_loss(uncertainties, predictions, target)
    layerwise = layerwise_loss(predictions, uncertainties, target, ual_weighting)
    total = simple + uncertainty_weight * uncertainty + layerwise_weight * layerwise
    return JointLoss(total, simple, uncertainty, layerwise)
