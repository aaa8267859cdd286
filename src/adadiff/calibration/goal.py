"""What is asked of a calibration: a budget, a speedup, or a bound on the error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adadiff.errors import InputError

SEED = 2_000_000
"""Of the noise to calibrate on by default: what sampling by default does not use."""


@dataclass(frozen=True)
class Goal:
    """What is asked of a policy: one of the three.

    Args:
        compute: Spend this fraction of the full model's FLOPs, in (0, 1).
        error: Keep the mean difference from the full model's images below this, in (0, 1).
        speedup: Be so many times as fast as the full model on this machine, above 1.
        confidence: Of the bound on the error, in (0, 1).

    Raises:
        InputError: If not exactly one is given, or a value is out of range.
    """

    compute: float | None = None
    error: float | None = None
    speedup: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if len(self.asked) != 1:
            raise InputError("say what to reach: one of compute, error and speedup")
        for name in ("compute", "error", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InputError(f"{name} is {value}: it must be between 0 and 1")
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise InputError(f"the speedup is {self.speedup}: it must be above 1")

    @property
    def asked(self) -> dict[str, float]:
        """The one that is given, by name."""
        values = {"compute": self.compute, "error": self.error, "speedup": self.speedup}
        return {name: value for name, value in values.items() if value is not None}
