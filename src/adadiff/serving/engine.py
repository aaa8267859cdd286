"""The engine: one thread that runs the samples of all requests together, each at its own step and depth.

Other threads submit requests, cancel them and read the state; the engine's thread alone runs the model. It goes round:
take in what was asked, give free slots to waiting images, choose the samples of this tick, take their step in one call,
and publish what came out.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, replace

from adadiff.sampling import AdaptivePipeline
from adadiff.serving.admission import Outlook, prepare
from adadiff.serving.conditions import ConditionEncoder
from adadiff.serving.costs import (
    Batching,
    CallCosts,
    Profile,
    WorkEstimate,
    fastest_batching,
    measure_costs,
)
from adadiff.serving.plans import Plans
from adadiff.serving.requests import (
    STOPPED,
    EngineState,
    Event,
    Failed,
    Finished,
    ImageRequest,
    Listener,
    Overloaded,
    Preview,
    Stopped,
    Ticket,
)
from adadiff.serving.running import RunningSamples, Tick
from adadiff.serving.waiting import Job, WaitingImages
from adadiff.utils.errors import InputError, one_line

logger = logging.getLogger(__name__)

HEARTBEAT = 0.5
"""Seconds after which an idle engine goes round."""
RECENT = 30.0
"""Seconds over which images a second are counted."""


@dataclass
class _Open:
    """A request that is not over: who listens, and the images that are still to come."""

    listener: Listener
    images: set[int]


@dataclass(frozen=True)
class _Cancel:
    number: int


@dataclass(frozen=True)
class _Stop:
    deadline: float


class Engine:
    """Runs image requests on one model.

    Args:
        pipeline: The model; nothing else may use it while the engine runs.
        slots: Most samples on their way at a time.
        width: Most samples in one call of the model; if narrower calls are faster on this machine, those are made.
        max_wait: Seconds that a request may have to wait for a slot; one that would wait longer is refused.

    Raises:
        InputError: If a value is out of range.

    Examples:
        >>> import queue
        >>> from adadiff import AdaDiffPipeline
        >>> from adadiff.sampling import SamplingPlan
        >>> engine = Engine(AdaDiffPipeline.from_pretrained("digits"))
        >>> engine.start()
        >>> events = queue.SimpleQueue()
        >>> ticket = engine.submit(ImageRequest(seeds=(0, 1), plan=SamplingPlan(steps=2)), events.put)
        >>> [events.get().pixels.shape for _ in range(2)]
        [torch.Size([1, 8, 8]), torch.Size([1, 8, 8])]
        >>> engine.stop(drain=0)
    """

    def __init__(self, pipeline: AdaptivePipeline, slots: int = 32, width: int = 16, max_wait: float = 30.0) -> None:
        if slots < 1 or width < 1 or not max_wait > 0:
            raise InputError(
                f"{slots} slots, width {width}, {max_wait:g} seconds to wait: slots and width must be at least 1, and "
                f"the seconds above 0"
            )
        self.pipeline, self.slots, self.width, self.max_wait = pipeline, slots, min(width, slots), max_wait
        self._plans, self._encoder, self._numbers = Plans(pipeline), ConditionEncoder(pipeline), itertools.count()
        self._commands: queue.SimpleQueue[Job | _Cancel | _Stop] = queue.SimpleQueue()
        self._waiting, self._running = WaitingImages(), RunningSamples(pipeline, slots, self._encoder)
        self._deadline: float | None = None  # when a stopping engine fails what is left
        self._thread = threading.Thread(target=self._run, name="adadiff engine", daemon=True)
        self._lock = threading.RLock()  # guards what other threads use too: all that follows
        self._open: dict[int, _Open] = {}
        self._accepting = self._alive = False
        self._outlook = Outlook.of([], slots)  # as the last round left it
        self._submitted: dict[int, list[float]] = {}  # by request, the work of each image that came in since
        self._finish_times: deque[float] = deque(maxlen=4096)
        self._last_round = self._started = time.monotonic()
        self._state = EngineState(slots)

    @property
    def batching(self) -> Batching:
        """How samples run together, as chosen at the start."""
        return self._running.batching

    @property
    def costs(self) -> CallCosts:
        """Seconds of calls, as measured at the start."""
        return self._estimate.costs

    def start(self, costs: CallCosts | None = None) -> None:
        """Choose how samples run together, by the costs of calls, and start the thread.

        Args:
            costs: Costs that another engine has measured for the model on this machine; by default they are measured.

        Raises:
            InputError: If the model's own plan cannot be served.
        """
        prepared, model = self._plans.prepare(self.pipeline.sampling_settings()), self.pipeline.transformer
        can_guide = model.backbone.context_shape is not None or model.config.null_class is not None
        costs = costs or measure_costs(self.pipeline, self.width * (2 if can_guide else 1))
        profile = Profile(prepared.layers, prepared.guided)
        batching = fastest_batching(costs, profile, self.pipeline.denoiser.depth, self.slots, self.width)
        self._running.batching, self._estimate = batching, WorkEstimate(costs, batching.width)
        logger.info(f"samples run together by {batching}; costs of calls: {costs}")
        self._accepting = self._alive = True
        self._started = time.monotonic()
        self._thread.start()

    def require_room(self) -> None:
        """Raise Overloaded or Stopped if a request would be refused now, whatever it asks for."""
        self._admit([])

    def submit(self, request: ImageRequest, listener: Listener, number: int | None = None) -> Ticket:
        """Accept a request, or refuse it at once; any thread may call this.

        Args:
            request: The images to make.
            listener: Called with every event of the request, on the engine's thread; it must not block.
            number: Number of the ticket, which no other has; by default the next one.

        Raises:
            InputError: If the request does not fit the model, or its policy looks at the whole batch.
            Overloaded: If it would wait longer than `max_wait` for a slot.
            Stopped: If the engine has not started, is stopping, or has failed.
        """
        self.require_room()  # before any work is spent on it
        prepared, condition = prepare(request, self._plans, self._encoder)
        with self._lock:
            ahead = self._estimate.ahead(Profile(prepared.layers, prepared.guided))
            images = [ahead[0]] * len(request.seeds)
            self._admit(images)
            ticket = Ticket(next(self._numbers) if number is None else number, request)
            self._submitted[ticket.number] = images
            self._open[ticket.number] = _Open(listener, set(range(len(request.seeds))))
            self._commands.put(Job(ticket, prepared, condition, time.monotonic(), ahead))
        return ticket

    def _admit(self, images: list[float]) -> None:
        """Raise Overloaded or Stopped if images of the given work would be refused."""
        with self._lock:
            if not self._accepting:
                raise Stopped("the engine takes no requests: it has not started, is stopping, or has failed")
            try:
                self.outlook.admit(images, self.max_wait)
            except Overloaded:
                self._state = replace(self._state, rejected=self._state.rejected + 1)
                raise

    def cancel(self, ticket: Ticket) -> None:
        """Give a request up: no events follow, and its slots are free at the next tick; any thread may call this."""
        with self._lock:
            if self._open.pop(ticket.number, None) is not None:
                self._commands.put(_Cancel(ticket.number))

    def stop(self, drain: float) -> None:
        """Take no more requests, and return once the thread has ended.

        Args:
            drain: Seconds in which accepted requests may still finish; those that do not are failed.
        """
        with self._lock:
            self._accepting = False
        if self._thread.is_alive():
            self._commands.put(_Stop(time.monotonic() + drain))
            self._thread.join()

    @property
    def state(self) -> EngineState:
        """The engine at this moment; any thread may ask."""
        with self._lock:
            now = time.monotonic()
            recent = sum(now - finished < RECENT for finished in self._finish_times)
            return replace(
                self._state,
                alive=self._alive,
                ready=self._accepting,
                seconds_since_tick=now - self._last_round,
                waiting=self._state.waiting + sum(map(len, self._submitted.values())),
                images_per_second=recent / max(min(now - self._started, RECENT), 1e-3),
            )

    @property
    def outlook(self) -> Outlook:
        """How long further images would wait for a slot; any thread may ask."""
        with self._lock:
            return self._outlook.after(list(itertools.chain.from_iterable(self._submitted.values())))

    def _run(self) -> None:
        """Go round until the engine is stopped; a failure ends all requests at once."""
        failure = Failed(0, STOPPED, "stopped")
        try:
            while self._round():
                pass
        except BaseException as error:
            logger.exception("the engine has failed")
            reason = one_line(error)
            failure = Failed(0, f"the engine has failed: {reason}", "engine")
        with self._lock:
            self._accepting = self._alive = False
            self._submitted.clear()
            self._state = replace(self._state, running=(), waiting=0)
            left = [(number, image) for number, request in self._open.items() for image in sorted(request.images)]
        for number, image in left:
            self._publish(number, replace(failure, image=image))

    def _round(self) -> bool:
        """Carry out commands, run one tick if there is work, and return whether to go on."""
        taken = self._take_commands()
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        if is_late or (self._deadline is not None and self._is_idle):
            return False
        start = time.perf_counter()
        for number, failure in self._running.fill(self._waiting):
            self._publish(number, failure)
        self._describe(taken)
        if len(self._running):
            busy = not self._running.free
            tick = self._running.tick()
            self._count(tick)
            self._describe([])  # before a client that learns of its image asks for the next one
            for number, event in tick.events:
                self._publish(number, event)
            if busy:
                self._estimate.observe(tick.work, time.perf_counter() - start)
        elif self._is_idle:  # before the next round waits for commands
            self._describe([])
        return True

    @property
    def _is_idle(self) -> bool:
        return not len(self._running) and not len(self._waiting)

    def _take_commands(self) -> list[int]:
        """Carry out all commands given so far, and return the numbers of new requests.

        If there is nothing to do, wait for a command, but no longer than a heartbeat.
        """
        taken: list[int] = []
        try:
            command = self._commands.get(timeout=HEARTBEAT) if self._is_idle else self._commands.get_nowait()
            while True:
                if isinstance(command, Job):
                    taken.append(command.ticket.number)
                    self._waiting.add(command)
                elif isinstance(command, _Cancel):
                    self._waiting.remove(command.number)
                    self._running.remove(command.number)
                else:
                    self._deadline = min(command.deadline, self._deadline or command.deadline)
                command = self._commands.get_nowait()
        except queue.Empty:
            return taken

    def _count(self, tick: Tick) -> None:
        """Add a tick to the totals."""
        done = sum(isinstance(event, Finished) for _, event in tick.events)
        with self._lock:
            state = self._state
            self._finish_times.extend([time.monotonic()] * done)
            self._state = replace(
                state,
                ticks=state.ticks + 1,
                rows_of_last_tick=tick.rows,
                images_done=state.images_done + done,
                layers_run=state.layers_run + tick.layers,
                layers_full=state.layers_full + tick.rows * self.pipeline.denoiser.depth,
                batches=Counter(state.batches) + Counter([(tick.depth, tick.rows)]),
            )

    def _describe(self, taken: list[int]) -> None:
        """Write down for other threads who runs, who waits and for how long, `taken` being new requests among them."""
        slots = self._running.taken
        running_only = Outlook.of([slot.work_left for slot in slots], self.slots, self._estimate.correction)
        outlook = running_only.after(self._waiting.work())
        running = tuple(slot.state for slot in slots)
        with self._lock:
            for number in taken:
                del self._submitted[number]
            self._outlook = outlook
            self._state = replace(self._state, waiting=len(self._waiting), running=running)
            self._last_round = time.monotonic()

    def _publish(self, number: int, event: Event) -> None:
        """Call a request's listener, unless the request was cancelled."""
        with self._lock:
            request = self._open.get(number)
            if request is None:
                return
            if not isinstance(event, Preview):
                request.images.discard(event.image)
                if not request.images:
                    del self._open[number]
            try:
                request.listener(event)
            except Exception:
                logger.exception(f"the listener of request {number} has failed: the request is cancelled")
                self._open.pop(number, None)
                self._commands.put(_Cancel(number))
