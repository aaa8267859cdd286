"""Which arguments of a stock transformer have a row for each sample, and calls of it with some of the rows alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from adadiff.utils.errors import InputError


class RowInputs:
    """Knows which arguments have one entry for each row of the batch.

    An argument that has as many entries as there are rows in one call may have so by chance. Those seen in calls of
    several batch sizes are known; of others the length decides, with two exceptions. A tuple is no batch: it is a pair
    such as the cosines and sines of positions, as long as a batch of guidance for one sample. Nor is a list of numbers,
    such as layers to skip, or one of whole batches, such as what a ControlNet adds after each block.

    Args:
        known: Whether each part of an argument has an entry for each row, by its path.

    Examples:
        >>> inputs = RowInputs()
        >>> for rows in (3, 1):
        ...     inputs.observe({"sample": torch.zeros(rows, 4), "positions": torch.zeros(3, 2)}, rows)
        >>> some = inputs.select({"sample": torch.zeros(3, 4), "positions": torch.zeros(3, 2)}, 3, torch.tensor([0, 2]))
        >>> [len(each) for each in some.values()]
        [2, 3]
    """

    def __init__(self, known: Mapping[str, bool] | None = None) -> None:
        self.known = dict(known or {})

    def observe(self, arguments: Mapping[str, Any], rows: int) -> None:
        """Learn from a call: its arguments by name, and its number of rows."""
        for path, part in _parts("", arguments):
            self.known[path] = self.known.get(path, True) and len(part) == rows

    def select(self, arguments: Mapping[str, Any], rows: int, kept: Tensor) -> dict[str, Any]:
        """Return the arguments for some of the rows.

        Args:
            arguments: Arguments by name, for all rows.
            rows: Number of all rows.
            kept: Positions of the rows, (kept,) int64, on the CPU.
        """
        return {name: self._select(name, value, rows, kept) for name, value in arguments.items()}

    def _select(self, path: str, value: Any, rows: int, kept: Tensor) -> Any:
        if _may_be_rows(value) and len(value) == rows and self.known.get(path, _looks_like_rows(value)):
            return value[kept.to(value.device)] if isinstance(value, Tensor) else [value[row] for row in kept.tolist()]
        if isinstance(value, Mapping):
            return {name: self._select(f"{path}.{name}", each, rows, kept) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._select(f"{path}.{k}", each, rows, kept) for k, each in enumerate(value))
        return value


def selected(output: Any, rows: int, kept: Tensor) -> Any:
    """Return some rows of what a block returned.

    Args:
        output: Tensors with a row, or several one after the other, for each row of the batch.
        rows: Number of rows of the batch.
        kept: Positions of the rows, (kept,) int64, on the CPU.
    """

    def select(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.unflatten(0, (rows, -1))[kept.to(leaf.device)].flatten(0, 1)

    return tree_map(select, output)


def replaced(output: Any, part: Any, kept: Tensor) -> Any:
    """Return an output of the model with some rows replaced.

    Args:
        output: A tensor of all rows, or a list with one tensor each; in a tuple or mapping, or not.
        part: The same for the rows to replace.
        kept: Their positions, (kept,) int64, on the CPU.
    """
    if isinstance(output, Tensor):
        output = output.clone()
        output[kept.to(output.device)] = part
        return output
    if isinstance(output, list):
        places = dict(zip(kept.tolist(), part, strict=True))
        return [places.get(row, each) for row, each in enumerate(output)]
    if isinstance(output, Mapping):
        return type(output)(**{name: replaced(each, part[name], kept) for name, each in output.items()})
    if isinstance(output, tuple):
        return tuple(replaced(each, other, kept) for each, other in zip(output, part, strict=True))
    return output


def by_rows(tokens: Tensor, rows: int) -> Tensor:
    """Sort tokens by rows of the batch, (rows, tokens of a row, width).

    Args:
        tokens: Tokens, (rows * m, ..., width), those of a row one after the other.
        rows: Number of rows.

    Raises:
        InputError: If the rows do not have as many each.
    """
    if len(tokens) % rows:
        raise InputError(f"the projection reads {len(tokens)} sequences for {rows} rows: each row has to have as many")
    return tokens.reshape(rows, -1, tokens.shape[-1])


def paired(sample: Any, rows: int) -> bool:
    """Return whether the first half of a batch and the second one are the same samples, as guidance in one call has it.

    Args:
        sample: What is denoised: a tensor of all rows, or a list with one tensor each.
        rows: Number of rows.
    """
    if rows % 2 or len(sample) != rows:
        return False
    half = rows // 2
    return all(torch.equal(one, other) for one, other in zip(sample[:half], sample[half:], strict=True))


def _may_be_rows(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, Tensor) and value.ndim > 0)


def _looks_like_rows(value: Any) -> bool:
    """Return whether a tensor or list, as long as there are rows, has an entry for each, as far as it shows."""
    if isinstance(value, Tensor):
        return True
    return all(isinstance(each, Tensor) and each.shape[:1] != (len(value),) for each in value)


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield an argument's tensors and lists, with their paths."""
    if _may_be_rows(value):
        yield path, value
    if isinstance(value, (list, tuple, Mapping)):
        for name, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _parts(f"{path}.{name}" if path else str(name), each)
