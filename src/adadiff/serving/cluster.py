"""The service on many machines: an engine of the same contract, whose requests run on replicas under Ray Serve.

The HTTP service is the same as of one process and stays in it. Ray Serve starts the replicas, each with an engine of its
own, sends requests to those that have room, holds back what all have no room for, and replaces a replica that dies. A
request whose replica dies is made again on another: the same seed gives the same image, so that nobody sees more of it
than a delay.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from dataclasses import dataclass, replace

from adadiff.sampling import AdaptivePipeline
from adadiff.serving.costs import Batching
from adadiff.serving.engine import Listener
from adadiff.serving.plans import Condition, Plans
from adadiff.serving.replica import Accepted, Refused, ReplicaState, as_one, deploy
from adadiff.serving.requests import (
    EngineState,
    Event,
    Failed,
    Finished,
    ImageRequest,
    Overloaded,
    Preview,
    Stopped,
    Ticket,
)

logger = logging.getLogger(__name__)

TRIES = 3
"""Replicas that may die under a request before it fails."""
AGAIN = 0.2
"""Seconds until a request that was cut off is sent again."""
LOOK = 0.5
"""Seconds after which the replicas are asked again how they are."""
ANSWER = 5.0
"""Seconds in which they have to answer."""


@dataclass(eq=False)
class _Open:
    """A request that is not over.

    Args:
        request: The request.
        listener: Who listens.
        images: Positions of the images that are to come.
        begun: When it was submitted, in seconds of `time.monotonic`.
        answer: Whether it was accepted, once a replica has said so.
        task: What follows it, in the event loop.
        place: The replica that runs it and its number there.
        previewed: By image, the step of the newest preview.
    """

    request: ImageRequest
    listener: Listener
    images: set[int]
    begun: float
    answer: Future[None]
    previewed: dict[int, int]
    task: Future[None] | None = None
    place: tuple[str, int] | None = None


class ClusterEngine:
    """Runs image requests on replicas under Ray Serve, by the contract of `Engine`.

    Args:
        pipeline: The model, which requests are checked by; it is not run.
        load: Loads the model, in each replica.
        replicas: Number of replicas.
        name: Name of the application in Ray Serve.
        slots: Most samples on their way at a time, in each replica.
        width: Most samples in one call of the model.
        max_wait: Seconds that a request may have to wait before it is refused.
        use_gpus: Whether replicas have a GPU each if the cluster has GPUs.
    """

    def __init__(
        self,
        pipeline: AdaptivePipeline,
        load: Callable[[], AdaptivePipeline],
        replicas: int,
        name: str,
        slots: int = 32,
        width: int = 16,
        max_wait: float = 30.0,
        use_gpus: bool = True,
    ) -> None:
        self.pipeline, self.slots, self.width, self.max_wait = pipeline, slots, min(width, slots), max_wait
        self._load, self._replicas, self._name, self._use_gpus = load, replicas, name, use_gpus
        self._plans, self._numbers = Plans(pipeline), itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="adadiff cluster", daemon=True)
        self._lock = threading.RLock()  # guards what follows
        self._open: dict[int, _Open] = {}
        self._accepting = self._alive = False
        self._replica_states: dict[str, ReplicaState] = {}  # of all that ever were, since they count what was done
        self._answering: set[str] = set()
        self._held_back = 0

    # --- starting and ending ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the replicas, and return once all run.

        Raises:
            InputError: If the model's own plan cannot be served, the cluster has no room, or a replica cannot start.
        """
        self._plans.prepare(self.pipeline.sampling_settings())
        self._handle = deploy(
            self._load, self._replicas, self._name, self.slots, self.width, self.max_wait, self._use_gpus
        )
        self._streams = self._handle.options(stream=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._ask_replicas(), self._loop).result()
        asyncio.run_coroutine_threadsafe(self._watch(), self._loop)
        with self._lock:
            self._accepting = self._alive = True

    def stop(self, drain: float) -> None:
        """Take no more requests, and return once the replicas are told to end.

        Args:
            drain: Seconds in which accepted requests may still finish; those that do not are failed.
        """
        with self._lock:
            self._accepting = False
        until = time.monotonic() + drain
        while self._open and time.monotonic() < until:
            time.sleep(LOOK / 10)
        for number in list(self._open):
            self._fail(number, "the service was stopped before the image was finished")
        with self._lock:
            was_alive, self._alive = self._alive, False
        if was_alive:
            from ray import serve

            serve.delete(self._name, _blocking=False)
            self._loop.call_soon_threadsafe(self._loop.stop)

    # --- requests -----------------------------------------------------------------------------------------------------

    def submit(self, request: ImageRequest, listener: Listener) -> Ticket:
        """Send a request to a replica, and return once it is accepted or refused; any thread may call this.

        Args:
            request: The images to make.
            listener: Called with every event of the request, on a thread of this engine; it must not block.

        Raises:
            InputError: If the request does not fit the model, or its policy looks at the whole batch.
            Overloaded: If it would wait longer than `max_wait`, or too many requests wait for a replica already.
            Stopped: If the engine has not started or is stopping.
        """
        self._plans.prepare(request.plan)
        condition = Condition(request.class_label, request.prompt, request.negative_prompt)
        condition.check(self.pipeline, request.plan.guidance.scale > 1)
        opened = _Open(request, listener, set(range(len(request.seeds))), time.monotonic(), Future(), {})
        with self._lock:
            if not self._accepting:
                raise Stopped("the service takes no requests: it has not started, or is stopping")
            ticket = Ticket(next(self._numbers), request)
            self._open[ticket.number] = opened
            opened.task = asyncio.run_coroutine_threadsafe(self._follow(ticket.number, opened), self._loop)
        try:
            opened.answer.result(self.max_wait)
        except NoAnswer:
            self.cancel(ticket)
            raise self._overloaded() from None
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give a request up: no events follow, and its replica gets its slots back; any thread may call this."""
        with self._lock:
            opened = self._open.pop(ticket.number, None)
        if opened is not None and opened.task is not None:
            opened.task.cancel()

    async def _follow(self, number: int, opened: _Open) -> None:
        """Have a request made by a replica, and by another one if that dies, until it is over."""
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import BackPressureError

        deaths = 0
        while opened.images:
            try:
                refused = await self._pass_on(number, opened)
            except BackPressureError:
                refused = Refused(self._overloaded().retry_after)
            except (RayActorError, RayTaskError, Stopped) as error:
                deaths += 1
                logger.warning(f"a replica has died or failed, and its requests are made again: {_in_one_line(error)}")
                if deaths == TRIES:
                    self._fail(number, f"{TRIES} replicas died one after the other while they made this image")
                    return
                refused = None
            except Exception as error:
                logger.exception("a request failed")
                self._fail(number, f"the cluster has failed: {_in_one_line(error)}")
                return
            if refused is not None and refused.retry_after is not None and not opened.answer.done():
                with self._lock:
                    self._open.pop(number, None)
                opened.answer.set_exception(Overloaded(refused.retry_after))
                return
            if opened.images:
                await asyncio.sleep(AGAIN)

    async def _pass_on(self, number: int, opened: _Open) -> Refused | None:
        """Have a replica make the images that are to come; return its refusal if it refuses."""
        images = sorted(opened.images)
        seeds = tuple(opened.request.seeds[image] for image in images)
        events = self._streams.generate.remote(replace(opened.request, seeds=seeds))
        try:
            async for event in events:
                if isinstance(event, Refused):
                    return event
                if isinstance(event, Accepted):
                    opened.place = (event.replica, event.number)
                    if not opened.answer.done():
                        opened.answer.set_result(None)
                else:
                    self._publish(number, opened, replace(event, image=images[event.image]))
        finally:
            opened.place = None
            events.cancel()
        return None

    def _publish(self, number: int, opened: _Open, event: Event) -> None:
        """Call a request's listener, unless the request was cancelled, or the event was published before."""
        with self._lock:
            if number not in self._open or event.image not in opened.images:
                return
            if isinstance(event, Preview):
                if event.step <= opened.previewed.get(event.image, 0):
                    return
                opened.previewed[event.image] = event.step
            else:
                opened.images.discard(event.image)
                if not opened.images:
                    del self._open[number]
            if isinstance(event, Finished):
                event = replace(event, seconds=time.monotonic() - opened.begun)
            try:
                opened.listener(event)
            except Exception:
                logger.exception(f"the listener of request {number} has failed: the request is cancelled")
                opened.images.clear()
                self._open.pop(number, None)

    def _fail(self, number: int, message: str) -> None:
        """End a request: all its images that are to come have failed."""
        opened = self._open.get(number)
        if opened is None:
            return
        for image in sorted(opened.images):
            self._publish(number, opened, Failed(image, message))
        if not opened.answer.done():
            opened.answer.set_exception(Stopped(message))
        if opened.task is not None:
            opened.task.cancel()

    def _overloaded(self) -> Overloaded:
        """Count a request that no replica had room for; estimate when one will have."""
        with self._lock:
            self._held_back += 1
        state = self.state
        return Overloaded(min(max(state.waiting / max(state.images_per_second, 0.1), 1.0), self.max_wait))

    # --- the replicas -------------------------------------------------------------------------------------------------

    @property
    def batching(self) -> Batching:
        """How samples run together, in all replicas: the calls of all make one wide call."""
        with self._lock:
            batchings = [self._replica_states[name].batching for name in sorted(self._answering)]
        return replace(batchings[0], width=sum(each.width for each in batchings)) if batchings else Batching("mixed", 1)

    @property
    def state(self) -> EngineState:
        """The engines of all replicas as one: the requests as they are now, the rest as the replicas last said."""
        with self._lock:
            numbers = {opened.place: number for number, opened in self._open.items()}
            answering = [state for name, state in self._replica_states.items() if name in self._answering]
            running = tuple(
                replace(sample, request=numbers[state.replica, sample.request])
                for state in answering
                for sample in state.engine.running
                if (state.replica, sample.request) in numbers
            )
            images = sum(len(opened.images) for opened in self._open.values())
            return as_one(
                now=[state.engine for state in answering],
                ever=[state.engine for state in self._replica_states.values()],
                running=running,
                waiting=max(0, images - len(running)),
                alive=self._alive,
                ready=self._accepting and bool(answering),
                held_back=self._held_back,
            )

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            await self._ask_replicas()

    async def _ask_replicas(self) -> None:
        """Ask the replicas how they are; those that do not answer are not counted as running."""
        try:
            answers = await self._handle.broadcast("state").results_async(timeout_s=ANSWER, return_exceptions=True)
        except Exception as error:
            logger.debug(f"the replicas do not answer: {error}")
            answers = []
        states = [answer for answer in answers if isinstance(answer, ReplicaState)]
        with self._lock:
            self._answering = {state.replica for state in states}
            self._replica_states.update({state.replica: state for state in states})


def _in_one_line(error: Exception) -> str:
    """Return the last line of an error's text: errors of Ray hold the whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
