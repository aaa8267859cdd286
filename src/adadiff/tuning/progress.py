"""Progress of a search, with the time that is left."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from tqdm import tqdm
from typing_extensions import Self

from adadiff.tuning.config import TuneConfig

UNKNOWN_COMPUTE = 0.5  # of a plan, over the default's, in a search without a budget
FULL_COMPUTE = 0.85  # of the full model at another guidance than the default


def expected_images(config: TuneConfig, budget: float | None, finalists: int) -> float:
    """Estimate how many images two searches and their confirmation sample, in images of the default plan."""
    search = searched_images(config.trials, config.images)
    confirming = min(finalists, _candidates(config.trials, config.images)[-1]) * config.confirm
    compute = UNKNOWN_COMPUTE if budget is None else min(budget, 1.0)
    full = search + 2 * confirming  # of its own search, and at the guidance of the plans
    return (search + confirming) * compute + full * FULL_COMPUTE + config.images[-1] + config.confirm


def searched_images(trials: int, images: Sequence[int]) -> int:
    """Return how many images a search samples that scores `trials` candidates by these numbers of images."""
    added = np.diff([0, *images])  # images that a round samples more than the one before
    return int(np.dot(_candidates(trials, images), added))


def _candidates(trials: int, images: Sequence[int]) -> list[int]:
    """Return the number of candidates in each round of a search."""
    counts = [trials]
    for fewer, more in itertools.pairwise(images):
        counts.append(max(1, round(counts[-1] * fewer / more)))
    return counts


class Progress:
    """A bar that counts images in units of the default plan's compute, and so knows the time that is left.

    Args:
        name: What is going on.

    Attributes:
        total: Images still to be sampled when the search began, in images of the default plan, as far as is known.
    """

    total: float = 0

    def __init__(self, name: str = "tuning") -> None:
        self.name = name

    def __enter__(self) -> Self:
        self._bar = tqdm(desc=self.name, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._bar.total = self._bar.n  # the estimate may have been too large
            self._bar.refresh()
        self._bar.close()

    def add(self, images: float, sampled: bool) -> None:
        """Count images, in images of the default plan, that were sampled, or that an earlier run had sampled."""
        if not sampled:
            self.total -= images
            return
        self._bar.total = max(self.total, self._bar.n + images)
        self._bar.update(images)
