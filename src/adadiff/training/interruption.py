"""Stop signals: how the main process and its data-loading workers react to SIGINT and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any

from torch import Tensor

from adadiff.utils.errors import InputError


@contextmanager
def stop_signals() -> Iterator[Any]:
    """Record SIGINT and SIGTERM instead of stopping at once; yield a function that returns whether one arrived.

    A second signal has its ordinary effect and stops the process at once.
    """
    received: list[int] = []

    def record(signal_number: int, frame: Any) -> None:
        received.append(signal_number)
        restore()

    def restore() -> None:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)

    handlers = {each: signal.signal(each, record) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        restore()


def ignore_stop_signals(worker: int = 0) -> None:
    """Ignore SIGINT and SIGTERM in a data-loading worker.

    These signals reach the whole process group. The main process handles them and then stops its workers.
    """
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)


def batches_of(loader: Iterable[dict[str, Tensor]]) -> Generator[dict[str, Tensor], None, None]:
    """Yield the loader's batches; re-raise an InputError of a worker process with its original one-line message.

    Close the generator when done: that ends the workers, which ignore stop signals and would be waited for at exit.
    """
    try:
        yield from loader
    except InputError as error:
        clear_frames(error.__traceback__)  # they hold the workers
        *_, message = str(error).rpartition(f"{InputError.__name__}: ")  # torch puts the worker's traceback before it
        raise InputError(message.strip()) from None
