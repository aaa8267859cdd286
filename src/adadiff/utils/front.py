"""Pareto fronts."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto-optimal points, smaller being better in both coordinates, from left to right.

    Examples:
        >>> pareto_front([(2, 1), (1, 3), (3, 2)])
        [(1, 3), (2, 1)]
    """
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
