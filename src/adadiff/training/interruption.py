"""Stop signals in the main process and in the workers that load data for it."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any

from torch import Tensor

from adadiff.errors import InputError


@contextmanager
def stop_signals() -> Iterator[Any]:
    """Turn SIGINT and SIGTERM into a question: was the training asked to stop? A second one stops at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int = 0) -> None:
    """Leave SIGINT and SIGTERM, which reach the whole process group, to the main process, which then stops the rest."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def batches_of(loader: Iterable[dict[str, Tensor]]) -> Generator[dict[str, Tensor], None, None]:
    """Yield the loader's batches; an InputError raised in a worker process keeps its one line.

    Close it when done: the workers then end, which leave stop signals alone and would be waited for at exit.
    """
    try:
        yield from loader
    except InputError as error:
        clear_frames(error.__traceback__)  # they hold the workers
        *_, message = str(error).rpartition(f"{InputError.__name__}: ")  # torch puts the worker's traceback before it
        raise InputError(message.strip()) from None
