"""Metrics: the loss of each adaptive image against the full model's image, in [0, 1]."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from adadiff.utils.errors import InputError

Metric = Callable[[Tensor, Tensor], Tensor]
"""A function of full and adaptive images, (batch, channels, height, width) in [0, 1], that returns (batch,) losses.

The losses are in [0, 1] too.
"""

SQUARED_ERROR = "squared error over the variance"


def normalised_squared_error(images: Tensor) -> Metric:
    """Return a metric: the mean squared difference over the variance of the images, clipped at 1.

    Replacing every image by the mean image has an average loss of 1 before clipping.

    Args:
        images: The images whose variance is used, (samples, channels, height, width).
    """
    variance = images.var(0, correction=0).mean().item()

    def metric(full: Tensor, adaptive: Tensor) -> Tensor:
        return ((full - adaptive).square().flatten(1).mean(1) / variance).clamp(max=1)

    return metric


def losses_by(metric: Metric, full: Tensor, adaptive: Tensor) -> Tensor:
    """Compute the metric on pairs of images: (samples,) float64.

    Raises:
        InputError: If the result is not one loss per image in [0, 1], as the bound on the error requires.
    """
    if not callable(metric):
        raise InputError(f"the metric is {metric!r}: give a function of two batches of images")
    losses = torch.as_tensor(metric(full, adaptive)).double().cpu()
    if losses.shape != (len(full),):
        raise InputError(f"the metric gave {tuple(losses.shape)} losses for {len(full)} images: give one per image")
    if not ((losses >= 0) & (losses <= 1)).all():
        low, high = losses.min().item(), losses.max().item()
        raise InputError(f"the metric gave losses from {low:.3g} to {high:.3g}: bring them between 0 and 1")
    return losses


def metric_name(metric: Metric) -> str:
    """Return the name of a metric: `module:name` of a function, the `repr` of any other callable."""
    return f"{metric.__module__}:{metric.__qualname__}" if inspect.isfunction(metric) else repr(metric)
