"""Numeric ranges that a configuration declares beside its fields, and one check for all of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from adadiff.errors import InputError

Config = TypeVar("Config")

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # torch.manual_seed takes no more
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveOrInfinite = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
GuidanceScale = Annotated[float, Field(ge=1, allow_inf_nan=False)]


def check_ranges(config: Config) -> Config:
    """Check every field of a configuration dataclass, and of those nested in it, against its declared type and range.

    Returns:
        The configuration, with values of its declared types.

    Raises:
        InputError: At the first field that is out of range, by name.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Batches:
        ...     size: Count
        >>> check_ranges(Batches(0))
        Traceback (most recent call last):
        adadiff.errors.InputError: size is 0: it must be greater than or equal to 1
    """
    try:
        return TypeAdapter(type(config)).validate_python(asdict(config))  # type: ignore[call-overload]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(part for part in first["loc"] if isinstance(part, str))
        wanted = first["msg"].replace("Input should be", "it must be")
        raise InputError(f"{name} is {first['input']}: {wanted}") from error
