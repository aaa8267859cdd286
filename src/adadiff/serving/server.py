"""Starting the service and ending it: the port, the signals, and the work that still runs."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from adadiff.serving.requests import ImageEngine
from adadiff.utils.errors import InputError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_WORDS = 5  # seconds for the last responses to be sent, after the engine has stopped


def bind(host: str, port: int) -> socket.socket:
    """Take a port, before the model is loaded; connections are refused until it listens.

    Args:
        host: Name or address of this machine: 127.0.0.1 takes requests from this machine alone, 0.0.0.0 from all.
        port: The port; 0 for any free one.

    Raises:
        InputError: If the port is in use, or the address is not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except PermissionError as error:
        raise InputError(f"port {port} may not be used by you: choose one from 1024 on, with --port") from error
    except socket.gaierror as error:
        raise InputError(f"there is no host {host!r}: choose 127.0.0.1, or 0.0.0.0 for all of this machine") from error
    except OSError as error:
        raise _unusable(host, port, error) from error
    return listener


def listen(listener: socket.socket) -> None:
    """Take connections at a port, as `bind` returns it.

    Raises:
        InputError: If another program, started at about the same time, listens there already.
    """
    try:
        listener.listen()
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _unusable(host, port, error) from error


def _unusable(host: str, port: int, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"{host}:{port} cannot be used ({reason.lower()}): choose another --port or --host")


def is_loopback(listener: socket.socket) -> bool:
    """Return whether a port takes requests from this machine alone."""
    address: str = listener.getsockname()[0]
    return address == "::1" or address.startswith("127.")


def address_of(listener: socket.socket) -> str:
    """Return the address to open in a browser, as `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    named = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{named}]:{port}" if ":" in named else f"http://{named}:{port}"


def run(app: FastAPI, engine: ImageEngine, listener: socket.socket, drain: float) -> None:
    """Serve until SIGTERM or Ctrl-C; then take no new work, and let running work finish.

    Args:
        app: The service.
        engine: Its engine, started; it is stopped at the end.
        listener: A port, as `bind` returns it.
        drain: Seconds that running work may take; what has not finished then fails. A second signal ends at once.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(drain) + LAST_WORDS,
    )
    try:
        DrainingServer(config, engine, drain).run(sockets=[listener])
    finally:
        engine.stop(0)


class DrainingServer(uvicorn.Server):
    """A server that stops its engine first, so that requests end with a response, and then exits with code 0.

    Args:
        config: The configuration of uvicorn.
        engine: The engine.
        drain: Seconds that running work may take.
    """

    def __init__(self, config: uvicorn.Config, engine: ImageEngine, drain: float) -> None:
        super().__init__(config)
        self._engine, self._drain = engine, drain

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals during the block; uvicorn's own raises them again at its end, for another exit code."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at a second signal, end at once."""
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        threading.Thread(target=self._engine.stop, args=(self._drain,), daemon=True).start()
