"""How the corrections measured at the last three full steps are carried on to a later step.

A parabola through three measurements, in Newton's form, is a value, a slope and a curvature. Each has a weight, so that
(1, 0, 0) holds the last measurement, (1, 1, 0) goes along a line, and (1, 1, 1) along the parabola; these are the
orders 0 to 2 of TaylorSeer (Liu et al., ICCV 2025, arXiv 2503.06923). A calibration fits the weights to each step.
"""

from __future__ import annotations

import torch
from torch import Tensor


def newton_terms(gap: Tensor, gap_before: Tensor, gap_earlier: Tensor) -> Tensor:
    """Return value, slope and curvature as combinations of the last three measurements.

    With measurements m1, m2, m3, the last one first, the terms are m1, gap (m1 - m2) / gap_before and gap
    (gap + gap_before) times the second divided difference of the three.

    Args:
        gap: Steps since the last measurement, (...) int64.
        gap_before: Steps between the last and the one before, 0 if there is none, (...) int64.
        gap_earlier: Steps between that and the one before it, 0 if there is none, (...) int64.

    Returns:
        (..., terms 3, measurements 3) float64; terms that lack measurements are 0.

    Examples:
        >>> newton_terms(torch.tensor(2), torch.tensor(2), torch.tensor(2))
        tensor([[ 1.,  0.,  0.],
                [ 1., -1.,  0.],
                [ 1., -2.,  1.]], dtype=torch.float64)
    """
    gap, before, earlier = (each.double() for each in (gap, gap_before, gap_earlier))
    zero, one = torch.zeros_like(gap), torch.ones_like(gap)
    slope = torch.where(before > 0, 1 / before.clamp(min=1), zero)
    slope_earlier = torch.where((before > 0) & (earlier > 0), 1 / earlier.clamp(min=1), zero)
    bend = torch.where(slope_earlier > 0, gap * (gap + before) / (before + earlier).clamp(min=1), zero)
    rows = [
        [one, zero, zero],
        [gap * slope, -gap * slope, zero],
        [bend * slope, -bend * (slope + slope_earlier), bend * slope_earlier],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
