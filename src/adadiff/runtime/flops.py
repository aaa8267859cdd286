"""FLOPs of the parts of a model with exits, and of the rows that exit from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PartFlops:
    """FLOPs of each part, for one sample at one step (a multiply-add counts 2).

    Args:
        embed: From the image to the first layer.
        layers: Of layers 1..N, (N,) int64.
        heads: Of the output heads after layers 1..N, (N,) int64.
        estimators: Of the uncertainty estimators after layers 1..N, (N,) int64.
        unread: Of a step at layer 0; 0 where nothing at all is run.
    """

    embed: int
    layers: Tensor
    heads: Tensor
    estimators: Tensor
    unread: int = 0

    @property
    def full(self) -> int:
        """FLOPs of the full model: all layers and the last head, no estimator."""
        return self.embed + int(self.layers.sum() + self.heads[-1])

    def until_exit(self, exit_layers: Tensor, estimated: Tensor, measured: Tensor | None = None) -> Tensor:
        """Return the FLOPs of rows that exited after the given layers.

        Args:
            exit_layers: Exit layers in 0..N, (rows,) int64; after layer 0 nothing has run.
            estimated: For each of the layers 1..N whether an estimator ran after it, (N,) or (rows, N) bool.
            measured: For each of the layers 1..N whether its head also ran for rows that went on, to measure
                corrections, (N,) or (rows, N) bool; by default for none.

        Returns:
            FLOPs, (rows,) int64.
        """
        spent = self.layers + self.estimators * estimated  # (N,) or (rows, N)
        through = spent.cumsum(-1).expand(len(exit_layers), -1)  # (rows, N)
        last = exit_layers.clamp(min=1) - 1
        flops = self.embed + through.gather(1, last[:, None]).squeeze(1) + self.heads[last]
        if measured is not None:
            went_on = torch.arange(1, len(self.layers) + 1) < exit_layers[:, None]  # (rows, N)
            flops = flops + (self.heads * (measured & went_on)).sum(1)
        return torch.where(exit_layers > 0, flops, self.unread)
