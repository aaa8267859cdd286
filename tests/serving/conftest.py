"""A service on a free port of this machine, with a scripted engine or the real one, and clients for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import uvicorn

from adadiff.serving.app import create_app
from adadiff.serving.jobs import Jobs
from adadiff.serving.served import ServedModel
from adadiff.serving.server import address_of, bind
from tests.serving.scripted import ScriptedEngine


@contextmanager
def serving(engine: Any, served: ServedModel, api_key: str | None = None, jobs: Jobs | None = None) -> Iterator[str]:
    """Serve on a thread; yields the address."""
    listener = bind("127.0.0.1", 0)
    listener.listen()
    config = uvicorn.Config(create_app(engine, served, api_key, jobs), log_level="error", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started)
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def eventually(holds: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until something holds; fails if it never does."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.005)


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine()
    yield engine
    engine.gate.set()


@pytest.fixture
def served(class_pipeline) -> ServedModel:
    """Classes cat, dog and owl; 50 steps of the full model by default."""
    return ServedModel("animals", class_pipeline)


@pytest.fixture
def client(engine: ScriptedEngine, served: ServedModel) -> Iterator[httpx2.Client]:
    with serving(engine, served) as address, httpx2.Client(base_url=address, timeout=20) as client:
        yield client


def generate(client: httpx2.Client, **body: Any) -> httpx2.Response:
    """Ask for images of a cat, unless the body says otherwise."""
    return client.post("/v1/images/generations", json={"class_label": "cat", **body})
