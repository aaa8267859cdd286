"""Squared error and Fréchet distance of corrected schedules against the full model, from the same noise.

Compares the schedule stored with the model and others. Since all share the full model's noise, the standard error of
the difference in distance, by bootstrap over pairs of images, is far smaller than those of the distances themselves.
Results are printed, not asserted.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from adadiff import AdaDiffPipeline, CorrectedScheduleExit, ExitPolicy, NeverExit, Trace
from adadiff.calibration.metric import normalised_squared_error
from adadiff.data import DataConfig
from adadiff.evaluation.evaluator import evaluator_for
from adadiff.evaluation.metrics import Features, Gaussian, bootstrap
from adadiff.sampling import Conditions, sample_seeded

SEED = 1_000_000  # gives noise that evaluation and calibration do not use by default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a model without conditions, or with classes")
    parser.add_argument("data", help="real images, as adadiff evaluate takes them")
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        action="append",
        default=[],
        help="a corrected schedule, repeated over the steps",
    )
    options = parser.parse_args()
    pipeline = AdaDiffPipeline.from_pretrained(options.model, torch_dtype=torch.bfloat16)
    own = pipeline.sampling_settings()
    reference = evaluator_for(options.model, DataConfig(source=options.data), ["small"], None, "cpu").first
    conditions = Conditions(pipeline.transformer.class_indices, guidance=own.guidance)
    policies: dict[str, ExitPolicy] = {"all layers": NeverExit(), "its own": own.policy}
    for layers in options.layers:
        schedule = tuple(itertools.islice(itertools.cycle(layers), own.steps))
        policies[" ".join(map(str, layers))] = CorrectedScheduleExit(schedule)

    table = Table("policy", "layers", "compute", "error", "Fréchet distance", "over the full model's")
    full, real = None, Gaussian.fit(reference.real.vectors)
    for name, policy in policies.items():
        images, trace = _sample(pipeline, policy, own.steps, conditions, options)
        features = reference.network.of(images.split(options.batch_size)).vectors
        full = (images, features) if full is None else full
        more, uncertainty = _excess(features, full[1], real)
        losses = normalised_squared_error(full[0])(full[0], images)
        table.add_row(
            name,
            f"{trace.layer_fraction:.1%}",
            f"{trace.compute_fraction:.1%}",
            f"{losses.mean():.2g}",
            f"{Gaussian.fit(features).distance(real):.3f}",
            f"{more:+.2%} ± {uncertainty:.2%}",
        )
    console = Console(width=120)
    console.print(f"{options.n} images, seed {SEED}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    console.print(table)


def _sample(
    pipeline: AdaDiffPipeline, policy: ExitPolicy, steps: int, conditions: Conditions, options: argparse.Namespace
) -> tuple[Tensor, Trace]:
    images, traces = [], []
    for first in tqdm(range(0, options.n, options.batch_size), leave=False):
        numbers = range(first, min(first + options.batch_size, options.n))
        output = sample_seeded(pipeline, numbers, steps, policy, SEED, conditions)
        images.append((output.images.float() * 255).round() / 255)  # rounded as in an 8-bit file
        traces.append(output.trace)
    return torch.cat(images), Trace.join(traces)


def _excess(features: Features, full: Features, real: Gaussian) -> tuple[float, float]:
    """Return the relative excess of the distance over the full model's, and its standard error over pairs."""

    def more(pairs: Features) -> float:
        ours, theirs = (Gaussian.fit(half).distance(real) for half in np.split(pairs, 2, axis=1))
        return ours / theirs - 1

    pairs = np.concatenate([features, full], axis=1)
    return more(pairs), bootstrap(more, pairs)


if __name__ == "__main__":
    main()
