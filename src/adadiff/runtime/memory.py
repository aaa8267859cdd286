"""Memory of a session: named tensors with one row per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RowMemory:
    """Holds named tensors with one row per sample; rows can be selected, joined and cleared.

    Args:
        rows: Number of rows; there are no tensors yet.

    Examples:
        >>> memory = RowMemory(2)
        >>> memory.tensor("steps taken", shape=())[:] = torch.tensor([3.0, 5.0])
        >>> memory.select(torch.tensor([1])).join(RowMemory(1))["steps taken"]
        tensor([5., 0.])
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._tensors: dict[str, Tensor] = {}
        self._empty: dict[str, float] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        empty: float = 0,
    ) -> Tensor:
        """Return the tensor of this name, (rows, *shape), to be read and written in place.

        Args:
            name: Its name.
            shape: Shape of a row.
            dtype: Its type, when it is made.
            device: Where it is made; the CPU by default.
            empty: Value of rows that hold nothing yet.
        """
        if name not in self._tensors:
            self._tensors[name] = torch.full((self.rows, *shape), empty, dtype=dtype, device=device)
            self._empty[name] = empty
        return self._tensors[name]

    def select(self, rows: Tensor) -> RowMemory:
        """Return a copy of some rows; `rows` are positions, (selected,) int64."""
        selected = RowMemory(len(rows))
        selected._tensors = {name: values[rows] for name, values in self._tensors.items()}
        selected._empty = dict(self._empty)
        return selected

    def join(self, other: RowMemory) -> RowMemory:
        """Return a copy of these rows followed by another memory's; a tensor that one side lacks is empty there."""
        joined = RowMemory(self.rows + other.rows)
        joined._empty = {**self._empty, **other._empty}
        for name, empty in joined._empty.items():
            known = self._tensors[name] if name in self else other[name]
            parts = [
                part.tensor(name, known.shape[1:], known.dtype, known.device, empty)
                if name in part
                else known.new_full((part.rows, *known.shape[1:]), empty)
                for part in (self, other)
            ]
            joined._tensors[name] = torch.cat(parts)
        return joined

    def clear(self, rows: Tensor) -> None:
        """Empty some rows in place; `rows` are positions, (cleared,) int64."""
        for name, values in self._tensors.items():
            values[rows] = self._empty[name]
