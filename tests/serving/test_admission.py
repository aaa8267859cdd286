"""Expected waits, and who is turned away."""

from __future__ import annotations

import random

import pytest

from adadiff.serving.admission import MARGIN, Outlook
from adadiff.serving.requests import Overloaded


def shared_evenly(running: list[float], waiting: list[float], slots: int) -> float:
    """Work done until one more image starts: small pieces of work, given to every running sample in turn."""
    piece, done, running, waiting = 1e-3, 0.0, list(running), list(waiting)
    while True:
        while len(running) < slots and waiting:
            running.append(waiting.pop(0))
        if len(running) < slots:
            return done
        running = [work - piece for work in running if work > piece]
        done += slots * piece


@pytest.mark.parametrize("seed", range(20))
def test_expected_start_is_that_of_samples_that_share_evenly(seed: int) -> None:
    source = random.Random(seed)
    slots = source.randint(1, 4)
    running = [source.uniform(0.1, 1) for _ in range(source.randint(0, slots))]
    waiting = [source.uniform(0.1, 1) for _ in range(source.randint(0, 8))]
    expected = shared_evenly(running, waiting, slots)
    before = Outlook.of(running, slots, correction=2.0)
    parts = source.randint(0, len(waiting))
    after = before.after(waiting[:parts]).after(waiting[parts:])
    assert after.seconds == pytest.approx(2 * expected, abs=0.02 * slots)
    assert after.waiting == max(len(running) + len(waiting) - slots, 0)


def test_images_that_come_to_an_idle_engine_together_end_together() -> None:
    """Two times the slots, and one more: it waits for two rounds, and not only for the work of those that wait."""
    images = [1.0] * 8
    assert Outlook.of([], slots=4).after(images).seconds == 8.0


def test_a_request_is_refused_if_it_would_wait_too_long() -> None:
    outlook = Outlook.of([1.0, 3.0], slots=2)
    outlook.admit([1.0], max_wait=MARGIN * 2.0)
    with pytest.raises(Overloaded) as refused:
        outlook.admit([1.0], max_wait=MARGIN * 1.9)
    assert refused.value.retry_after == 2.0


def test_a_large_request_is_taken_only_if_no_others_wait() -> None:
    images = [1.0] * 10
    Outlook.of([], slots=2).admit(images, max_wait=MARGIN * 2.5)
    Outlook.of([1.0, 1.0], slots=2).admit(images, max_wait=MARGIN * 2.5)
    with pytest.raises(Overloaded) as refused:
        Outlook.of([1.0, 1.0], slots=2).after([0.1]).admit(images, max_wait=MARGIN * 2.5)
    assert refused.value.retry_after == 2.0
