"""Local search among corrected schedules: the steps that the error of the whole sampling says to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adadiff.calibration.total_error import TotalError

NEIGHBOURS = 6  # most steps between two that exchange their layers
MOST_TRIED = 2000  # schedules that are tried; with 20 steps the search ends by itself
LEAST_GAIN = 1e-3  # least relative fall of the error that a change is made for

Layers = tuple[int, ...]


def improved(
    total: TotalError, likeness: float, starts: Sequence[Layers], costs: NDArray[np.floating], budget: float
) -> Layers:
    """Change single steps of a schedule, or exchange those of two, as long as the expected error falls.

    Args:
        total: The expected error of schedules.
        likeness: How much of the product of two neighbouring steps' errors counts, in [0, 1].
        starts: Possible schedules, exit layers in 0..N each; the search begins with the one that errs least.
        costs: Cost of exiting after each of the layers 0..N at each step, (steps, layers + 1).
        budget: Most that the steps may cost in all.
    """

    def error_of(layers: Layers) -> float:
        return total.fitted(layers, likeness)[0]

    best = min(starts, key=error_of)
    error, falls, tried, places = error_of(best), True, {best}, np.arange(len(best))
    while falls:
        falls = False
        for place in range(len(best)):
            for changed in _changes(best, place, total.depth):
                if changed in tried or costs[places, changed].sum() > budget or not total.is_possible(changed):
                    continue
                if len(tried) == MOST_TRIED:
                    return best
                tried.add(changed)
                found = error_of(changed)
                if found < (1 - LEAST_GAIN) * error:
                    best, error, falls = changed, found, True
    return best


def _changes(layers: Layers, place: int, depth: int) -> Iterator[Layers]:
    """Yield schedules with another layer at a step, alone or at the cost of a later one, or in exchange with it."""
    for layer in range(depth + 1):
        if layer != layers[place]:
            yield _with(layers, {place: layer})
    for other in range(place + 1, min(place + 1 + NEIGHBOURS, len(layers))):
        here, there = layers[place], layers[other]
        if here != there:
            yield _with(layers, {place: there, other: here})
        if here < depth and there > 0:
            yield _with(layers, {place: here + 1, other: there - 1})
        if there < depth and here > 0:
            yield _with(layers, {place: here - 1, other: there + 1})


def _with(layers: Layers, changes: Mapping[int, int]) -> Layers:
    return tuple(changes.get(step, layer) for step, layer in enumerate(layers))
