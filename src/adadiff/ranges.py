"""Numeric ranges that a configuration declares beside its fields, and one check for all of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, TypeAdapter, ValidationError

from adadiff.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # torch.manual_seed takes no more
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveOrInfinite = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
GuidanceScale = Annotated[float, Field(ge=1, allow_inf_nan=False)]


def check_ranges(config: DataclassInstance) -> None:
    """Raise InputError at the first field, of nested configurations too, that is outside its declared range.

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
        TypeAdapter(type(config)).validate_python(asdict(config))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(part for part in first["loc"] if isinstance(part, str))
        wanted = first["msg"].replace("Input should be", "it must be")
        raise InputError(f"{name} is {first['input']}: {wanted}") from error
