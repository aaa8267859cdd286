"""Which exits of a stock transformer are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral

import numpy as np

from adadiff.utils.errors import InputError

MOST_EXITS = 8


def default_exits(depth: int) -> tuple[int, ...]:
    """Return at most `MOST_EXITS` early exit layers of a model of `depth` layers, closer together at the beginning.

    Examples:
        >>> default_exits(6), default_exits(28)
        ((1, 2, 3, 4, 5), (1, 2, 3, 4, 7, 11, 17, 27))
    """
    if depth <= MOST_EXITS + 1:
        return tuple(range(1, depth))
    spaced = np.geomspace(1, depth - 1, MOST_EXITS).round().astype(int)
    return tuple(int(layer) for layer in np.unique(spaced))


def checked_exits(exits: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Return early exit layers in order, `default_exits` if None are given.

    Args:
        exits: The layers, in 1..N-1.
        depth: Number of layers N.

    Raises:
        InputError: If they are not there, or the model has a single layer.
    """
    if depth < 2:
        raise InputError("the transformer has a single layer: there is nothing to leave out")
    if exits is None:
        return default_exits(depth)
    listed = tuple(exits) if isinstance(exits, Iterable) else ()
    if not listed or not all(isinstance(layer, Integral) and 1 <= layer < depth for layer in listed):
        raise InputError(f"exits is {listed or exits}: name layers in 1 to {depth - 1}, as in [1, {depth - 1}]")
    return tuple(sorted({int(layer) for layer in listed}))
