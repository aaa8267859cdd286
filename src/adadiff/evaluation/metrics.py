"""Metrics between generated and real images, as functions on two arrays of features, (images, features)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from adadiff.utils.errors import InputError

Features = NDArray[np.floating]
NEIGHBOURS = 3  # nearest neighbours in precision and recall
BLOCK = 1000  # rows of the pairwise matrix computed at once, to bound memory


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution of features: mean, (features,), and covariance, (features, features), in float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def fit(cls, features: Features) -> Self:
        """Fit a Gaussian to a set of features, (images, features).

        Raises:
            InputError: If the set is too small for a covariance of that size.
        """
        _require_enough(features, features.shape[1] + 1, "a covariance of their features")
        exact = features.astype(np.float64)
        return cls(exact.mean(0), np.atleast_2d(np.cov(exact, rowvar=False)))

    def distance(self, other: Gaussian) -> float:
        """Compute the Fréchet distance between two Gaussians (Heusel et al. 2017, arXiv 1706.08500).

        It is |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)). The trace of the root is the sum of the square roots of
        the eigenvalues of C1 C2, which are real and not negative.
        """
        means = self.mean - other.mean
        root = np.sqrt(np.linalg.eigvals(self.covariance @ other.covariance).real.clip(min=0)).sum()
        return float(means @ means + np.trace(self.covariance + other.covariance) - 2 * root)


def frechet_distance(features: Features, reference: Features) -> float:
    """Compute the Fréchet distance, >= 0, between Gaussians fitted to two sets of features.

    Raises:
        InputError: If a set is too small for a covariance of that size.
    """
    return Gaussian.fit(features).distance(Gaussian.fit(reference))


def kernel_distance(features: Features, reference: Features) -> float:
    """Compute the kernel distance (KID), an unbiased estimate of the squared maximum mean discrepancy.

    Binkowski et al. 2018, arXiv 1801.01401. The kernel is (x.y / d + 1)^3. All pairs of all images are used, instead of
    averaging over random subsets.

    Returns:
        The distance; for two sets from one distribution its expectation is 0, so it can be negative.
    """
    for part in (features, reference):
        _require_enough(part, 2, "the kernel distance")
    x, y = torch.from_numpy(features).double(), torch.from_numpy(reference).double()

    def total(a: Tensor, b: Tensor) -> float:
        return sum(((rows @ b.T / a.shape[1] + 1) ** 3).sum().item() for rows in a.split(BLOCK))

    def among(a: Tensor) -> float:
        same = ((a.square().sum(1) / a.shape[1] + 1) ** 3).sum().item()
        return (total(a, a) - same) / (len(a) * (len(a) - 1))

    return among(x) + among(y) - 2 * total(x, y) / (len(x) * len(y))


def precision_recall(features: Features, reference: Features, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Compute improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    Precision is the share of generated images that lie within the distance from some real image to its k-th nearest
    real neighbour. Recall is the share of real images that lie within the distance from some generated image to its
    k-th nearest generated neighbour.

    Args:
        features: Features of generated images.
        reference: Features of real images, preferably equally many, since both shares depend on the numbers.
        neighbours: k, 3 in the paper.

    Returns:
        Precision and recall, each in [0, 1].
    """
    for part in (features, reference):
        _require_enough(part, neighbours + 1, f"their {neighbours} nearest neighbours")
    fake, real = torch.from_numpy(features).double(), torch.from_numpy(reference).double()
    return _share_within(fake, real, neighbours), _share_within(real, fake, neighbours)


def bootstrap(metric: Callable[[Features], float], features: Features, repeats: int = 50, seed: int = 0) -> float:
    """Estimate the standard error of a metric by the bootstrap: drawing as many images with replacement.

    Args:
        metric: A function of features, (images, features).
        features: Features of the images, (images, features).
        repeats: Number of draws.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    draws = [metric(features[rng.integers(len(features), size=len(features))]) for _ in range(repeats)]
    return float(np.std(draws, ddof=1))


def _share_within(points: Tensor, others: Tensor, neighbours: int) -> float:
    """Return the share of points within the ball of some other point, whose radius is its k-th neighbour distance."""
    radii = torch.cat([rows.kthvalue(neighbours + 1, dim=1).values for rows in _distances(others, others)])
    return torch.cat([(rows <= radii).any(1) for rows in _distances(points, others)]).double().mean().item()


def _distances(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    return (torch.cdist(rows, others) for rows in points.split(BLOCK))


def _require_enough(features: Features, least: int, purpose: str) -> None:
    if len(features) < least:
        raise InputError(f"{len(features)} images are too few for {purpose}: at least {least} are needed")
