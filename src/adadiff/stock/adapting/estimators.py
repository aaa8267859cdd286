"""Uncertainty estimators of a frozen stock transformer, fitted to how far its fitted exits are from its full depth."""

from __future__ import annotations

import torch
from torch import Tensor

from adadiff.stock.adapting.heads import RidgeSums
from adadiff.stock.adapting.projection import applied

RIDGE = 0.1
SMALLEST = 1e-6  # relative error that counts as none


class EstimatorFit:
    """Fits the estimators of one transformer's exits.

    An estimator is a linear map of the mean of a row's tokens to the logarithm of |full - early| / |full|, where early
    is the prediction with the fitted head. To be honest about errors it takes samples that no head was fitted on.

    Args:
        heads: The exit heads, (exits, bins, out, width + 1).
    """

    def __init__(self, heads: Tensor) -> None:
        self.heads = heads
        self.sums = RidgeSums(*heads.shape[:2])
        self._squares = torch.zeros(*heads.shape[:2], 3, dtype=torch.float64)  # of both errors, and of the prediction

    def see(self, exit_: int, bin_: int, tokens: Tensor, early: Tensor, full: Tensor) -> None:
        """Take what an exit reads and predicts in one call.

        Args:
            exit_: Position of the exit.
            bin_: The bin of the time.
            tokens: What the projection reads, (rows, tokens, width).
            early: What it returns, (rows, tokens, out).
            full: What it returns after all layers, (rows, tokens, out).
        """
        full = full.float()
        plain = full - early.float()
        error = plain - applied(self.heads[exit_, bin_], tokens)
        squares = torch.stack([each.square().mean((1, 2)) for each in (plain, error, full)], dim=-1)  # (rows, 3)
        self._squares[exit_, bin_] += squares.double().sum(0).cpu()
        relative = (squares[:, 1] / squares[:, 2]).sqrt().clamp(min=SMALLEST)
        self.sums.add(exit_, bin_, tokens.float().mean(1), relative.log()[:, None])

    def end_step(self, weights: Tensor | None, samples: int) -> None:
        """Take how the predictions of a step were combined, which is of no use here: each row has an estimate."""

    def solve(self) -> Tensor:
        """Return the estimators, (exits, bins, width + 1) float32."""
        return self.sums.solve(RIDGE)[:, :, 0]

    def errors(self) -> Tensor:
        """Return the relative squared errors, (exits, bins, 2) float32: with the model's own head and the fitted one.

        NaN where nothing was seen.
        """
        return (self._squares[..., :2] / self._squares[..., 2:]).float()
