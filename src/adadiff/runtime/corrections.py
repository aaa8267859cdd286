"""Corrections of early exits, measured at full steps and extrapolated to later ones.

What the later layers add to the prediction of layer i, g_N(L_N) - g_i(L_i), changes little from step to step. It is
measured at steps where a sample runs all layers; at later steps where the sample exits after layer i, it is
extrapolated from the last three measurements (`runtime/extrapolation.py`) and added to g_i(L_i). With g_0 = 0 this
includes not running the network at all: the full predictions themselves are extrapolated.

Related work caches hidden tokens: deep layers' outputs are reused (`baselines/caching.py`) or extrapolated (TaylorSeer,
Liu et al., ICCV 2025, arXiv 2503.06923). Here the prediction itself is corrected.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adadiff.runtime.extrapolation import change_factors
from adadiff.runtime.memory import RowMemory
from adadiff.runtime.rules import at_rows

MEASUREMENTS = ("last", "before", "earlier")


class Corrections:
    """Measures and applies the corrections of a session's rows, each row by its own steps.

    For each layer the memory holds a row's last three corrections, (rows, channels, height, width) float32, and the
    steps they were measured at, (rows, 3) int64 on the CPU, the last one first, -1 where there is none.

    Args:
        memory: The session's memory, where they are kept.
    """

    def __init__(self, memory: RowMemory) -> None:
        self.memory = memory

    def exist(self) -> Tensor:
        """Return for which rows any correction was measured, (rows,) bool."""
        return self.memory.tensor("corrected", (), torch.bool)

    def known(self, layer: int) -> bool:
        """Return whether a correction of `layer` was measured for any row."""
        return f"{layer}: steps" in self.memory

    def of_layer(self, layer: int, rows: Tensor) -> Tensor:
        """Return for which rows, (selected,) int64, a correction of `layer` was measured, (selected,) bool."""
        return (
            self.memory[f"{layer}: steps"][rows, 0] >= 0
            if self.known(layer)
            else torch.zeros(len(rows), dtype=torch.bool)
        )

    def measure(self, layer: int, rows: Tensor, steps: Tensor, correction: Tensor) -> None:
        """Record the final prediction minus the prediction after `layer`, for rows that ran all layers.

        Args:
            layer: The early layer, 0..N-1.
            rows: Positions of the measured rows, (measured,) int64, on the CPU.
            steps: The step of each, counted from 0, (measured,) int64, on the CPU.
            correction: The differences, (measured, channels, height, width).
        """
        (last, before, earlier), measured_at = self._of(layer, correction)
        places = rows.to(correction.device)
        earlier[places], before[places], last[places] = before[places], last[places], correction.float()
        measured_at[rows] = torch.cat([steps[:, None], measured_at[rows, :2]], dim=1)
        self.exist()[rows] = True

    def correct(self, layer: int, rows: Tensor, steps: Tensor, prediction: Tensor, weights: Tensor) -> Tensor:
        """Return predictions after `layer` plus their extrapolated corrections; as they are for rows without any.

        Args:
            layer: The exit layer, 0..N-1.
            rows: Positions of the exiting rows in ascending order, (exiting,) int64, on the CPU.
            steps: The step of each, counted from 0, (exiting,) int64, on the CPU.
            prediction: Their predictions, (exiting, channels, height, width).
            weights: Of value, slope and curvature, (exiting, 3), on the CPU.
        """
        if not self.known(layer):
            return prediction
        measurements, measured_at = self._of(layer, prediction)
        known = measured_at[rows].numpy()  # (exiting, 3)
        gaps = np.where(known[:, 1:] >= 0, known[:, :-1] - known[:, 1:], 0)
        last, before, earlier = measurements
        factors = change_factors(weights, steps.numpy() - known[:, 0], *gaps.T)
        places, shape = rows.to(prediction.device), (-1, *[1] * (prediction.dim() - 1))
        for factor, newer, older in zip(factors, (last, last, before), (None, before, earlier), strict=True):
            if factor.any():  # it is 0 where there is no measurement
                change = at_rows(newer, places) if older is None else at_rows(newer, places) - at_rows(older, places)
                prediction = (
                    prediction + torch.tensor(factor, dtype=torch.float32, device=change.device).view(shape) * change
                )
        return prediction

    def _of(self, layer: int, like: Tensor) -> tuple[list[Tensor], Tensor]:
        shape, device = like.shape[1:], like.device
        measurements = [self.memory.tensor(f"{layer}: {name}", shape, device=device) for name in MEASUREMENTS]
        return measurements, self.memory.tensor(f"{layer}: steps", (3,), torch.int64, empty=-1)
