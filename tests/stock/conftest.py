"""A tiny pipeline of every family, built once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import adadiff
from tests.stock.tiny import FAMILIES, TinyPipeline, build

_BUILT: dict[str, TinyPipeline] = {}


@pytest.fixture(params=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> Iterator[TinyPipeline]:
    """A pipeline of each family; disabled after the test."""
    name = request.param
    if name not in _BUILT:
        _BUILT[name] = build(name)
    yield _BUILT[name]
    adadiff.disable(_BUILT[name].pipe)
