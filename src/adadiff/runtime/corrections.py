"""Corrections of early exits, measured at full steps and extrapolated to later ones.

What the later layers add to the prediction of layer i, g_N(L_N) - g_i(L_i), changes little from step to step. It is
measured at steps where a sample runs all layers; at later steps where the sample exits after layer i, it is linearly
extrapolated from the last two measurements and added to g_i(L_i). With g_0 = 0 this includes not running the network at
all: the full predictions themselves are extrapolated.

Related work caches hidden tokens: deep layers' outputs are reused (`baselines/caching.py`) or extrapolated (TaylorSeer,
Liu et al., ICCV 2025, arXiv 2503.06923). Here the prediction itself is corrected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adadiff.runtime.memory import RowMemory


class Corrections:
    """Measures and applies the corrections of a session's rows, each row by its own steps.

    For each layer the memory holds a row's last two corrections, (rows, channels, height, width) float32, and the steps
    they were measured at, (rows,) int64 on the CPU, -1 where there is none.

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
        return f"{layer}: last" in self.memory

    def of_layer(self, layer: int, rows: Tensor) -> Tensor:
        """Return for which rows, (selected,) int64, a correction of `layer` was measured, (selected,) bool."""
        return (
            self.memory[f"{layer}: step"][rows] >= 0 if self.known(layer) else torch.zeros(len(rows), dtype=torch.bool)
        )

    def measure(self, layer: int, rows: Tensor, steps: Tensor, correction: Tensor) -> None:
        """Record the final prediction minus the prediction after `layer`, for rows that ran all layers.

        Args:
            layer: The early layer, 0..N-1.
            rows: Positions of the measured rows, (measured,) int64, on the CPU.
            steps: The step of each, counted from 0, (measured,) int64, on the CPU.
            correction: The differences, (measured, channels, height, width).
        """
        last, before, step, step_before = self._of(layer, correction)
        places = rows.to(correction.device)
        before[places], step_before[rows] = last[places], step[rows]
        last[places], step[rows] = correction.float(), steps
        self.exist()[rows] = True

    def correct(self, layer: int, rows: Tensor, steps: Tensor, prediction: Tensor) -> Tensor:
        """Return predictions after `layer` plus their extrapolated corrections; as they are for rows without any.

        Args:
            layer: The exit layer, 0..N-1.
            rows: Positions of the exiting rows, (exiting,) int64, on the CPU.
            steps: The step of each, counted from 0, (exiting,) int64, on the CPU.
            prediction: Their predictions, (exiting, channels, height, width).
        """
        if not self.known(layer):
            return prediction
        last, before, step, step_before = self._of(layer, prediction)
        gap, gap_before = steps - step[rows], step[rows] - step_before[rows]
        slope = torch.where(step_before[rows] >= 0, gap / gap_before.clamp(min=1), 0.0)
        slope = slope.to(last.device).view(-1, *[1] * (last.dim() - 1))  # (exiting, 1, 1, 1)
        places = rows.to(last.device)
        return prediction + last[places] + slope * (last[places] - before[places])  # both are 0 if there is none

    def _of(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape, device = like.shape[1:], like.device
        last, before = (self.memory.tensor(f"{layer}: {name}", shape, device=device) for name in ("last", "before"))
        step, step_before = (
            self.memory.tensor(f"{layer}: {name}", (), torch.int64, empty=-1) for name in ("step", "step before")
        )
        return last, before, step, step_before
