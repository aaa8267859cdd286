"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598); both predictions of a pair share one batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adadiff.utils.errors import InputError
from adadiff.utils.ranges import as_float, shown


@dataclass(frozen=True)
class Guidance:
    """The settings of classifier-free guidance: its scale, the guided steps, and whether exits are tied.

    Args:
        scale: Guidance scale as in diffusers, at least 1; 1 means no guidance. The `scale` s of the U-ViT and AdaDiff
            papers is 1 + s here.
        interval: Steps that are guided, as fractions [start, end) of all steps, in [0, 1] (Kynkäänniemi et al. 2024,
            arXiv 2404.07724).
        tied: Whether the conditional and the unconditional prediction exit together, once both may.

    Raises:
        InputError: If the scale or the interval is out of range.

    Examples:
        >>> guidance = Guidance(scale=6, interval=(0.25, 0.75))
        >>> [step for step in range(8) if guidance.applies(step, num_steps=8)]
        [2, 3, 4, 5]
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    tied: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", as_float(self.scale, "the guidance scale"))
        if not 1 <= self.scale < math.inf:
            raise InputError(f"the guidance scale is {self.scale}: it must be at least 1, which means no guidance")
        interval: Any = self.interval
        given = interval.tolist() if hasattr(interval, "tolist") else interval
        given = given if isinstance(given, (tuple, list)) else ()
        fractions = tuple(as_float(fraction, "a fraction of the guidance interval") for fraction in given)
        if len(fractions) != 2 or not 0 <= fractions[0] < fractions[1] <= 1:
            raise InputError(
                f"the guidance interval is {shown(interval)}: it must be two fractions of the steps, in rising order "
                f"between 0 and 1"
            )
        object.__setattr__(self, "interval", fractions)

    def applies(self, step: int, num_steps: int) -> bool:
        """Return whether a step, counted from 0, is guided."""
        start, end = self.interval
        return self.scale > 1 and start <= step / num_steps < end

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Extrapolate from the unconditional to the conditional prediction, both (batch, channels, height, width)."""
        return unconditional + self.scale * (conditional - unconditional)
