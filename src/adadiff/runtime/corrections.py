"""Corrections of early exits, measured at full steps and extrapolated to later ones.

What the later layers add to the prediction of layer i, g_N(L_N) - g_i(L_i), changes little from step to step. It is
measured at steps where a sample runs all layers; at later steps where the sample exits after layer i, it is linearly
extrapolated from the last two measurements and added to g_i(L_i).

Related work caches hidden tokens: deep layers' outputs are reused (`baselines/caching.py`) or extrapolated (TaylorSeer,
Liu et al., ICCV 2025, arXiv 2503.06923). Here the prediction itself is corrected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Measured:
    """The last two corrections of each sample after one layer, and the steps they were measured at.

    Args:
        last: The latest correction, (batch, channels, height, width).
        before: The correction before it, of the same shape.
        step: Step of the latest, (batch,) int64; -1 if there is none.
        step_before: Step of the one before, (batch,) int64; -1 if there is none.
    """

    last: Tensor
    before: Tensor
    step: Tensor
    step_before: Tensor


class Corrections:
    """Corrections of the samples of one batch, addressed by position in the batch; one object per sampling run."""

    def __init__(self) -> None:
        self._measured: dict[int, _Measured] = {}

    def are_lost(self, batch: int) -> bool:
        """Return whether corrections exist but belong to a batch of another size, as when guidance begins or ends."""
        return any(len(known.last) != batch for known in self._measured.values())

    def measure(self, layer: int, step: int, batch: int, samples: Tensor, correction: Tensor) -> None:
        """Record the final prediction minus the prediction after `layer`, for samples that ran all layers.

        Args:
            layer: The early layer, 1..N-1.
            step: Sampling step, counted from 0.
            batch: Size of the whole batch; if it differs from earlier calls, earlier corrections are discarded.
            samples: Positions in the batch of the measured samples, (measured,) int64.
            correction: The differences, (measured, channels, height, width).
        """
        if self.are_lost(batch):
            self._measured.clear()
        known = self._measured.get(layer)
        if known is None:
            nothing = torch.zeros(batch, *correction.shape[1:], device=correction.device)
            never = torch.full((batch,), -1, device=correction.device)
            known = self._measured[layer] = _Measured(nothing, nothing.clone(), never, never.clone())
        known.before[samples], known.step_before[samples] = known.last[samples], known.step[samples]
        known.last[samples], known.step[samples] = correction.float(), torch.full_like(known.step[samples], step)

    def correct(self, layer: int, step: int, batch: int, samples: Tensor, prediction: Tensor) -> Tensor:
        """Return the predictions after `layer` plus their extrapolated corrections; 0 for samples without any.

        Args:
            layer: The exit layer, 1..N-1.
            step: Sampling step, counted from 0.
            batch: Size of the whole batch.
            samples: Positions in the batch of the exiting samples, (leaving,) int64.
            prediction: Their predictions, (leaving, channels, height, width).
        """
        known = self._measured.get(layer)
        if known is None or len(known.last) != batch:
            return prediction
        last, before = known.last[samples], known.before[samples]
        measured, measured_before = known.step[samples], known.step_before[samples]
        before = torch.where(_over(measured_before >= 0, before), before, last)
        gap = _over(step - measured, last)
        gap_before = _over(measured - measured_before, last).clamp(min=1)
        return prediction + last + gap / gap_before * (last - before)  # `last` is 0 if nothing was measured


def _over(values: Tensor, images: Tensor) -> Tensor:
    """Reshape (batch,) values to (batch, 1, 1, 1), so that they broadcast over the images."""
    return values.view(-1, *[1] * (images.dim() - 1))
