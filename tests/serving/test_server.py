"""The end of the service: no new work, running work finishes, exit code 0."""

from __future__ import annotations

import os
import signal
import threading

import httpx2
import pytest

from adadiff.serving.app import create_app
from adadiff.serving.server import address_of, bind, is_loopback, run
from adadiff.utils.errors import InputError
from tests.serving.conftest import eventually, generate


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_finish_and_takes_no_more(engine, served, number):
    listener = bind("127.0.0.1", 0)
    address, answers = address_of(listener), []
    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]

    def clients() -> None:
        with httpx2.Client(base_url=address, timeout=20) as client:
            eventually(lambda: client.get("/ready").status_code == 200)
            engine.gate.clear()
            asking = threading.Thread(target=lambda: answers.append(generate(client).status_code))
            asking.start()
            eventually(lambda: engine.open)
            os.kill(os.getpid(), number)
            eventually(lambda: engine.drained)
            try:
                answers.append(generate(httpx2.Client(base_url=address)).status_code)
            except httpx2.ConnectError:
                answers.append(503)  # the port is closed already
            engine.gate.set()
            asking.join()

    others = threading.Thread(target=clients)
    others.start()
    run(create_app(engine, served), engine, listener, drain=20)  # returns, so that the process exits with 0
    others.join()
    assert sorted(answers) == [200, 503]
    assert engine.drained == [20, 0]
    assert [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)] == handlers


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
