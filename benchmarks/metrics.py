"""Time of evaluation: 10,000 images through the `small` network, and every metric on its features.

Random images replace samples and real images, since the time does not depend on their content. Results are printed,
not asserted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from adadiff.evaluation.features import BATCH, load_feature_network
from adadiff.evaluation.metrics import Features, bootstrap, frechet_distance, kernel_distance, precision_recall

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=10_000)
    options = parser.parse_args()
    network = load_feature_network("small")
    table = Table("stage", "seconds", title=f"{options.n} images, {torch.get_num_threads()} threads")
    total = 0.0

    def timed(stage: str, call: Callable[[], Result]) -> Result:
        nonlocal total
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
        total += seconds
        table.add_row(stage, f"{seconds:.1f}")
        return result

    batches = (torch.rand(min(BATCH, options.n - first), 3, 32, 32) for first in range(0, options.n, BATCH))
    samples = timed("features", lambda: network.of(batches).vectors)
    real = samples + np.random.default_rng(0).normal(0, samples.std() / 10, samples.shape).astype(np.float32)

    def frechet(features: Features) -> float:
        return frechet_distance(features, real)

    timed("Fréchet distance", lambda: frechet(samples))
    timed("its standard error", lambda: bootstrap(frechet, samples))
    timed("kernel distance", lambda: kernel_distance(samples, real))
    timed("precision and recall", lambda: precision_recall(samples, real))
    table.add_row("all", f"{total:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
