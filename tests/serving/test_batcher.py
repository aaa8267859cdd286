"""The choice of the samples of a tick: its properties over random traffic."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadiff.serving.batcher import PATIENCE, RULES, Candidate, Rule, choose

CANDIDATES = st.lists(st.builds(Candidate, st.integers(0, 4), st.booleans(), st.integers(0, 9)), max_size=24)
WIDTHS = st.integers(1, 12)


@given(CANDIDATES, WIDTHS, st.sampled_from(RULES))
def test_choice_is_valid_and_never_idle(candidates: list[Candidate], width: int, rule: Rule) -> None:
    chosen = choose(candidates, width, rule)
    assert chosen == sorted(set(chosen))
    assert all(0 <= place < len(candidates) for place in chosen)
    assert len(chosen) <= width
    assert bool(chosen) == bool(candidates)


@given(CANDIDATES, WIDTHS)
def test_mixed_fills_the_call_and_gives_each_request_its_turn(candidates: list[Candidate], width: int) -> None:
    chosen = choose(candidates, width, "mixed")
    assert len(chosen) == min(width, len(candidates))
    places = {request: [place for place in chosen if candidates[place].request == request] for request in range(5)}
    left_out = {candidates[place].request for place in range(len(candidates)) if place not in chosen}
    for request in left_out:  # no other got two places more than one that could have used another
        assert max(len(own) for own in places.values()) <= len(places[request]) + 1


@given(CANDIDATES, WIDTHS, st.sampled_from(RULES))
def test_longest_waiting_runs_within_its_request(candidates: list[Candidate], width: int, rule: Rule) -> None:
    chosen = choose(candidates, width, rule)
    for place in chosen:
        own = candidates[place]
        passed_over = [
            other
            for k, other in enumerate(candidates)
            if k not in chosen and (other.request, other.deep) == (own.request, own.deep)
        ]
        assert all(other.waited <= own.waited for other in passed_over)


@given(CANDIDATES, WIDTHS)
def test_barrier_runs_shallow_steps_first(candidates: list[Candidate], width: int) -> None:
    chosen = [candidates[place] for place in choose(candidates, width, "barrier")]
    overdue = any(candidate.deep and candidate.waited >= PATIENCE for candidate in candidates)
    shallow = [candidate for candidate in candidates if not candidate.deep]
    if shallow and not overdue:
        assert not any(candidate.deep for candidate in chosen)
        assert len(chosen) == min(width, len(shallow))
    else:
        assert len(chosen) == min(width, len(candidates))


@dataclass
class Walker:
    """A sample of the simulated traffic."""

    request: int
    layers: list[bool]
    step: int = 0
    waited: int = 0
    longest: int = 0

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.request, self.layers[self.step], self.waited)


def walk(walkers: list[Walker], width: int, rule: Rule) -> int:
    """Run all samples to their end; returns the number of ticks."""
    ticks = 0
    while running := [walker for walker in walkers if walker.step < len(walker.layers)]:
        chosen = set(choose([walker.candidate for walker in running], width, rule))
        for place, walker in enumerate(running):
            if place in chosen:
                walker.step, walker.waited = walker.step + 1, 0
            else:
                walker.waited += 1
                walker.longest = max(walker.longest, walker.waited)
        ticks += 1
    return ticks


def random_walkers(source: random.Random, count: int) -> list[Walker]:
    return [
        Walker(source.randrange(max(count // 2, 1)), [source.random() < 0.4 for _ in range(source.randint(1, 20))])
        for _ in range(count)
    ]


@given(st.integers(0, 10**6), st.integers(1, 24), st.integers(1, 12), st.sampled_from(RULES))
def test_no_sample_starves(seed: int, count: int, width: int, rule: Rule) -> None:
    walkers = random_walkers(random.Random(seed), count)
    walk(walkers, width, rule)
    # the one that waited longest always runs once it is overdue, so that each of the others delays it by a tick at most
    assert max(walker.longest for walker in walkers) <= PATIENCE + count


@given(st.integers(0, 10**6), st.integers(1, 16))
def test_deep_steps_wait_three_ticks_at_most_where_there_is_room(seed: int, count: int) -> None:
    walkers = random_walkers(random.Random(seed), count)
    walk(walkers, count, "barrier")
    assert max(walker.longest for walker in walkers) <= PATIENCE


@pytest.mark.parametrize("rule", RULES)
def test_request_of_one_keeps_pace_beside_a_request_of_four(rule: Rule) -> None:
    single = Walker(1, [True] * 10)
    four = [Walker(0, [True] * 10) for _ in range(4)]
    walk([*four, single], 2, rule)
    assert single.longest == 0  # every tick has a place for it
    assert max(walker.longest for walker in four) <= 4


def test_barrier_gathers_samples_at_deep_steps() -> None:
    """A schedule that is full at every second step: in step with each other, samples share every deep call."""

    def deep_calls(rule: Rule) -> int:
        walkers = [Walker(k, [step % 2 == 0 for step in range(k % 2, 20)]) for k in range(8)]
        calls = 0
        while running := [walker for walker in walkers if walker.step < len(walker.layers)]:
            chosen = [running[place] for place in choose([walker.candidate for walker in running], 8, rule)]
            calls += any(walker.candidate.deep for walker in chosen)
            for walker in running:
                walker.waited += 1
            for walker in chosen:
                walker.step, walker.waited = walker.step + 1, 0
        return calls

    assert deep_calls("mixed") == 19  # in every tick but the last
    assert deep_calls("barrier") == 10
