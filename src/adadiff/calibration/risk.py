"""Bounds on a risk that hold with a stated confidence, from finitely many samples, whatever the losses' distribution.

Losses are in [0, 1]. "Distribution-Free, Risk-Controlling Prediction Sets" (Bates et al. 2021, arXiv 2101.02703) gives
the bound, after Waudby-Smith & Ramdas (2020, arXiv 2010.09686): a bettor against "the mean is at least R"
multiplies its money by 1 + nu (R - loss) at every loss; were the mean R or more, it would multiply by 1 / delta at any
time with probability delta at most.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from adadiff.errors import InputError

BISECTIONS = 40
MOST_SAMPLES = 100_000


def upper_bound(losses: NDArray[np.floating], delta: float) -> float:
    """What the losses' mean is below, with probability at least 1 - delta over the draw of the samples, in [0, 1].

    Args:
        losses: Independent and alike, (samples,) in [0, 1].
        delta: In (0, 1).
    """
    low, high = float(losses.mean()), 1.0
    if not is_below(losses, high, delta):
        return 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_below(losses, middle, delta) else (middle, high)
    return high


def is_below(losses: NDArray[np.floating], level: float, delta: float) -> bool:
    """Whether the test at level delta rejects that the losses' mean is `level` or more.

    The stake is Waudby-Smith and Ramdas': sqrt(2 log(1 / delta) / (n variance)), at most 1, the variance estimated from
    the losses before.

    Args:
        losses: Independent and alike, (samples,) in [0, 1].
        level: In [0, 1].
        delta: In (0, 1).
    """
    n = len(losses)
    counts = np.arange(1, n + 1)
    means = (0.5 + losses.cumsum()) / (1 + counts)
    variances = (0.25 + np.square(losses - means).cumsum()) / (1 + counts)
    before = np.concatenate([[0.25], variances[:-1]])
    stakes = np.minimum(1, np.sqrt(2 * math.log(1 / delta) / (n * before)))
    money = np.log1p(stakes * (level - losses)).cumsum()
    return bool(money.max() > math.log(1 / delta))


def last_safe(candidates: Iterable[NDArray[np.floating]], level: float, delta: float) -> int | None:
    """How far down a list of rules, the safest first, the risk is below `level`: "Learn then Test", fixed sequence.

    Each rule is tested at level delta until one fails; all before it are safe at once with probability at least
    1 - delta (Angelopoulos et al. 2021, arXiv 2110.01052, proposition 2).

    Args:
        candidates: Losses of each rule, (samples,) in [0, 1], computed when its turn comes.
        level: Bound on the risk, in (0, 1).
        delta: In (0, 1).

    Returns:
        Position of the last safe rule, or None.
    """
    safe = None
    for position, losses in enumerate(candidates):
        if not is_below(losses, level, delta):
            break
        safe = position
    return safe


def least_samples(level: float, delta: float) -> int:
    """With fewer samples not even losses of 0 throughout would show a risk below `level`."""
    shows = bisect.bisect_left(range(1, MOST_SAMPLES), True, key=lambda n: is_below(np.zeros(n), level, delta))
    if shows == MOST_SAMPLES - 1:
        raise InputError(f"a risk below {level} cannot be shown with fewer than {MOST_SAMPLES:,} samples: allow more")
    return shows + 1
