"""Fréchet distance between two sets of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import sqrtm


def frechet_distance(features: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), of Gaussians fitted to the two sets (Heusel et al. 2017).

    Args:
        features: (images, features).
        reference: (other images, features).

    Returns:
        The distance, >= 0.
    """
    means = features.mean(0) - reference.mean(0)
    first, second = np.cov(features, rowvar=False), np.cov(reference, rowvar=False)
    root = np.real(sqrtm(first @ second))
    return float(means @ means + np.trace(first + second - 2 * root))
