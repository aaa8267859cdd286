"""Requests on the engine, as the event loop of the HTTP service sees them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from adadiff.serving.errors import ApiError
from adadiff.serving.protocol import GenerationRequest
from adadiff.serving.requests import Event, Failed, Finished, ImageEngine, ImageRequest, Preview
from adadiff.serving.served import PlannedRequest, ServedModel

MOST_SUBMITTING = 64
"""Requests that may be on their way to the engine at a time: one on other machines is slow to answer."""


class Generation:
    """Runs a request on the engine, and hands out its events in the event loop.

    Used as a context manager: whatever still runs at the end of the block is cancelled, and its slots are free at the
    engine's next tick.

    Args:
        engine: The engine.
        request: What it runs.
        loop: The event loop.

    Raises:
        Overloaded: If the wait would be too long.
        Stopped: If the engine takes no more work.
        InputError: If the plan cannot be served.
    """

    def __init__(self, engine: ImageEngine, request: ImageRequest, loop: asyncio.AbstractEventLoop) -> None:
        self._engine, self._loop = engine, loop
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._remaining = len(request.seeds)
        self.ticket = engine.submit(request, self._publish)

    def _publish(self, event: Event) -> None:
        """Pass an event from the engine's thread to the event loop."""
        with suppress(RuntimeError):  # the loop has been closed, so nobody waits any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    @property
    def complete(self) -> bool:
        """Whether every image has finished."""
        return self._remaining == 0

    async def event(self, timeout: float | None = None) -> Preview | Finished | None:
        """Return the next preview or finished image, or None after `timeout` seconds without one.

        Raises:
            ApiError: If an image failed; the others are given up too.
        """
        try:
            event = await asyncio.wait_for(self._events.get(), timeout)
        except asyncio.TimeoutError:
            return None
        if isinstance(event, Failed):
            status, code = (503, "stopped") if event.cause == "stopped" else (500, "generation_failed")
            raise ApiError(status, event.message, code)
        self._remaining -= isinstance(event, Finished)
        return event

    async def finished(self) -> list[Finished]:
        """Wait for all images, and return them in the order of the request."""
        images: list[Finished] = []
        while not self.complete:
            event = await self.event()
            if isinstance(event, Finished):
                images.append(event)
        return sorted(images, key=lambda image: image.image)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what still runs."""
        if not self.complete:
            self._engine.cancel(self.ticket)


class Intake:
    """Checks requests and hands them to the engine, on threads: it takes milliseconds, up to 25 for a new plan.

    One thread checks them, one after the other.

    Args:
        engine: The engine.
        model: Checks the requests.
    """

    def __init__(self, engine: ImageEngine, model: ServedModel) -> None:
        self._engine, self._model = engine, model
        self._thread = ThreadPoolExecutor(1, "adadiff requests")
        self._submitting = ThreadPoolExecutor(MOST_SUBMITTING, "adadiff submit")

    async def plan(self, request: GenerationRequest) -> PlannedRequest:
        """Return what the engine would run for a request.

        Raises:
            InputError: If the request does not fit the model.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._model.planned, request)

    async def begin(self, request: GenerationRequest) -> tuple[PlannedRequest, Generation]:
        """Hand a request to the engine; the errors are those of `plan` and of Generation."""
        planned, loop = await self.plan(request), asyncio.get_running_loop()
        begun = loop.run_in_executor(self._submitting, Generation, self._engine, planned.images, loop)
        try:
            return planned, await asyncio.shield(begun)
        except asyncio.CancelledError:
            begun.add_done_callback(_give_up)
            raise


def _give_up(begun: asyncio.Future[Generation]) -> None:
    """Cancel a request that nobody waits for any more."""
    if not begun.cancelled() and begun.exception() is None:
        begun.result().close()
