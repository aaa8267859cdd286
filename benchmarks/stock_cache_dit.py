"""DBCache with TaylorSeer of cache-dit, as a method of `stock_caches.py`: optional, since cache-dit is no requirement.

pip install --no-deps cache-dit
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stock_methods import Method, ThresholdCache

NAME = "DBCache (cache-dit)"


@contextmanager
def cached(pipe: Any, config: dict[str, Any]) -> Iterator[None]:
    """Enable cache-dit in a pipeline, on a copy of its transformer, whose forward it replaces for good."""
    cache_dit, transformer = importlib.import_module("cache_dit"), pipe.transformer
    pipe.transformer = copy.deepcopy(transformer)
    try:
        cache_dit.enable_cache(pipe, **copy.deepcopy(config))  # it writes to the configuration
        try:
            yield
        finally:
            cache_dit.disable_cache(pipe)
    finally:
        pipe.transformer = transformer


def db_cache(pipe: Any, steps: int) -> Method:
    """Return DBCache: skips the later blocks while what the first ones add changes little, and extrapolates theirs.

    Its default of 8 first blocks and 8 first steps in full spends more than these targets on models this small.
    """
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    cache_dit = importlib.import_module("cache_dit")

    def config(blocks: int, before: int, order: int) -> Callable[[float], dict[str, Any]]:
        return lambda value: {
            "cache_config": cache_dit.DBCacheConfig(
                Fn_compute_blocks=blocks,
                max_warmup_steps=before,
                residual_diff_threshold=value,
                num_inference_steps=steps,
            ),
            "calibrator_config": cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None,
        }

    orders = {0: "no extrapolation", 1: "order 1", 2: "order 2"}
    variants = {
        f"{blocks} first block(s), first {before} steps full, {orders[order]}": config(blocks, before, order)
        for blocks, before, order in ((1, 2, 0), (1, 2, 1), (1, 2, 2), (1, 4, 1), (1, 4, 2), (2, 2, 1))
        if before < steps
    }
    return ThresholdCache(NAME, pipe, steps, variants, cached)
