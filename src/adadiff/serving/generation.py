"""One request on the engine, as the event loop of the HTTP service sees it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from adadiff.serving.errors import ApiError
from adadiff.serving.requests import Event, Failed, Finished, ImageEngine, ImageRequest, Preview

SUBMITTING = ThreadPoolExecutor(64, thread_name_prefix="adadiff submit")  # apart from the pool that encodes images


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

    @classmethod
    async def begin(cls, engine: ImageEngine, request: ImageRequest) -> Generation:
        """Submit a request without holding up the event loop: an engine on other machines is slow to answer."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(SUBMITTING, cls, engine, request, loop)

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
