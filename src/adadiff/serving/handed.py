"""A request that one process after the other may work on, as its listener sees it: as if there were one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

from adadiff.serving.requests import Event, Finished, Listener, Preview, Ticket

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class HandedRequest:
    """An accepted request that is not over.

    Args:
        ticket: Its ticket.
        listener: Who listens.
        accepted: When it was accepted, in seconds of `time.monotonic`.
        missing: Positions of the images that are still to come.
        asked: Positions of the images that the last process was asked for.
        tries: Processes that it was handed to.
        shown: Steps of the last preview, by position of the image.
    """

    ticket: Ticket
    listener: Listener
    accepted: float = field(default_factory=time.monotonic)
    missing: set[int] = field(init=False)
    asked: tuple[int, ...] = ()
    tries: int = 0
    shown: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.missing = set(range(len(self.ticket.request.seeds)))

    def hand(self) -> Ticket:
        """Return what the next process is asked for: the images that are missing."""
        self.asked, self.tries = tuple(sorted(self.missing)), self.tries + 1
        request = self.ticket.request
        return Ticket(self.ticket.number, replace(request, seeds=tuple(request.seeds[image] for image in self.asked)))

    def translated(self, event: Event) -> Event | None:
        """Return a process's event with the image's position in the whole request, and the seconds since it came.

        A preview that an earlier process has gone beyond is None.
        """
        event = replace(event, image=self.asked[event.image])
        if isinstance(event, Preview):
            if event.step <= self.shown.get(event.image, 0):
                return None
            self.shown[event.image] = event.step
        elif isinstance(event, Finished):
            event = replace(event, seconds=time.monotonic() - self.accepted)
        return event

    def pass_on(self, event: Event, open_requests: MutableMapping[int, Any], cancel: Callable[[Ticket], None]) -> None:
        """Tell the listener of a process's event, unless it has seen as much of an earlier one; as `tell` does."""
        translated = self.translated(event)
        if translated is not None:
            self.tell(translated, open_requests, cancel)

    def tell(self, event: Event, open_requests: MutableMapping[int, Any], cancel: Callable[[Ticket], None]) -> None:
        """Tell the listener of a translated event.

        Args:
            event: The event.
            open_requests: Requests that are not over, by number; this one is taken out before its last event is told,
                so that the listener finds its slots free.
            cancel: Gives a request up; called if the listener fails.
        """
        if not isinstance(event, Preview):
            self.missing.discard(event.image)
            if not self.missing:
                open_requests.pop(self.ticket.number, None)
        try:
            self.listener(event)
        except Exception:
            logger.exception(f"the listener of request {self.ticket.number} has failed: the request is cancelled")
            cancel(self.ticket)
