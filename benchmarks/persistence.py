"""Persistence of an exit's error over steps, which corrections of early exits rely on.

Along sampling runs of the full model, the error of an exit, its difference from the full prediction, is compared with
its errors at earlier steps: the correlation with the step before, and the share of the squared error that remains after
subtracting the error measured k steps earlier, or a line through those measured k and 2k steps earlier. Averages over
all steps that have two such earlier steps. Results are printed, not asserted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from adadiff import AdaDiffPipeline
from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.record import record_exits
from adadiff.sampling import Conditions, Guidance

SEED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a model without conditions, or with classes")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scheduler", default="dpm-solver++")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--gaps", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    pipeline = AdaDiffPipeline.from_pretrained(options.model, own_settings=False, scheduler=options.scheduler)
    conditions = Conditions(pipeline.transformer.class_indices, guidance=Guidance(options.guidance_scale))
    record = record_exits(AdaptiveSampling(pipeline, options.steps, conditions, SEED), options.samples)
    products = record.products.double().mean(4).diagonal(dim1=2, dim2=3)[:, :, 1:]  # (steps, WINDOW, layers)
    norms = products[:, 0].sqrt()

    columns = (f"{what}, {gap}" for gap in options.gaps for what in ("repeated", "line"))
    table = Table("exit layer", "correlation with the step before", *columns)
    for layer in range(pipeline.transformer.depth - 1):
        alike = products[1:, 1, layer] / (norms[1:, layer] * norms[:-1, layer])
        lefts = (f"{left:.3f}" for gap in options.gaps for left in _left(products[:, :, layer], gap))
        table.add_row(str(layer + 1), f"{alike.min():.2f} to {alike.max():.2f}", *lefts)
    console = Console(width=140)
    console.print(f"{options.samples} samples, {options.steps} steps, guidance scale {options.guidance_scale:g}")
    console.print(table)


def _left(products: torch.Tensor, gap: int) -> tuple[float, float]:
    """Return the shares of squared error that remain after repetition and after linear extrapolation.

    `products` holds the mean products of the errors with those of earlier steps, (steps, window).
    """
    now, last, before = products[2 * gap :], products[gap:-gap], products[: -2 * gap]
    repeated = now[:, 0] + last[:, 0] - 2 * now[:, gap]
    line = now[:, 0] + 4 * last[:, 0] + before[:, 0] - 4 * now[:, gap] + 2 * now[:, 2 * gap] - 4 * last[:, gap]
    return (repeated / now[:, 0]).mean().item(), (line / now[:, 0]).mean().item()


if __name__ == "__main__":
    main()
