"""Ray: a cluster to work on, and work spread over actors that may die."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from textwrap import shorten
from typing import Any, TypeVar

from typing_extensions import Self

from adadiff.utils.errors import InputError

logger = logging.getLogger(__name__)

LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as there, a Ray of one machine listens on loopback alone
}
"""Environment of a Ray that is started here."""
TOKEN = ("RAY_AUTH_MODE", "token")
"""Ray's own default, by which other users cannot join: it warns of it unless it is said before Ray is imported."""
ANSWER = 5.0
"""Seconds in which an address has to answer."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SETTINGS = 4
"""What a client says first to Ray's server, which speaks HTTP/2, and the kind of frame that the server answers with."""
STARTS = 2
"""Times that a Ray of this machine is started: on a busy machine it may be too slow for its own 30 seconds."""
PATIENCE = 60.0
"""Seconds without room for any actor after which a warning says so."""
DEATHS = 3
"""Deaths in a row for each actor, without a result in between, after which work is given up."""
LONGEST_LINE = 200
"""Characters of an error's line that are shown: Ray explains the death of a process in a thousand."""

Task = TypeVar("Task")


def last_line(error: Exception) -> str:
    r"""Return the last line of an error's text, shortened, since errors of Ray hold the traceback of another machine.

    Examples:
        >>> last_line(RuntimeError("Traceback ...\nValueError: no room"))
        'ValueError: no room'
        >>> len(last_line(RuntimeError("the worker has died " * 100))) <= LONGEST_LINE
        True
    """
    lines = [line for line in str(error).splitlines() if line.strip()]
    return shorten(lines[-1], LONGEST_LINE, placeholder=" ...") if lines else type(error).__name__


def require_ray() -> None:
    """Raise InputError, with the command that installs it, unless Ray is installed."""
    if importlib.util.find_spec("ray") is None:
        raise InputError("ray is not installed, which work on a cluster needs: pip install 'adadiff[cluster]'")


@contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """Connect this process to a Ray cluster during the block, unless it is connected already.

    Args:
        address: `HOST:PORT` of the cluster, "auto" for the one that runs on this machine, or None to start a Ray on
            this machine, which other machines cannot reach, and to end it after the block.
        cpus: Cores of a Ray that is started; None for all.

    Raises:
        InputError: If Ray is not installed, or no cluster answers at the address.
    """
    require_ray()
    if address is None:
        for name, value in (*LOCAL.items(), *([TOKEN] if "ray" not in sys.modules else [])):
            os.environ.setdefault(name, value)
    elif address != "auto":
        _require_answer(address)
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options.update(address="local", num_cpus=cpus, include_dashboard=False)
    else:
        options.update(address=address)
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(**options)
            break
        except Exception as error:  # Ray raises many types
            ray.shutdown()
            if address is None and attempt < STARTS:
                continue
            raise InputError(_not_joined(address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _not_joined(address: str | None, error: Exception) -> str:
    if address in (None, "auto"):
        return f"there is no Ray on this machine to work on ({last_line(error)}): start one with `ray start --head`"
    # Ray sends the token in ~/.ray/auth_token to an address that was named only if it is told to.
    reason = last_line(error)
    return f"the Ray at {address} cannot be joined ({reason}): if it asks for a token, set RAY_AUTH_MODE=token"


def _require_answer(address: str) -> None:
    """Raise InputError unless something that may be Ray listens at an address; Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()) or "/" in host:
        raise InputError(
            f"{address!r} is no address of a Ray cluster: write HOST:PORT, as `ray start --head` prints it, or auto"
        )
    _probe(host, port)
    if host in LOOPBACK:
        from ray.util import get_node_ip_address

        _probe(get_node_ip_address(), port)  # where Ray goes in place of a loopback address


def _probe(host: str, port: str) -> None:
    address = f"{host}:{port}"
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER) as connection:
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return  # Ray's own certificates are needed to ask further
            connection.sendall(PREFACE)
            answer = connection.recv(4)
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray answers at {address} ({error}): start it with `ray start --head`") from error
    if len(answer) < 4 or answer[3] != SETTINGS:
        raise InputError(f"what answers at {address} is not Ray: give the address that `ray start --head` prints")


class Crew:
    """Actors that each run one task at a time; one that dies is replaced, and its task is done again.

    The first call of `map` starts the actors, and later calls use them again, until the end of a `with` block.

    Args:
        start: Starts an actor, whose method `ready` returns once it can work.
        size: Number of actors, at most.
    """

    def __init__(self, start: Callable[[], Any], size: int) -> None:
        self._start, self._size = start, size
        self._idle: list[Any] = []
        self._calls: dict[Any, tuple[Any, Any]] = {}  # by reference to the result: the actor, and its task or None
        self._deaths = 0  # in a row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        for actor in (*self._idle, *(actor for actor, _ in self._calls.values())):
            ray.kill(actor)
        self._idle.clear()
        self._calls.clear()

    def map(self, tasks: Iterator[Task], call: Callable[[Any, Task], Any]) -> Iterator[tuple[Task, Any]]:
        """Run tasks, and yield each with its result, in the order in which they end.

        An actor gets its first task once it runs, so that no task waits for room on the cluster while other actors are
        free. Tasks are taken out as actors come to them, so that there may be any number. What actors still run of an
        earlier call, which an error or its caller ended, is dropped.

        Args:
            tasks: The tasks.
            call: Begins a task on an actor, and returns the reference to its result.

        Raises:
            InputError: If actors cannot be started, or die again and again.
        """
        self._calls = {result: (actor, None) for result, (actor, _) in self._calls.items()}
        waiting: deque[Task] = deque()
        while True:
            self._assign(waiting, tasks, call)
            if not waiting and not self._is_busy:
                return  # other actors may not have begun
            done = self._wait(waiting)
            if done is not None:
                self._assign(waiting, tasks, call)  # no actor waits while the result is used
                yield done

    def _assign(self, waiting: deque[Task], tasks: Iterator[Task], call: Callable[[Any, Task], Any]) -> None:
        """Give tasks to idle actors, and start actors for as many of the others as the crew has room for."""
        waiting.extend(islice(tasks, max(0, self._size - len(waiting))))
        while waiting and self._idle:
            actor, task = self._idle.pop(), waiting.popleft()
            self._calls[call(actor, task)] = (actor, task)
        coming = sum(task is None for _, task in self._calls.values())
        for _ in range(min(len(waiting) - coming, self._size - len(self._calls))):
            actor = self._start()
            self._calls[actor.ready.remote()] = (actor, None)

    def _wait(self, waiting: deque[Task]) -> tuple[Task, Any] | None:
        """Wait for the end of a call; return the task with its result if it has one."""
        import ray

        done, _ = ray.wait(list(self._calls), timeout=PATIENCE)
        if not done:
            if not self._is_busy:
                logger.warning(f"the cluster has had no room for an actor for {PATIENCE:.0f} s: waiting")
            return None
        actor, task = self._calls.pop(done[0])
        try:
            result = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            self._idle.append(actor)
            if task is None:
                return None  # of an earlier call of `map`
            raise error.cause from None
        except ray.exceptions.RayError as error:
            ray.kill(actor)
            self._bury(error)
            waiting.extend([] if task is None else [task])
            return None
        self._idle.append(actor)
        if task is None:
            return None
        self._deaths = 0
        return task, result

    @property
    def _is_busy(self) -> bool:
        return any(task is not None for _, task in self._calls.values())

    def _bury(self, error: Exception) -> None:
        """Count the death of an actor; raise InputError if it is one too many."""
        reason = last_line(error)
        if getattr(error, "actor_init_failed", False):
            raise InputError(f"an actor cannot start on the cluster: {reason}")
        self._deaths += 1
        logger.warning("an actor on the cluster has died: another one does its work again")
        if self._deaths >= DEATHS * self._size:
            raise InputError(
                f"{self._deaths} actors on the cluster died one after the other without a result, the last one so: "
                f"{reason}; if memory is short, make the batches smaller"
            )
