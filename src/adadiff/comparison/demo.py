"""The demo: sample the same noise with the full model and in less compute, and show both in a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from adadiff.runtime.trace import Trace
from adadiff.sampling import UNCONDITIONAL, AdaptivePipeline, Conditions, SamplingPlan, sample_seeded
from adadiff.stock import StockTrace
from adadiff.utils.errors import InputError
from adadiff.utils.files import atomic_write
from adadiff.utils.timing import median_seconds

Sample = Callable[[], tuple[Tensor, Trace | StockTrace]]
"""Samples images, (batch, channels, height, width) in [0, 1], and returns them with the trace."""


@dataclass(frozen=True)
class Run:
    """One way to sample a batch.

    Args:
        name: Its name in the table.
        images: The images, (batch, channels, height, width) in [0, 1].
        trace: Its trace.
        seconds: Median seconds to sample the batch.
    """

    name: str
    images: Tensor
    trace: Trace | StockTrace
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Several ways to sample a batch from the same noise.

    Args:
        full: The full model, which the others are compared with.
        others: The others; the last one is the one to show.
    """

    full: Run
    others: tuple[Run, ...]

    @property
    def shown(self) -> Run:
        """The run that the demo is about."""
        return self.others[-1]

    def compute(self, run: Run) -> float:
        """Return the FLOPs of a run over the full model's."""
        if run is self.full:
            return 1.0
        if isinstance(run.trace, StockTrace) or isinstance(self.full.trace, StockTrace):
            return run.trace.compute_fraction  # at the same steps and guidance
        return int(run.trace.flops.sum()) / int(self.full.trace.flops.sum())

    def speedup(self, run: Run) -> float:
        """Return the seconds of the full model over those of a run."""
        return self.full.seconds / run.seconds

    def difference(self, run: Run) -> float:
        """Return the root mean squared difference from the full model's images, in grey levels of 255."""
        return 255 * (self.full.images - run.images).square().mean().sqrt().item()


def compare(
    pipeline: AdaptivePipeline,
    plans: Mapping[str, SamplingPlan],
    n: int,
    seed: int = 0,
    conditions: Conditions = UNCONDITIONAL,
    repeats: int = 5,
) -> Comparison:
    """Sample n images in one batch by each of several plans, alternately, `repeats` times each.

    Args:
        pipeline: The model and the scheduler.
        plans: At least two plans by their names: the full model's first, the one to show last.
        n: Number of images.
        seed: Seed of the noise.
        conditions: Conditions of the images; plans choose the guidance.
        repeats: Number of timed runs of each; the medians are reported.
    """

    def sample(plan: SamplingPlan) -> tuple[Tensor, Trace]:
        guided = replace(conditions, guidance=plan.guidance)
        output = sample_seeded(pipeline.with_plan(plan), range(n), plan.steps, plan.policy, seed, guided)
        return output.images.cpu(), output.trace

    return timed_comparison({name: partial(sample, plan) for name, plan in plans.items()}, repeats)


def timed_comparison(samples: Mapping[str, Sample], repeats: int) -> Comparison:
    """Sample in several ways, alternately, `repeats` times each.

    Args:
        samples: At least two ways by their names: all layers first, the one to show last. All sample the same noise.
        repeats: Number of timed runs of each; the medians are reported.
    """
    sampled: dict[str, tuple[Tensor, Trace | StockTrace]] = {}

    def run(name: str) -> None:
        sampled[name] = samples[name]()

    seconds = median_seconds({name: partial(run, name) for name in samples}, repeats)
    full, *others = (Run(name, *sampled[name], seconds[name]) for name in samples)
    return Comparison(full, tuple(others))


def draw_comparison(comparison: Comparison, path: Path, columns: int = 12) -> None:
    """Draw the images of every run below each other, and the heat map of exits of the last, into an image file."""
    runs, shown = (comparison.full, *comparison.others), comparison.shown
    columns = min(columns, len(comparison.full.images))
    figure = Figure(figsize=(0.8 * columns + 0.6, 3.2 + len(runs)), layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=(len(runs), 3))
    upper, lower = panels
    axes = upper.subplots(len(runs), columns, squeeze=False)
    for run, row in zip(runs, axes, strict=True):
        for image, cell in zip(run.images, row, strict=False):
            cell.imshow(image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            cell.set(xticks=[], yticks=[])
        row[0].set_ylabel(run.name)
    shown.trace.draw(lower.subplots())
    upper.suptitle(
        f"the same noise sampled with all layers, and in {comparison.compute(shown):.0%} of the compute "
        f"({comparison.speedup(shown):.2f}x as fast)"
    )
    with atomic_write(path) as part:
        figure.savefig(part, dpi=120)


def require_own_folder(out: Path, own: set[str]) -> None:
    """Raise InputError if the folder holds files other than `own`, the names that the command writes."""
    if out.exists() and (not out.is_dir() or any(entry.name not in own for entry in out.iterdir())):
        raise InputError(f"{out} already holds other files: choose another output folder with --out")


def comparison_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the table's rows: name, steps, layers, compute, seconds, speedup, difference."""
    return [
        (
            run.name,
            str(run.trace.steps),
            "100.0%" if run is comparison.full else f"{run.trace.layer_fraction:.1%}",
            f"{comparison.compute(run):.1%}",
            f"{run.seconds:.2f}",
            f"{comparison.speedup(run):.2f}x",
            "" if run is comparison.full else f"{comparison.difference(run):.1f} of 255",
        )
        for run in (comparison.full, *comparison.others)
    ]
