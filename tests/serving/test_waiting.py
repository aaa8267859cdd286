"""The order in which waiting images get slots: fair between requests, and no image is passed for ever."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adadiff.sampling import SamplingPlan
from adadiff.serving.conditions import Condition
from adadiff.serving.requests import ImageRequest, Ticket
from adadiff.serving.waiting import YIELDS, Job, WaitingImages

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=30)


def queued(sizes: list[int]) -> WaitingImages:
    waiting, nothing = WaitingImages(), Condition()
    prepared: Any = None
    for number, images in enumerate(sizes):
        ticket = Ticket(number, ImageRequest((0,) * images, SamplingPlan(1)))
        waiting.add(Job(ticket, prepared, nothing, 0.0, (float(number),)))
    return waiting


def served(waiting: WaitingImages) -> list[tuple[int, int]]:
    return [(job.ticket.number, image) for job, image in (waiting.pop() for _ in range(len(waiting)))]


@given(SIZES)
def test_every_image_is_served_once_in_its_request_s_order(sizes: list[int]) -> None:
    order = served(queued(sizes))
    for number, images in enumerate(sizes):
        assert [image for request, image in order if request == number] == list(range(images))
    assert len(order) == sum(sizes)


@given(SIZES)
def test_first_images_are_served_in_order_of_arrival(sizes: list[int]) -> None:
    assert [request for request, image in served(queued(sizes)) if image == 0] == list(range(len(sizes)))


@given(SIZES)
def test_image_is_passed_by_a_bounded_number_of_later_requests(sizes: list[int]) -> None:
    order = served(queued(sizes))
    for place, (number, image) in enumerate(order):
        assert all(request <= number + YIELDS * image for request, _ in order[:place])


def test_single_image_passes_later_images_of_a_large_request() -> None:
    assert served(queued([10, 1])).index((1, 0)) == 2


@given(SIZES, st.data())
def test_removed_requests_are_not_served(sizes: list[int], data: st.DataObject) -> None:
    removed = data.draw(st.integers(0, len(sizes) - 1))
    waiting = queued(sizes)
    waiting.remove(removed)
    work = waiting.work()
    order = served(waiting)
    assert order == [entry for entry in served(queued(sizes)) if entry[0] != removed]
    assert list(work) == [float(request) for request, _ in order]
