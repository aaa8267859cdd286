"""The goal of a calibration: a compute budget, a speedup, or a bound on the error."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adadiff.utils.errors import InputError
from adadiff.utils.ranges import as_float

SEED = 2_000_000
"""Default seed of the noise to calibrate on; sampling has another default, so that the two share no noise."""


@dataclass(frozen=True)
class Goal:
    """The goal that a calibrated policy has to meet: exactly one of `compute`, `error` and `speedup`.

    Args:
        compute: Spend this fraction of the full model's FLOPs, in (0, 1).
        error: Keep the mean loss against the full model's images below this, in (0, 1).
        speedup: Be this many times as fast as the full model on this machine, above 1.
        confidence: Confidence of the bound on the error, in (0, 1).

    Raises:
        InputError: If not exactly one goal is given, or a value is out of range.

    Examples:
        >>> Goal(compute=0.55).asked
        {'compute': 0.55}
        >>> Goal(compute=0.55, speedup=2)
        Traceback (most recent call last):
        adadiff.utils.errors.InputError: give exactly one of compute, error and speedup
    """

    compute: float | None = None
    error: float | None = None
    speedup: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if len(self.asked) != 1:
            raise InputError("give exactly one of compute, error and speedup")
        for name, value in {**self.asked, "confidence": self.confidence}.items():
            object.__setattr__(self, name, as_float(value, name))
            if name != "speedup" and not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {value}: it must be between 0 and 1")
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise InputError(f"the speedup is {self.speedup}: it must be above 1")

    @property
    def asked(self) -> dict[str, float]:
        """The goal that is set, as a dictionary of its name and value."""
        values = {"compute": self.compute, "error": self.error, "speedup": self.speedup}
        return {name: value for name, value in values.items() if value is not None}
