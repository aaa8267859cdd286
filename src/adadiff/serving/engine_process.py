"""The process that an isolated engine runs in, from either side: the child's loop, and the parent's handle on it.

Both talk in pickled objects over a pipe: commands one way, reports the other. The child ends when the pipe does, so
that it never outlives the service.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext

import torch

from adadiff.sampling import AdaptivePipeline
from adadiff.serving.admission import Outlook
from adadiff.serving.costs import Batching, CallCosts
from adadiff.serving.engine import Engine
from adadiff.serving.requests import EngineState, Event, Failed, Ticket
from adadiff.utils.errors import InputError, one_line

logger = logging.getLogger(__name__)

LATEST = 0.05
"""Seconds after which a busy engine reports its state, if no event does."""
IDLE = 0.5
"""Seconds after which an idle engine does."""
GRACE = 5.0
"""Seconds for a child to end by itself, once it has nothing more to do."""

Load = Callable[[], AdaptivePipeline]
"""Loads the model; it has to be picklable, as the child calls it."""


@dataclass(frozen=True)
class EngineOptions:
    """What the child needs to build its engine.

    Args:
        load: Loads the model.
        slots: Most samples on their way at a time.
        width: Most samples in one call of the model.
        threads: Threads of torch.
        costs: Costs of calls, if an earlier child has measured them.
    """

    load: Load
    slots: int
    width: int
    threads: int
    costs: CallCosts | None = None


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submit:
    """Run a request."""

    ticket: Ticket


@dataclass(frozen=True)
class Cancel:
    """Give a request up."""

    ticket: Ticket


@dataclass(frozen=True)
class Stop:
    """Let running requests finish within `drain` seconds, and end."""

    drain: float


Command = Submit | Cancel | Stop

# --- reports ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Begun:
    """The engine takes requests."""

    costs: CallCosts
    batching: Batching


@dataclass(frozen=True)
class Refused:
    """The model cannot be served; the message says why."""

    message: str


@dataclass(frozen=True)
class Broken:
    """The engine has failed, and the process ends; the message says why."""

    message: str


@dataclass(frozen=True)
class Progress:
    """What has happened since the last report.

    Args:
        events: Events, after the number of the request that each belongs to.
        state: The engine's state.
        outlook: How long further images would wait.
        submitted: Requests that it was handed so far, all of which `outlook` and `state` know of.
    """

    events: list[tuple[int, Event]]
    state: EngineState
    outlook: Outlook
    submitted: int


Report = Begun | Refused | Broken | Progress


def _dumped(message: Command | Report | EngineOptions) -> bytes:
    """Pickle a message: without the shared memory of `Connection.send`, which would die with the child."""
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


# --- the child --------------------------------------------------------------------------------------------------------


def run_engine(connection: Connection) -> None:
    """Run an engine until the service says so or is gone; the child's main function."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a group: the service says when to end
        signal.signal(number, signal.SIG_IGN)
    _Child(connection).run()


class _Child:
    """Reports on the main thread, and listens to the service on another."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._commands: queue.SimpleQueue[EngineOptions | Command] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[tuple[int, Event] | None] = queue.SimpleQueue()  # None: look at the state
        self._submitted = 0
        threading.Thread(target=self._listen, name="adadiff service", daemon=True).start()

    def run(self) -> None:
        """Build the engine and run it to its end."""
        options = self._commands.get()
        assert isinstance(options, EngineOptions)
        torch.set_num_threads(options.threads)
        try:
            self._engine = Engine(options.load(), options.slots, options.width, max_wait=math.inf)  # the service admits
            self._engine.start(options.costs)
        except InputError as error:
            self._send(Refused(str(error)))
            return
        self._send(Begun(self._engine.costs, self._engine.batching))
        threading.Thread(target=self._obey, name="adadiff commands", daemon=True).start()
        while self._engine.state.alive:
            self._report()
        self._engine.stop(0)  # returns once all its events are there
        self._news.put(None)
        self._report()

    def _listen(self) -> None:
        """Take commands as they come, and end with the service, whatever the engine is at."""
        try:
            while True:
                self._commands.put(pickle.loads(self._connection.recv_bytes()))
        except (EOFError, OSError):
            os._exit(1)

    def _report(self) -> None:
        """Wait for events, but no longer than until the next report is due, and send all that there are."""
        state, events = self._engine.state, list[tuple[int, Event]]()
        with suppress(queue.Empty):
            news = self._news.get(timeout=LATEST if state.running or state.waiting else IDLE)
            while True:
                events += [] if news is None else [news]
                news = self._news.get_nowait()
        failed = [event for _, event in events if isinstance(event, Failed) and event.cause == "engine"]
        events = [(number, _compact(event)) for number, event in events if event not in failed]
        submitted = self._submitted  # read before the state, which then knows of all of them
        self._send(Progress(events, self._engine.state, self._engine.outlook, submitted))
        if failed:
            self._send(Broken(failed[0].message))

    def _send(self, report: Report) -> None:
        try:
            self._connection.send_bytes(_dumped(report))
        except OSError:
            os._exit(1)  # the service is gone

    def _obey(self) -> None:
        """Carry out commands."""
        while True:
            command = self._commands.get()
            if isinstance(command, Submit):
                self._submit(command.ticket)
                self._submitted += 1
                self._news.put(None)
            elif isinstance(command, Cancel):
                self._engine.cancel(command.ticket)
            elif isinstance(command, Stop):
                threading.Thread(target=self._engine.stop, args=(command.drain,), daemon=True).start()

    def _submit(self, ticket: Ticket) -> None:
        def publish(event: Event) -> None:
            self._news.put((ticket.number, event))

        try:
            self._engine.submit(ticket.request, publish, ticket.number)
        except Exception as error:  # the service has checked the request: it concerns this one alone
            logger.exception(f"request {ticket.number} has failed")
            for image in range(len(ticket.request.seeds)):
                publish(Failed(image, one_line(error)))


def _compact(event: Event) -> Event:
    """Return an event whose pixels are pickled by themselves, without the batch that they were decoded in."""
    return event if isinstance(event, Failed) else replace(event, pixels=event.pixels.clone())


# --- the parent -------------------------------------------------------------------------------------------------------


class EngineProcess:
    """A child with an engine in it, as the service sees it; only `send` and `kill` may be called from any thread.

    Args:
        options: What it needs to build the engine.

    Attributes:
        pid: The child's process id.
    """

    def __init__(self, options: EngineOptions) -> None:
        # Forked from a process that has imported everything and runs nothing, it is there at once; where there is no
        # such thing, it has to import everything itself.
        has_server = "forkserver" in get_all_start_methods()
        context: ForkServerContext | SpawnContext = get_context("forkserver") if has_server else get_context("spawn")
        context.set_forkserver_preload([__name__])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run_engine, args=(theirs,), name="adadiff engine")
        self._process.start()
        self.pid = self._process.pid
        theirs.close()
        self._outbox: queue.SimpleQueue[Command | EngineOptions | None] = queue.SimpleQueue()
        self._outbox.put(options)
        self._sender = threading.Thread(target=self._send, name="adadiff engine's commands", daemon=True)
        self._sender.start()

    def send(self, command: Command) -> None:
        """Give a command, without waiting for the child to take it."""
        self._outbox.put(command)

    def reports(self) -> Iterator[Report]:
        """Yield the child's reports, until it ends."""
        with suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                yield pickle.loads(self._connection.recv_bytes())

    def kill(self) -> None:
        """End the child at once, if it has not ended."""
        with suppress(ValueError):  # it was closed meanwhile
            self._process.kill()

    def close(self) -> str:
        """Wait for the end of the child, whose reports have ended, and return how it ended."""
        self._outbox.put(None)
        self._process.join(GRACE)
        self._process.kill()  # one that has closed its pipe has no more to do
        self._process.join()
        self._sender.join()
        self._connection.close()
        code = self._process.exitcode or 0
        self._process.close()
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"

    def _send(self) -> None:
        """Write commands to the pipe, on a thread, as a child that does not read would hold the service up."""
        with suppress(OSError):
            while (message := self._outbox.get()) is not None:
                self._connection.send_bytes(_dumped(message))
