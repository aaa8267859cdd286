"""Ties: rows of one group do the same, as the two predictions of a guided sample do."""

from __future__ import annotations

import torch
from torch import Tensor


def any_tied(mask: Tensor, ties: Tensor | None) -> Tensor:
    """Return, for each row, whether the mask holds for any row of its group.

    Args:
        mask: (batch,) bool.
        ties: Group number of each row, (batch,) int64 >= 0; None if each row is a group of its own.
    """
    if ties is None or not len(ties):
        return mask
    ties = ties.to(mask.device)
    marked = torch.zeros(int(ties.max()) + 1, dtype=torch.bool, device=mask.device)  # (groups,)
    marked[ties[mask]] = True
    return marked[ties]


def all_tied(mask: Tensor, ties: Tensor | None) -> Tensor:
    """Return, for each row, whether the mask holds for all rows of its group; arguments as for `any_tied`."""
    return ~any_tied(~mask, ties)
