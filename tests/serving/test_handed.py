"""A request that several processes work on: its listener sees one."""

from __future__ import annotations

import torch

from adadiff.sampling import SamplingPlan
from adadiff.serving.handed import HandedRequest
from adadiff.serving.requests import Event, Failed, Finished, ImageRequest, Preview, Ticket


def preview(image: int, step: int) -> Preview:
    return Preview(image, step, 9, torch.zeros(1, 2, 2))


def test_the_next_process_is_asked_for_what_is_missing() -> None:
    request = HandedRequest(Ticket(7, ImageRequest((10, 11, 12), SamplingPlan(9), 2, previews=2)), lambda event: None)
    assert request.hand() == request.ticket
    request.missing -= {1}
    again = request.hand()
    assert (again.number, again.request.seeds, again.request.class_label, again.request.previews) == (7, (10, 12), 2, 2)
    assert request.tries == 2
    assert request.translated(Failed(1, "no")) == Failed(2, "no")


def test_previews_come_once_and_seconds_count_from_the_first_process() -> None:
    request = HandedRequest(Ticket(0, ImageRequest((1, 2), SamplingPlan(9))), lambda event: None, accepted=-1e6)
    request.hand()
    request.missing -= {0}
    steps = [(0, 3), (1, 3), (1, 6)]
    seen: list[Event | None] = [request.translated(preview(image, step)) for image, step in steps]
    request.hand()
    seen += [request.translated(preview(0, step)) for step in (3, 6, 8)]
    assert [(event.image, event.step) for event in seen if isinstance(event, Preview)] == [*steps, (1, 8)]
    finished = request.translated(Finished(0, torch.zeros(1, 2, 2), (5,), 1, 1, 0.5))
    assert isinstance(finished, Finished)
    assert finished.image == 1
    assert finished.seconds > 1e6


def test_a_request_is_over_before_its_listener_hears_of_its_last_image() -> None:
    still_open: list[bool] = []
    cancelled: list[Ticket] = []
    ticket = Ticket(7, ImageRequest((1, 2), SamplingPlan(9)))
    request = HandedRequest(ticket, lambda event: still_open.append(7 in requests))
    requests = {7: request}
    for event in (preview(0, 3), Failed(1, "no"), preview(0, 6), Failed(0, "no")):
        request.tell(event, requests, cancelled.append)
    assert still_open == [True, True, True, False]
    assert cancelled == []


def test_a_request_whose_listener_fails_is_cancelled() -> None:
    def failing(event: Event) -> None:
        raise ValueError

    ticket = Ticket(7, ImageRequest((1, 2), SamplingPlan(9)))
    cancelled: list[Ticket] = []
    HandedRequest(ticket, failing).tell(preview(0, 3), {}, cancelled.append)
    assert cancelled == [ticket]
