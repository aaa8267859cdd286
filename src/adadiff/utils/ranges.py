"""Numeric ranges as type annotations of configuration fields, and one function that checks all of them."""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from adadiff.utils.errors import InputError

Config = TypeVar("Config")

Returned = TypeVar("Returned")

Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
Workers = Annotated[int, Field(ge=0, le=1024)]  # each is a process of its own
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

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Batches:
        ...     size: Count
        >>> check_ranges(Batches(0))
        Traceback (most recent call last):
        adadiff.utils.errors.InputError: size is 0: it must be greater than or equal to 1
    """
    return _checked_fields(config)


def _checked_fields(config: Config, *outer: str) -> Config:
    """Check a dataclass field by field; `outer` are the names of the fields that it is nested in."""
    hints, values = get_type_hints(type(config), include_extras=True), {}
    for part in fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, part.name), (*outer, part.name)
        if is_dataclass(value):
            values[part.name] = _checked_fields(value, *name)  # of its own class, which may be narrower than declared
            continue
        try:
            values[part.name] = TypeAdapter(hints[part.name]).validate_python(value)
        except ValidationError as error:
            raise _out_of_range(error, *name) from error
    return replace(config, **values)  # type: ignore[type-var]


def checked(function: Callable[..., Returned]) -> Callable[..., Returned]:
    """Make a function raise InputError, before it starts, where an argument is outside its parameter's declared range.

    Configurations among the arguments are checked field by field.

    Examples:
        >>> @checked
        ... def sample(steps: Count) -> None: ...
        >>> sample(steps=0)
        Traceback (most recent call last):
        adadiff.utils.errors.InputError: steps is 0: it must be greater than or equal to 1
    """

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Returned:
        hints = get_type_hints(function, include_extras=True)
        for name, value in inspect.signature(function).bind(*args, **kwargs).arguments.items():
            if is_dataclass(value) and not isinstance(value, type):
                check_ranges(value)
                continue
            try:
                TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                raise _out_of_range(error, name) from error
        return function(*args, **kwargs)

    return checking


def _out_of_range(error: ValidationError, *outer: str) -> InputError:
    first = error.errors(include_url=False)[0]
    name = ".".join([*outer, *(part for part in first["loc"] if isinstance(part, str))])
    wanted = first["msg"].replace("Input should be", "it must be")
    return InputError(f"{name} is {first['input']}: {wanted}")


def as_int(value: Any, name: str) -> int:
    """Return a whole number of Python, numpy or torch as an int.

    Raises:
        InputError: If the value is anything else, including a bool.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise InputError(f"{name} is {shown(value)}: it must be a whole number")
    return number


def as_float(value: Any, name: str) -> float:
    """Return a number of Python, numpy or torch as a float.

    Raises:
        InputError: If the value is anything else, including a bool or text.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise InputError(f"{name} is {shown(value)}: it must be a number")
    return float(number)


def plain(value: Any) -> Any:
    """Return the Python number of a numpy or torch scalar; return any other value unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def shown(value: Any) -> str:
    """Return a value's `repr` for messages, on one line and shortened if long."""
    return " ".join(reprlib.repr(value).split())
