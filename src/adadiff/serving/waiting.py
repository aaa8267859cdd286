"""Images that wait for a slot, in the order in which they get one."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from adadiff.serving.conditions import Condition
from adadiff.serving.plans import PreparedPlan
from adadiff.serving.requests import Ticket

YIELDS = 1
"""An image lets so many later requests go first, for each image of its own request before it."""


@dataclass(eq=False)
class Job:
    """A request on the engine.

    Args:
        ticket: Its ticket.
        prepared: Its plan.
        condition: What its images shall show.
        submitted: When it was submitted, in seconds of `time.monotonic`.
        ahead: Work left of an image before each step.
    """

    ticket: Ticket
    prepared: PreparedPlan
    condition: Condition
    submitted: float
    ahead: tuple[float, ...]


class WaitingImages:
    """Orders the images of all requests: first come, first served, but a request's images make room for others.

    So a request of one image passes the later images of a request of many, and none waits for ever.

    Examples:
        >>> from adadiff.sampling import SamplingPlan
        >>> from adadiff.serving.requests import ImageRequest
        >>> waiting = WaitingImages()
        >>> for number, images in enumerate((3, 1, 1)):
        ...     ticket = Ticket(number, ImageRequest((0,) * images, SamplingPlan(1)))
        ...     waiting.add(Job(ticket, None, Condition(), 0.0, (1.0,)))
        >>> [(job.ticket.number, image) for job, image in (waiting.pop() for _ in range(5))]
        [(0, 0), (0, 1), (1, 0), (0, 2), (2, 0)]
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, Job]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, job: Job) -> None:
        """Add all images of a request."""
        number = job.ticket.number
        for image in range(len(job.ticket.request.seeds)):
            heapq.heappush(self._heap, (number + YIELDS * image, number, image, job))

    def pop(self) -> tuple[Job, int]:
        """Take out the image that is next: its request, and its position there."""
        *_, image, job = heapq.heappop(self._heap)
        return job, image

    def remove(self, number: int) -> None:
        """Take out all images of a request."""
        self._heap = [entry for entry in self._heap if entry[1] != number]
        heapq.heapify(self._heap)

    def work(self) -> Sequence[float]:
        """Return the work of each image, in the order in which they get slots."""
        return [job.ahead[0] for *_, job in sorted(self._heap, key=lambda entry: entry[:3])]
