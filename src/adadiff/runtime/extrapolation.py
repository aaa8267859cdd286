"""How the corrections measured at the last three full steps are carried on to a later step.

A parabola through three measurements, in Newton's form, is a value, a slope and a curvature. Each has a weight, so that
(1, 0, 0) holds the last measurement, (1, 1, 0) goes along a line, and (1, 1, 1) along the parabola; these are the
orders 0 to 2 of TaylorSeer (Liu et al., ICCV 2025, arXiv 2503.06923). A calibration fits the weights to each step
(`calibration/total_error.py`, `calibration/refine.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]


def change_factors(
    weights: ArrayLike, gap: ArrayLike, gap_before: ArrayLike, gap_earlier: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Return the factors of the last measurement and of the two changes before it that carry it on.

    With measurements m1, m2, m3, the last one first, what is carried on is the first factor times m1, plus the second
    times (m1 - m2), plus the third times (m2 - m3).

    Args:
        weights: Weights of value, slope and curvature, (rows, 3) or (3,).
        gap: Steps since the last measurement, (rows,) or one number.
        gap_before: Steps between the last and the one before, 0 if there is none; like `gap`.
        gap_earlier: Steps between that and the one before it, 0 if there is none; like `gap`.

    Returns:
        The factors, (rows,) float64 each; 0 for changes that lack measurements.

    Examples:
        >>> parabola = (1.0, 1.0, 1.0)
        >>> [float(factor) for factor in change_factors(parabola, 2, 2, 2)]
        [1.0, 2.0, -1.0]
    """
    value, slope, curvature = np.asarray(weights, np.float64).T
    since, before, earlier = (np.asarray(each, np.float64) for each in (gap, gap_before, gap_earlier))
    slope = slope * since
    bend = curvature * since * (since + before) / np.maximum(before + earlier, 1) * (before * earlier > 0)
    return value, (slope + bend) * (before > 0) / np.maximum(before, 1), -bend / np.maximum(earlier, 1)


def newton_terms(gap: int, gap_before: int, gap_earlier: int) -> Floats:
    """Return value, slope and curvature, each alone, as combinations of the last three measurements.

    Args:
        gap: Steps since the last measurement.
        gap_before: Steps between the last and the one before, 0 if there is none.
        gap_earlier: Steps between that and the one before it, 0 if there is none.

    Returns:
        (terms 3, measurements 3) float64; terms that lack measurements are 0.

    Examples:
        >>> newton_terms(2, 2, 2).tolist()
        [[1.0, 0.0, 0.0], [1.0, -1.0, 0.0], [1.0, -2.0, 1.0]]
    """
    last, change, change_before = change_factors(np.eye(3), gap, gap_before, gap_earlier)
    return np.stack([last + change, change_before - change, -change_before], -1) + 0.0  # no -0
