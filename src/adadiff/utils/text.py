"""Numbers as text: with a noun, or with an error."""

from __future__ import annotations

import math


def counted(number: int, noun: str) -> str:
    """Format a number of things, with the noun in the plural for any number but one.

    Examples:
        >>> counted(1, "step"), counted(20, "step")
        ('1 step', '20 steps')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def with_error(value: float, error: float) -> str:
    """Format a value with its standard error, rounded to two significant digits of the error."""
    if not 0 < error < math.inf:
        return f"{value:.3g} ± {error:g}"
    exponent = math.floor(math.log10(max(abs(value), error)))
    if exponent < -4:
        return f"({with_error(value / 10**exponent, error / 10**exponent)})e{exponent}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
