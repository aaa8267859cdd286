"""Distribution-free bounds on a mean loss, valid with a stated confidence for finitely many samples.

Losses are in [0, 1]. "Distribution-Free, Risk-Controlling Prediction Sets" (Bates et al. 2021, arXiv 2101.02703) gives
the bound, after Waudby-Smith & Ramdas (2020, arXiv 2010.09686): a bettor against the hypothesis "the mean is at least
R" multiplies their money by 1 + nu (R - loss) at every loss. If the hypothesis holds, the money ever reaches 1 / delta
times its start with probability at most delta.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from adadiff.utils.errors import InputError

BISECTIONS = 40
MOST_SAMPLES = 100_000


def upper_bound(losses: NDArray[np.floating], delta: float) -> float:
    """Return an upper bound on the expected loss that holds with probability at least 1 - delta, in [0, 1].

    The probability is over the draw of the samples.

    Args:
        losses: Independent, identically distributed losses, (samples,) in [0, 1].
        delta: Probability that the bound fails, in (0, 1).
    """
    low, high = float(losses.mean()), 1.0
    if not is_below(losses, high, delta):
        return 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_below(losses, middle, delta) else (middle, high)
    return high


def is_below(losses: NDArray[np.floating], level: float, delta: float) -> bool:
    """Test at significance level delta whether the expected loss is below `level`.

    The stake is that of Waudby-Smith and Ramdas: sqrt(2 log(1 / delta) / (n variance)), at most 1, with the variance
    estimated from the earlier losses.

    Args:
        losses: Independent, identically distributed losses, (samples,) in [0, 1].
        level: The level that the expected loss is tested against, in [0, 1].
        delta: Significance level of the test, in (0, 1).
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
    """Find the last rule, in a list ordered from safest to riskiest, that is shown to have a risk below `level`.

    Fixed-sequence testing of "Learn then Test" (Angelopoulos et al. 2021, arXiv 2110.01052, proposition 2): each rule
    is tested at level delta until one fails; with probability at least 1 - delta, all rules before it are safe.

    Args:
        candidates: Losses of each rule, (samples,) in [0, 1], computed only if the rule is tested.
        level: Bound on the risk, in (0, 1).
        delta: Significance level of the tests, in (0, 1).

    Returns:
        Position of the last safe rule, or None if the first rule fails.
    """
    safe = None
    for position, losses in enumerate(candidates):
        if not is_below(losses, level, delta):
            break
        safe = position
    return safe


def least_samples(level: float, delta: float) -> int:
    """Return the least number of samples that can show a risk below `level`, reached if all losses are 0.

    Raises:
        InputError: If it is `MOST_SAMPLES` or more.
    """
    shows = bisect.bisect_left(range(1, MOST_SAMPLES), True, key=lambda n: is_below(np.zeros(n), level, delta))
    if shows == MOST_SAMPLES - 1:
        raise InputError(
            f"an error below {level} cannot be shown with fewer than {MOST_SAMPLES:,} samples: request a larger error"
        )
    return shows + 1
