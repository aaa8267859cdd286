"""The service on many machines: an engine of the same contract, whose requests run on replicas under Ray Serve.

The HTTP service is that of one process, and stays in it. Ray Serve starts the replicas, each with an engine of its own,
sends requests to those with room, holds back what none has room for, and replaces a replica that dies. A request whose
replica dies is made again on another one: the same seed gives the same image, so that its client sees a delay alone.
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
from dataclasses import dataclass, field, replace

from adadiff.sampling import AdaptivePipeline
from adadiff.serving.admission import prepare
from adadiff.serving.conditions import ConditionEncoder
from adadiff.serving.costs import Batching
from adadiff.serving.handed import HandedRequest
from adadiff.serving.plans import Plans
from adadiff.serving.replica import Accepted, Refused, ReplicaState, as_one, deploy
from adadiff.serving.requests import (
    STOPPED,
    EngineState,
    Event,
    Failed,
    ImageRequest,
    Listener,
    Overloaded,
    Restarting,
    Stopped,
    Ticket,
)
from adadiff.utils.clusters import last_line

logger = logging.getLogger(__name__)

MOST_TRIES = 3
"""Replicas that a request is handed to; after the death of so many it fails, as it may be what they died of."""
REPLACED = 10.0
"""Seconds in which a replica is replaced, about; more where the model is large."""
AGAIN = 0.2
"""Seconds until a request that was cut off is sent again."""
LOOK = 0.5
"""Seconds after which the replicas are asked again how they are."""
ANSWER = 5.0
"""Seconds in which they have to answer."""


@dataclass(eq=False)
class _Followed:
    """A request that is not over, as it goes from replica to replica.

    Args:
        handed: The request.
        answer: Done once a replica has accepted it, or with the error that refuses it.
        task: What follows it, in the event loop.
        place: The replica that runs it, and its number there.
    """

    handed: HandedRequest
    answer: Future[None] = field(default_factory=Future)
    task: Future[None] | None = None
    place: tuple[str, int] | None = None


class ClusterEngine:
    """Runs image requests on replicas under Ray Serve, by the contract of `Engine`.

    Args:
        pipeline: The model, which requests are checked by; it is not run.
        load: Loads the model, in each replica.
        replicas: Number of replicas.
        name: Name of the application in Ray Serve; commands on several machines of a cluster have one each.
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
        self._plans, self._encoder, self._numbers = Plans(pipeline), ConditionEncoder(pipeline), itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="adadiff cluster", daemon=True)
        self._lock = threading.RLock()  # guards what follows
        self._open: dict[int, _Followed] = {}
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
            self._fail(number, Failed(0, STOPPED, "stopped"))
        with self._lock:
            was_alive, self._alive = self._alive, False
        if was_alive:
            from ray import serve

            serve.delete(self._name, _blocking=False)
            self._loop.call_soon_threadsafe(self._loop.stop)

    # --- requests -----------------------------------------------------------------------------------------------------

    def require_room(self) -> None:
        """Raise Stopped if a request would be refused now, whatever it asks for; Restarting if no replica runs."""
        with self._lock:
            if not self._accepting:
                raise Stopped("the service takes no requests: it has not started, or is stopping")
            if not self._answering:
                raise Restarting(REPLACED)

    def submit(self, request: ImageRequest, listener: Listener) -> Ticket:
        """Send a request to a replica, and return once it is accepted or refused; any thread may call this.

        Args:
            request: The images to make.
            listener: Called with every event of the request, on a thread of this engine; it must not block.

        Raises:
            InputError: If the request does not fit the model, or its policy looks at the whole batch.
            Overloaded: If it would wait longer than `max_wait`, or too many requests wait for a replica already.
            Stopped: If the engine has not started or is stopping; Restarting, if no replica runs but soon will.
        """
        prepare(request, self._plans, self._encoder)
        with self._lock:
            self.require_room()
            ticket = Ticket(next(self._numbers), request)
            followed = self._open[ticket.number] = _Followed(HandedRequest(ticket, listener))
            followed.task = asyncio.run_coroutine_threadsafe(self._follow(ticket.number, followed), self._loop)
        try:
            followed.answer.result(self.max_wait)
        except NoAnswer:
            self.cancel(ticket)
            raise self._overloaded() from None
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give a request up: no events follow, and its replica gets its slots back; any thread may call this."""
        with self._lock:
            followed = self._open.pop(ticket.number, None)
        if followed is not None and followed.task is not None:
            followed.task.cancel()

    async def _follow(self, number: int, followed: _Followed) -> None:
        """Have a request made by a replica, and by another one if that dies, until it is over."""
        from ray.exceptions import RayActorError, RayTaskError
        from ray.serve.exceptions import BackPressureError

        deaths = 0
        while followed.handed.missing:
            retry_after = None
            try:
                retry_after = await self._pass_on(number, followed)
            except BackPressureError:
                retry_after = self._overloaded().retry_after
            except (RayActorError, RayTaskError) as error:
                deaths += followed.place is not None  # else it died of something else
                logger.warning(f"a replica has died or failed: its requests are made again ({last_line(error)})")
                if deaths == MOST_TRIES:
                    self._fail(number, Failed(0, f"{MOST_TRIES} replicas died while the image was made: see their log"))
            except Exception as error:
                logger.exception("the cluster has failed")
                self._fail(number, Failed(0, f"the cluster has failed: {last_line(error)}", "engine"))
            if retry_after is not None and not followed.answer.done():
                with self._lock:
                    self._open.pop(number, None)
                followed.answer.set_exception(Overloaded(retry_after))
                return
            await asyncio.sleep(AGAIN if followed.handed.missing else 0)

    async def _pass_on(self, number: int, followed: _Followed) -> float | None:
        """Have a replica make the images that are missing; return its seconds to wait if it is overloaded."""
        followed.place = None
        events = self._streams.generate.remote(followed.handed.hand().request)
        try:
            async for event in events:
                if isinstance(event, Refused):
                    return event.retry_after
                if isinstance(event, Accepted):
                    followed.place = (event.replica, event.number)
                    if not followed.answer.done():
                        followed.answer.set_result(None)
                else:
                    self._publish(number, event)
        finally:
            events.cancel()
        return None

    def _publish(self, number: int, event: Event) -> None:
        """Tell a request's listener, unless the request was cancelled, or has seen as much of an earlier replica."""
        with self._lock:
            followed = self._open.get(number)
            if followed is not None:
                followed.handed.pass_on(event, self._open, self.cancel)

    def _fail(self, number: int, failure: Failed) -> None:
        """End a request: all its images that are missing have failed."""
        with self._lock:
            followed = self._open.get(number)
            if followed is None:
                return
            if not followed.answer.done():
                followed.answer.set_exception(Stopped(failure.message))
            for image in sorted(followed.handed.missing):
                followed.handed.tell(replace(failure, image=image), self._open, self.cancel)
        if followed.task is not None:
            followed.task.cancel()

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
            placed = {followed.place: followed.handed for followed in self._open.values()}
            answering = [state for name, state in self._replica_states.items() if name in self._answering]
            running = tuple(
                replace(sample, request=request.ticket.number, image=request.asked[sample.image])
                for state in answering
                for sample in state.engine.running
                if (request := placed.get((state.replica, sample.request))) is not None
            )
            images = sum(len(followed.handed.missing) for followed in self._open.values())
            return as_one(
                now=[state.engine for state in answering],
                ever=[state.engine for state in self._replica_states.values()],
                running=running,
                waiting=max(0, images - len(running)),
                alive=self._alive,
                ready=self._accepting and bool(answering),
                held_back=self._held_back,
                restarts=max(0, len(self._replica_states) - self._replicas),
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
