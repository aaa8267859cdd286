"""Seconds of rival ways to do the same, measured fairly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved_seconds(rivals: Mapping[str, Callable[[], Any]], repeats: int = 5) -> dict[str, list[float]]:
    """Run all rivals in turns in this process, after one warm-up each, so that all meet the same machine.

    Args:
        rivals: What to time, by name.
        repeats: Timed runs of each.

    Returns:
        Seconds of each run, by name, in order.
    """
    for run in rivals.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_seconds(rivals: Mapping[str, Callable[[], Any]], repeats: int = 5) -> dict[str, float]:
    """Medians of `interleaved_seconds`."""
    return {name: statistics.median(runs) for name, runs in interleaved_seconds(rivals, repeats).items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
