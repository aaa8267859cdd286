"""Time of evaluation: 10,000 images through each packaged network, and every metric on its features.

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
from adadiff.evaluation.metrics import Features, Gaussian, bootstrap, kernel_distance, precision_recall
from adadiff.evaluation.packaged import PACKAGED

Result = TypeVar("Result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--features", nargs="+", default=list(PACKAGED))
    options = parser.parse_args()
    columns = {name: _seconds(name, options.n) for name in options.features}
    table = Table("stage", *columns, title=f"seconds, {options.n} images, {torch.get_num_threads()} threads")
    for stage in next(iter(columns.values())):
        table.add_row(stage, *(f"{seconds[stage]:.1f}" for seconds in columns.values()))
    table.add_row("all", *(f"{sum(seconds.values()):.1f}" for seconds in columns.values()))
    Console().print(table)


def _seconds(name: str, n: int) -> dict[str, float]:
    """Time each stage of the evaluation by one network."""
    network, taken = load_feature_network(name), {}

    def timed(stage: str, call: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = call()
        taken[stage] = time.perf_counter() - start
        return result

    batches = (torch.rand(min(BATCH, n - first), 3, 32, 32) for first in range(0, n, BATCH))
    samples = timed("features", lambda: network.of(batches).vectors)
    real = samples + np.random.default_rng(0).normal(0, samples.std() / 10, samples.shape).astype(np.float32)
    gaussian = timed("Gaussian of the real images", lambda: Gaussian.fit(real))

    def frechet(features: Features) -> float:
        return Gaussian.fit(features).distance(gaussian)

    timed("Fréchet distance", lambda: frechet(samples))
    timed("its standard error", lambda: bootstrap(frechet, samples))
    timed("kernel distance", lambda: kernel_distance(samples, real))
    timed("precision and recall", lambda: precision_recall(samples, real))
    return taken


if __name__ == "__main__":
    main()
