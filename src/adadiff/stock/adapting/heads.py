"""Exit heads of a frozen stock transformer, fitted by ridge regression to what its full depth predicts.

At an exit the model's own projection reads tokens that it was not trained for. A fitted head adds to its output a
linear map of the same tokens, which makes up for what the later layers would have changed. One is fitted for each exit
and bin of the sampling time, on the model's own samplings, from sums alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RIDGE = 0.03
TINY = 1e-12  # spread that tokens have at least, so that equal ones can be solved for


class HeadFit:
    """Fits the heads of one transformer's exits.

    Guidance multiplies the differences between conditional and unconditional predictions, and so those of their errors.
    The heads are fitted to the single predictions and to their combinations alike.

    Args:
        exits: Number of exits.
        bins: Number of bins of the time.
    """

    def __init__(self, exits: int, bins: int) -> None:
        self.sums = RidgeSums(exits, bins)
        self._step: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}  # of this step, by exit and bin

    def see(self, exit_: int, bin_: int, tokens: Tensor, early: Tensor, full: Tensor) -> None:
        """Take what an exit reads and predicts in one call.

        Args:
            exit_: Position of the exit.
            bin_: The bin of the time.
            tokens: What the projection reads, (rows, tokens, width).
            early: What it returns, (rows, tokens, out).
            full: What it returns after all layers, (rows, tokens, out).
        """
        wanted = full.float() - early.float()
        self.sums.add(exit_, bin_, tokens, wanted)
        self._step.setdefault((exit_, bin_), []).append((tokens, wanted))

    def end_step(self, weights: Tensor | None, samples: int) -> None:
        """Take how the predictions of the step were combined.

        Args:
            weights: The weight of each prediction of a sample, (parts,); None if they were not combined. An exit that
                was left out of one, as by skip-layer guidance, is not combined.
            samples: Number of samples; each has a row in every part.
        """
        for (exit_, bin_), calls in self._step.items():
            if weights is not None and sum(len(part) for part, _ in calls) == len(weights) * samples:
                tokens, wanted = (_combined(parts, weights, samples) for parts in zip(*calls, strict=True))
                self.sums.add(exit_, bin_, tokens, wanted)
        self._step.clear()

    def solve(self) -> Tensor:
        """Return the heads, (exits, bins, out, width + 1) float32."""
        return self.sums.solve(RIDGE)


def _combined(calls: Sequence[Tensor], weights: Tensor, samples: int) -> Tensor:
    """Combine the rows of all calls that belong to one sample: (samples, tokens, width) float32."""
    parts = torch.cat([each.float().unflatten(0, (-1, samples)) for each in calls])  # (parts, samples, tokens, width)
    return torch.einsum("p,pstw->stw", weights.to(parts), parts)


class RidgeSums:
    """Sums from which linear maps are fitted by least squares, one for each exit and bin.

    They are made when the first tokens come. Their memory is `exits * bins * (width + 1 + out) * (width + 1)` values of
    float64.

    Args:
        exits: Number of exits.
        bins: Number of bins.
    """

    def __init__(self, exits: int, bins: int) -> None:
        self.exits, self.bins = exits, bins
        self.moments = self.targets = torch.empty(0)
        self.counts = torch.zeros(exits, bins)

    def add(self, exit_: int, bin_: int, tokens: Tensor, targets: Tensor) -> None:
        """Add tokens and what is to be predicted of each.

        Args:
            exit_: Position of the exit.
            bin_: The bin.
            tokens: Tokens, (..., width).
            targets: What to predict, (..., out).
        """
        rows = with_ones(tokens).flatten(0, -2).double()  # (tokens, width + 1)
        wanted = targets.flatten(0, -2).double()  # (tokens, out)
        if not self.moments.numel():
            width, out = rows.shape[1], wanted.shape[1]
            self.moments = rows.new_zeros(self.exits, self.bins, width, width)
            self.targets = rows.new_zeros(self.exits, self.bins, width, out)
        self.moments[exit_, bin_] += rows.T @ rows
        self.targets[exit_, bin_] += rows.T @ wanted
        self.counts[exit_, bin_] += len(rows)

    def solve(self, ridge: float) -> Tensor:
        """Return the linear maps, (exits, bins, out, width + 1) float32, the bias last; 0 where nothing was added.

        They minimise the sum of squared errors plus `ridge * spread` times the sum of the squared weights, where
        `spread` is the mean squared distance of the tokens from their mean. The bias is free.

        Args:
            ridge: Strength of the pull of the weights to 0, above 0.
        """
        moments, counts = self.moments, self.counts.to(self.moments)
        means = moments[..., -1, :-1] / counts.clamp(min=1)[..., None]  # (exits, bins, width)
        squares = moments.diagonal(dim1=-2, dim2=-1)[..., :-1]
        spread = (squares - counts[..., None] * means.square()).sum(-1) / counts.clamp(min=1)  # (exits, bins)
        pull = (
            torch.ones_like(moments[..., 0]) * (ridge * spread.clamp(min=TINY))[..., None]
        )  # (exits, bins, width + 1)
        pull[..., -1] = (counts == 0).to(pull)
        return torch.linalg.solve(moments + torch.diag_embed(pull), self.targets).mT.float().cpu()


def with_ones(tokens: Tensor) -> Tensor:
    """Append a 1 to each token, for the bias: (..., width + 1) float32."""
    tokens = tokens.float()
    return torch.cat([tokens, torch.ones_like(tokens[..., :1])], dim=-1)
