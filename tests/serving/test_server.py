"""The end of the service: no new work, running work finishes, exit code 0."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import httpx2
import pytest

from adadiff.serving.app import create_app
from adadiff.serving.server import address_of, bind, is_loopback, listen, run
from adadiff.utils.errors import InputError
from tests.serving.conftest import eventually, generate
from tests.serving.scripted import ScriptedEngine

ENDING = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Run clients on a thread while the service runs in the block, on the main thread as signals demand.

    If the clients fail, the service ends all the same, and so does the test.
    """
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    clients = threading.Thread(target=guarded)
    clients.start()
    yield
    clients.join(30)
    assert not clients.is_alive()
    assert failures == []


def send_and_wait(client: httpx2.Client, engine: ScriptedEngine, statuses: list[int]) -> threading.Thread:
    """Send a request that waits at the engine's gate; its status, 0 where the connection breaks, follows."""

    def is_ready() -> bool:
        with contextlib.suppress(httpx2.ConnectError):
            return client.get("/ready").status_code == 200
        return False

    def ask() -> None:
        try:
            statuses.append(generate(client).status_code)
        except httpx2.HTTPError:
            statuses.append(0)

    eventually(is_ready)
    engine.gate.clear()
    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: engine.open)
    return asking


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_lets_running_requests_finish_and_takes_no_more(engine, served, number):
    listener, statuses = bind("127.0.0.1", 0), []
    address, handlers = address_of(listener), [signal.getsignal(kind) for kind in ENDING]

    def clients() -> None:
        with httpx2.Client(base_url=address, timeout=20) as client, httpx2.Client(base_url=address) as late:
            asking = send_and_wait(client, engine, statuses)
            os.kill(os.getpid(), number)
            eventually(lambda: engine.drained)
            try:
                statuses.append(generate(late).status_code)
            except httpx2.ConnectError:
                statuses.append(503)  # the port is closed already
            engine.gate.set()
            asking.join()

    with meanwhile(clients):
        run(create_app(engine, served), engine, listener, drain=20)  # returns, so that the process exits with 0
    assert sorted(statuses) == [200, 503]
    assert engine.drained == [20, 0]
    assert [signal.getsignal(kind) for kind in ENDING] == handlers


def test_a_second_signal_ends_at_once(engine, served):
    listener, statuses = bind("127.0.0.1", 0), []
    address = address_of(listener)

    def clients() -> None:
        with httpx2.Client(base_url=address, timeout=20) as client:
            asking = send_and_wait(client, engine, statuses)
            os.kill(os.getpid(), signal.SIGINT)
            eventually(lambda: engine.drained)
            os.kill(os.getpid(), signal.SIGINT)
            asking.join()

    with meanwhile(clients):
        run(create_app(engine, served), engine, listener, drain=1000)
    assert statuses in ([0], [500])
    assert engine.drained == [1000, 0]
    eventually(lambda: engine.cancelled == [0])


def test_ports_and_addresses():
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    assert address_of(listener) == f"http://127.0.0.1:{port}"
    assert is_loopback(listener)
    listener.listen()
    with pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be used"):
        bind("127.0.0.1", port)
    listener.close()
    everywhere = bind("0.0.0.0", 0)
    assert not is_loopback(everywhere)
    assert address_of(everywhere).startswith("http://127.0.0.1:")
    everywhere.close()


def test_of_two_services_that_start_at_a_port_together_one_ends_with_one_line():
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    second = bind("127.0.0.1", port)  # nobody listens yet, so that the system allows it
    listen(first)
    with pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be used .*: choose another --port"):
        listen(second)
    first.close()
    second.close()
