"""The samples of a tick: which of the running samples take their next step together. Pure functions on plain data.

Two rules. `mixed` runs whoever is next in turn. `barrier` lets samples at shallow steps go first, so that those at
deep steps wait for each other and share one deep call: where a call costs by its layers rather than by its rows, as on
a GPU, someone is nearly always at a full step, and a mixed batch would run all layers in every call. No sample waits
for others more than `PATIENCE` ticks, but for want of places in the call.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Rule = Literal["mixed", "barrier"]
RULES: tuple[Rule, ...] = ("mixed", "barrier")
PATIENCE = 3
"""Ticks that a sample at a deep step waits for others at most."""


@dataclass(frozen=True)
class Candidate:
    """A running sample that can take its next step.

    Args:
        request: Number of the request that it belongs to.
        deep: Whether its next step runs more than half of the layers.
        waited: Ticks since it took a step, or since it began.
    """

    request: int
    deep: bool
    waited: int


def choose(candidates: Sequence[Candidate], width: int, rule: Rule) -> list[int]:
    """Choose the samples that run in this tick.

    Requests take turns: each gets one place before any gets a second, those that waited longest first. Of one request,
    the samples that waited longest come first.

    Args:
        candidates: The running samples.
        width: Most samples in a call, at least 1.
        rule: Whether samples at deep steps wait for each other (`barrier`) or not (`mixed`).

    Returns:
        Positions of the chosen candidates, in ascending order; at least one if there are candidates.

    Examples:
        >>> shallow, deep = Candidate(0, deep=False, waited=0), Candidate(1, deep=True, waited=0)
        >>> choose([deep, shallow, deep], width=2, rule="mixed")
        [0, 1]
        >>> choose([deep, shallow, deep], width=2, rule="barrier")
        [1]
        >>> choose([Candidate(0, deep=True, waited=3), shallow], width=2, rule="barrier")
        [0, 1]
    """
    turns = _in_turn(candidates)
    if rule == "barrier":
        overdue = [place for place in turns if candidates[place].waited >= PATIENCE]
        shallow = [place for place in turns if not candidates[place].deep]
        if shallow and not any(candidates[place].deep for place in overdue):
            turns = shallow
        else:  # a deep call: places that are left in it cost shallow samples little
            turns = list(dict.fromkeys([*overdue, *(place for place in turns if candidates[place].deep), *shallow]))
    return sorted(turns[:width])


def _in_turn(candidates: Sequence[Candidate]) -> list[int]:
    """Order the positions of candidates: every request's first, then every request's second, and so on."""
    by_request: dict[int, list[int]] = defaultdict(list)
    for place, candidate in enumerate(candidates):
        by_request[candidate.request].append(place)
    turn: dict[int, int] = {}
    for places in by_request.values():
        places.sort(key=lambda place: -candidates[place].waited)
        turn.update((place, number) for number, place in enumerate(places))
    return sorted(turn, key=lambda place: (turn[place], -candidates[place].waited, place))
