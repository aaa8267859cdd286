"""Fair timing of alternatives: they take turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved_seconds(functions: Mapping[str, Callable[[], Any]], repeats: int = 5) -> dict[str, list[float]]:
    """Time functions alternately in this process, after one warm-up each, so that all see the same machine load.

    Args:
        functions: The functions to time, by name.
        repeats: Number of timed runs of each function.

    Returns:
        Seconds of each run in order, by name.
    """
    for run in functions.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, run in functions.items():
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_seconds(functions: Mapping[str, Callable[[], Any]], repeats: int = 5) -> dict[str, float]:
    """Return the median of each function's seconds, timed by `interleaved_seconds`."""
    return {name: statistics.median(runs) for name, runs in interleaved_seconds(functions, repeats).items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
