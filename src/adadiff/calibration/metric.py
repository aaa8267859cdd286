"""Losses of adaptive images against the full model's, one an image in [0, 1]."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from adadiff.errors import InputError

Metric = Callable[[Tensor, Tensor], Tensor]
"""From the full and the adaptive images, (batch, channels, height, width) in [0, 1], to losses, (batch,) in [0, 1]."""

SQUARED_ERROR = "squared error over the variance"


def normalised_squared_error(images: Tensor) -> Metric:
    """Mean squared difference over the variance of such images, at most 1, which is worse than a grey image is.

    Args:
        images: From which the variance is taken, (samples, channels, height, width).
    """
    variance = images.var(0, correction=0).mean().item()

    def metric(full: Tensor, adaptive: Tensor) -> Tensor:
        return ((full - adaptive).square().flatten(1).mean(1) / variance).clamp(max=1)

    return metric


def losses_by(metric: Metric, full: Tensor, adaptive: Tensor) -> Tensor:
    """What a metric says of pairs of images, (samples,) float64.

    Raises:
        InputError: If that is not one loss an image in [0, 1], which the bound holds for.
    """
    if not callable(metric):
        raise InputError(f"the metric is {metric!r}: give a function of two batches of images")
    losses = torch.as_tensor(metric(full, adaptive)).double().cpu()
    if losses.shape != (len(full),):
        raise InputError(f"the metric gave {tuple(losses.shape)} losses for {len(full)} images: give one an image")
    if not ((losses >= 0) & (losses <= 1)).all():
        low, high = losses.min().item(), losses.max().item()
        raise InputError(f"the metric gave losses from {low:.3g} to {high:.3g}: bring them between 0 and 1")
    return losses


def metric_name(metric: Metric) -> str:
    """Name a metric: a function as it is imported, any other callable by its `repr`."""
    return f"{metric.__module__}:{metric.__qualname__}" if inspect.isfunction(metric) else repr(metric)
