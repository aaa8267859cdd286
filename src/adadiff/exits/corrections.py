"""Corrections of early exits: what the layers after an exit add to its prediction changes little from step to step.

So it is measured at the steps where a sample runs all layers, g_N(L_N) - g_i(L_i), and added to g_i(L_i) where the
sample leaves after layer i at later steps, continued along a line. Caches add what deep layers did before to hidden
tokens (`rivals/caching.py`), and TaylorSeer (Liu et al., ICCV 2025, arXiv 2503.06923) continues these; here it is the
prediction itself that is corrected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Measured:
    """The last two corrections of each sample after one layer, (batch, ...), and at which steps; -1 for none."""

    last: Tensor
    before: Tensor
    step: Tensor
    step_before: Tensor


class Corrections:
    """Those of one sampling's batch, measured and asked for by the samples' positions in it."""

    def __init__(self) -> None:
        self._measured: dict[int, _Measured] = {}

    def are_lost(self, batch: int) -> bool:
        """Whether some were measured, but for a batch of another size: guidance begins or ends."""
        return any(len(known.last) != batch for known in self._measured.values())

    def measure(self, layer: int, step: int, batch: int, samples: Tensor, correction: Tensor) -> None:
        """Note what going on to the last layer added to the prediction read off after `layer`.

        Args:
            layer: 1..N-1.
            step: Sampling step, counted from 0.
            batch: Size of the whole batch; where it is another than before, what was known is lost.
            samples: Positions in it of those that are measured, (measured,) int64.
            correction: (measured, channels, height, width).
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
        """Predictions read off after `layer` with their corrections; those of which nothing is known stay as they are.

        Args:
            layer: 1..N-1.
            step: Sampling step, counted from 0.
            batch: Size of the whole batch.
            samples: Positions in it, (leaving,) int64.
            prediction: (leaving, channels, height, width).
        """
        known = self._measured.get(layer)
        if known is None or len(known.last) != batch:
            return prediction
        last, before = known.last[samples], known.before[samples]
        measured, measured_before = known.step[samples], known.step_before[samples]
        before = torch.where(_over(measured_before >= 0, before), before, last)
        gap = _over(step - measured, last)
        gap_before = _over(measured - measured_before, last).clamp(min=1)
        return prediction + last + gap / gap_before * (last - before)  # 0 where nothing was measured


def _over(values: Tensor, images: Tensor) -> Tensor:
    """One value an image, shaped to go with the images."""
    return values.view(-1, *[1] * (images.dim() - 1))
