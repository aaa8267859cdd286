"""An engine in a process of its own, which is started again when it dies, and gets accepted requests once more.

The service checks and admits requests itself, by what the child last reported, so that it never waits for the child.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace

import torch

from adadiff.sampling import AdaptivePipeline
from adadiff.serving.admission import Outlook, prepare
from adadiff.serving.conditions import ConditionEncoder
from adadiff.serving.costs import Batching, CallCosts, Profile, WorkEstimate
from adadiff.serving.engine_process import (
    GRACE,
    Begun,
    Broken,
    Cancel,
    EngineOptions,
    EngineProcess,
    Load,
    Progress,
    Refused,
    Report,
    Stop,
    Submit,
)
from adadiff.serving.handed import HandedRequest
from adadiff.serving.plans import Plans
from adadiff.serving.requests import (
    STOPPED,
    EngineState,
    Event,
    Failed,
    ImageRequest,
    Listener,
    Overloaded,
    Restarting,
    Running,
    Stopped,
    Ticket,
)
from adadiff.utils.errors import InputError

logger = logging.getLogger(__name__)

MOST_TRIES = 2
"""Processes that a request is handed to; after the death of so many it fails, as it may be what they died of."""
MOST_STARTS = 3
"""Processes that may die in a row before they take requests."""
TOTALS = ("ticks", "images_done", "layers_run", "layers_full")


class IsolatedEngine:
    """Runs image requests on one model in a child process, and starts it again when it dies, however it does.

    Requests that were accepted are handed to the next process, once; a request on its way at two deaths fails. While no
    process takes requests, further ones are refused with `Restarting`.

    Args:
        pipeline: The model, which requests are checked against; it never runs, and may be on any device.
        load: Loads the model in the child; it has to be picklable.
        slots: Most samples on their way at a time.
        width: Most samples in one call of the model.
        max_wait: Seconds that a request may have to wait for a slot; one that would wait longer is refused.
    """

    def __init__(
        self, pipeline: AdaptivePipeline, load: Load, slots: int = 32, width: int = 16, max_wait: float = 30.0
    ) -> None:
        self.slots, self.max_wait = slots, max_wait
        self._options = EngineOptions(load, slots, width, torch.get_num_threads())
        self._plans, self._encoder, self._numbers = Plans(pipeline), ConditionEncoder(pipeline), itertools.count()
        self._thread = threading.Thread(target=self._run, name="adadiff isolation", daemon=True)
        self._settled = threading.Event()  # the first process takes requests, or will not
        self._lock = threading.RLock()  # guards all that follows
        self._process: EngineProcess | None = None
        self._refusal: str | None = None  # why the model cannot be served
        self._alive = self._accepting = self._ready = False
        self._deadline: float | None = None  # when a stopping engine fails what is left
        self._open: dict[int, HandedRequest] = {}
        self._batching, self._estimate = Batching("mixed", width), WorkEstimate(CallCosts((1,), (0.0,), (0.0,)), width)
        self._outlook, self._state = Outlook.of([], slots), EngineState(slots)
        self._reported = self._launched = time.monotonic()
        self._start_seconds = 0.0
        self._handed = 0  # requests that the process was handed
        self._submitted: deque[tuple[int, list[float]]] = deque()  # those it has not reported, with their images' work
        self._rejected = self._restarts = 0
        self._totals, self._batches = Counter[str](), Counter[tuple[int, int]]()  # of processes that have died

    # --- for the service ----------------------------------------------------------------------------------------------

    @property
    def batching(self) -> Batching:
        """How samples run together."""
        return self._batching

    @property
    def pid(self) -> int | None:
        """Id of the process that the engine is in, or None before the start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the first process, and return once it takes requests.

        Raises:
            InputError: If the model cannot be served.
        """
        self._alive = True
        atexit.register(self.stop, 0)  # before multiprocessing waits for its children
        self._thread.start()
        self._settled.wait()
        if not self._ready:
            self.stop(0)
            raise InputError(self._refusal or "the engine's process has died while it started: its log says why")
        self._accepting = True

    def require_room(self) -> None:
        """Raise Overloaded or Stopped if a request would be refused now, whatever it asks for."""
        self._admit([])

    def submit(self, request: ImageRequest, listener: Listener) -> Ticket:
        """Accept a request, or refuse it at once, as `Engine.submit` does; any thread may call this.

        Raises:
            InputError: If the request does not fit the model, or its policy looks at the whole batch.
            Overloaded: If it would wait longer than `max_wait` for a slot.
            Stopped: If the engine takes no requests; Restarting, if it soon will again.
        """
        self.require_room()
        prepared, _ = prepare(request, self._plans, self._encoder)
        with self._lock:
            work = self._estimate.ahead(Profile(prepared.layers, prepared.guided))[0]
            self._admit([work] * len(request.seeds))
            ticket = Ticket(next(self._numbers), request)
            self._open[ticket.number] = HandedRequest(ticket, listener)
            self._hand(self._open[ticket.number], work)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give a request up: no events follow; any thread may call this."""
        with self._lock:
            if self._open.pop(ticket.number, None) is not None and self._process is not None:
                self._process.send(Cancel(ticket))

    def stop(self, drain: float) -> None:
        """Take no more requests, and return once the process has ended.

        Args:
            drain: Seconds in which accepted requests may still finish; those that do not are failed. If the process
                dies meanwhile, another one finishes them.
        """
        deadline = time.monotonic() + drain
        with self._lock:
            self._accepting = False
            self._deadline = min(deadline, self._deadline or deadline)
            grace = GRACE if self._ready else 0.0
            if self._ready and self._process is not None:
                self._process.send(Stop(drain))
            wait = drain if self._open else 0.0
        if not self._thread.is_alive():
            return
        self._thread.join(wait + grace)
        with self._lock:
            if self._process is not None and self._thread.is_alive():
                self._process.kill()
        self._thread.join()
        atexit.unregister(self.stop)

    @property
    def state(self) -> EngineState:
        """The engine at this moment; any thread may ask."""
        with self._lock:
            state, totals = self._state, self._totals
            since = time.monotonic() - self._reported
            waiting = sum(len(images) for _, images in self._submitted)
            if not self._ready:  # all wait for the next process
                waiting = sum(len(request.missing) for request in self._open.values())
            return replace(
                state,
                alive=self._alive,
                ready=self._alive and self._accepting and self._ready,
                seconds_since_tick=state.seconds_since_tick + since,
                waiting=state.waiting + waiting,
                rejected=self._rejected,
                batches=self._batches + Counter(state.batches),
                restarts=self._restarts,
                restarting=self._alive and not self._ready,
                **{name: totals[name] + getattr(state, name) for name in TOTALS},
            )

    def _admit(self, images: list[float]) -> None:
        """Raise Overloaded or Stopped if images of the given work would be refused."""
        with self._lock:
            if not (self._alive and self._accepting):
                raise Stopped("the engine takes no requests: it has not started, is stopping, or has failed")
            if not self._ready:
                raise Restarting(max(self._launched + self._start_seconds - time.monotonic(), 1.0))
            outlook = self._outlook.after(list(itertools.chain.from_iterable(works for _, works in self._submitted)))
            try:
                outlook.admit(images, self.max_wait)
            except Overloaded:
                self._rejected += 1
                raise

    def _hand(self, request: HandedRequest, work: float) -> None:
        """Hand a request, or what is left of it, to the process; `work` is that of each image."""
        assert self._process is not None
        self._handed += 1
        self._submitted.append((self._handed, [work] * len(request.missing)))
        self._process.send(Submit(request.hand()))

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Run one process after the other, until the engine is stopped."""
        failed_starts = 0
        while True:
            with self._lock:
                self._launched = time.monotonic()
                self._process = process = EngineProcess(self._options)
            reason, begun = "", False
            for report in process.reports():
                begun = begun or isinstance(report, Begun)
                reason = report.message if isinstance(report, (Broken, Refused)) else reason
                self._take(report)
            how = process.close()
            failed_starts = 0 if begun else failed_starts + 1
            if not self._bury(f"{reason}; {how}" if reason else how, failed_starts):
                break
        self._settled.set()

    def _take(self, report: Report) -> None:
        """Take in what the process reports."""
        if isinstance(report, Begun):
            self._begin(report)
        elif isinstance(report, Refused):
            self._refusal = report.message
        elif isinstance(report, Progress):
            with self._lock:
                while self._submitted and self._submitted[0][0] <= report.submitted:
                    self._submitted.popleft()
                running = tuple(self._running(report.state.running))
                self._state, self._outlook = replace(report.state, running=running), report.outlook
                self._reported = time.monotonic()
            for number, event in report.events:
                self._publish(number, event)

    def _begin(self, begun: Begun) -> None:
        """Hand all open requests to a process that now takes them."""
        with self._lock:
            self._options = replace(self._options, costs=begun.costs)
            self._batching, self._estimate = begun.batching, WorkEstimate(begun.costs, begun.batching.width)
            self._reported, self._ready = time.monotonic(), True
            self._start_seconds = self._reported - self._launched
            for _, request in sorted(self._open.items()):
                prepared = self._plans.prepare(request.ticket.request.plan)
                self._hand(request, self._estimate.ahead(Profile(prepared.layers, prepared.guided))[0])
            if self._deadline is not None and self._process is not None:
                self._process.send(Stop(max(self._deadline - time.monotonic(), 0.0)))
        self._settled.set()

    def _running(self, running: Iterable[Running]) -> Iterable[Running]:
        """Yield running samples with their positions in the requests as these were accepted."""
        for sample in running:
            request = self._open.get(sample.request)
            if request is not None:
                yield replace(sample, image=request.asked[sample.image])

    def _publish(self, number: int, event: Event) -> None:
        """Tell a request's listener, unless the request was cancelled, or has seen as much of an earlier process."""
        with self._lock:
            request = self._open.get(number)
            if request is not None:
                request.pass_on(event, self._open, self.cancel)

    def _bury(self, how: str, failed_starts: int) -> bool:
        """Note the end of a process, fail the requests that no other one gets, and return whether to start another."""
        with self._lock:
            self._forget_process()
            is_late = self._deadline is not None and time.monotonic() >= self._deadline
            if not is_late and (failed_starts >= MOST_STARTS or not self._settled.is_set()):
                self._fail(Failed(0, f"the engine has failed: its process cannot be started ({how})", "engine"))
            elif not is_late:
                message = f"the engine's process died twice while the image was made ({how}): the log says more"
                self._fail(Failed(0, message), MOST_TRIES)
                if self._open or self._deadline is None:
                    logger.error(f"the engine's process has died ({how}) and is started again")
                    self._restarts += 1
                    return True
            self._fail(Failed(0, STOPPED, "stopped"))
            self._alive = False
            return False

    def _forget_process(self) -> None:
        """Keep the totals of a process that has ended, and nothing else."""
        self._totals.update({name: getattr(self._state, name) for name in TOTALS})
        self._batches.update(self._state.batches)
        self._state, self._outlook = EngineState(self.slots), Outlook.of([], self.slots)
        self._reported, self._ready, self._handed = time.monotonic(), False, 0
        self._submitted.clear()

    def _fail(self, failure: Failed, tries: int = 0) -> None:
        """Fail the open requests that were handed to so many processes."""
        for request in [request for request in self._open.values() if request.tries >= tries]:
            for image in sorted(request.missing):
                request.tell(replace(failure, image=image), self._open, self.cancel)
