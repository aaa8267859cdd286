"""Guidance: classifier-free (Ho & Salimans 2022, arXiv 2207.12598), and internal, by a prediction of early layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adadiff.utils.errors import InputError
from adadiff.utils.ranges import as_float, as_int, shown


@dataclass(frozen=True)
class InternalGuidance:
    """Leads every prediction away from the one read off after an early layer: g + w * (g - g_k).

    It needs no second run of the network, but the head once more (Zhou et al. 2025, arXiv 2512.24176; after
    autoguidance, Karras et al. 2024, arXiv 2406.02507). With classifier-free guidance both predictions of a pair are
    led so before they are combined.

    Args:
        layer: The early layer k, 1..N-1.
        weight: The weight w, above 0.
        interval: Steps that are led so, as fractions [start, end) of all steps, in [0, 1].

    Raises:
        InputError: If a value is out of range.

    Examples:
        >>> import torch
        >>> InternalGuidance(layer=3, weight=0.5).weights(torch.tensor([0, 9]), num_steps=10)
        tensor([0.5000, 0.5000])
    """

    layer: int
    weight: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", as_int(self.layer, "the layer of internal guidance"))
        object.__setattr__(self, "weight", as_float(self.weight, "the weight of internal guidance"))
        if self.layer < 1 or not 0 < self.weight < math.inf:
            raise InputError(
                f"internal guidance by layer {self.layer} with weight {self.weight}: the layer must be at least 1, and "
                f"the weight above 0"
            )
        object.__setattr__(self, "interval", checked_interval(self.interval, "the interval of internal guidance"))

    def weights(self, steps: Tensor, num_steps: int) -> Tensor:
        """Return the weight at steps counted from 0, (batch,) int64: (batch,) float32, 0 outside the interval."""
        start, end = self.interval
        fractions = steps.double() / num_steps
        return self.weight * ((start <= fractions) & (fractions < end)).float()


@dataclass(frozen=True)
class Guidance:
    """The settings of guidance: scale and steps of the classifier-free one, whether exits are tied, the internal one.

    Args:
        scale: Guidance scale as in diffusers, at least 1; 1 means no guidance. The `scale` s of the U-ViT and AdaDiff
            papers is 1 + s here.
        interval: Steps that are guided, as fractions [start, end) of all steps, in [0, 1] (Kynkäänniemi et al. 2024,
            arXiv 2404.07724).
        tied: Whether the conditional and the unconditional prediction exit together, once both may.
        internal: Internal guidance, or None.

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
    internal: InternalGuidance | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", as_float(self.scale, "the guidance scale"))
        if not 1 <= self.scale < math.inf:
            raise InputError(f"the guidance scale is {self.scale}: it must be at least 1, which means no guidance")
        object.__setattr__(self, "interval", checked_interval(self.interval, "the guidance interval"))

    def applies(self, step: int, num_steps: int) -> bool:
        """Return whether a step, counted from 0, is guided."""
        start, end = self.interval
        return self.scale > 1 and start <= step / num_steps < end

    @property
    def in_words(self) -> str:
        """What guides, in a few words.

        Examples:
            >>> Guidance(4, internal=InternalGuidance(3, 0.5, (0.1, 0.7))).in_words
            'scale 4 and internal by layer 3 x 0.5 in [0.1, 0.7)'
        """
        parts = [] if self.scale == 1 else [f"scale {self.scale:g}{_interval_in_words(self.interval)}"]
        if (internal := self.internal) is not None:
            weight = f"{internal.weight:g}{_interval_in_words(internal.interval)}"
            parts.append(f"internal by layer {internal.layer} x {weight}")
        return " and ".join(parts) or "unguided"

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Extrapolate from the unconditional to the conditional prediction, both (batch, channels, height, width)."""
        return unconditional + self.scale * (conditional - unconditional)


def checked_interval(interval: Any, name: str) -> tuple[float, float]:
    """Return two fractions of the steps in rising order; raise InputError, with that name, if they are not."""
    given = interval.tolist() if hasattr(interval, "tolist") else interval
    given = given if isinstance(given, (tuple, list)) else ()
    fractions = tuple(as_float(fraction, f"a fraction of {name}") for fraction in given)
    if len(fractions) != 2 or not 0 <= fractions[0] < fractions[1] <= 1:
        raise InputError(
            f"{name} is {shown(interval)}: it must be two fractions of the steps, in rising order between 0 and 1"
        )
    return fractions[0], fractions[1]


def _interval_in_words(interval: tuple[float, float]) -> str:
    return "" if interval == (0.0, 1.0) else f" in [{interval[0]:g}, {interval[1]:g})"
