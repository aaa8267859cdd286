"""The demo: sample the same noise with the full model and with early exits, and show both in a table and a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from adadiff.policies import ExitPolicy, NeverExit
from adadiff.runtime.trace import Trace
from adadiff.sampling import UNCONDITIONAL, AdaptivePipeline, Conditions, sample_seeded
from adadiff.stock import StockTrace
from adadiff.utils.errors import InputError
from adadiff.utils.files import atomic_write
from adadiff.utils.timing import median_seconds

Sample = Callable[[], tuple[Tensor, Trace | StockTrace]]
"""Samples images, (batch, channels, height, width) in [0, 1], and returns them with the trace."""


@dataclass(frozen=True)
class Comparison:
    """Images of the full model and with early exits, from the same noise, with their sampling times.

    Args:
        full: Images of the full model, (batch, channels, height, width) in [0, 1].
        adaptive: Images with early exits, of the same shape.
        trace: Trace of the run with early exits.
        full_seconds: Median seconds to sample the batch with the full model.
        adaptive_seconds: Median seconds to sample the batch with early exits.
    """

    full: Tensor
    adaptive: Tensor
    trace: Trace | StockTrace
    full_seconds: float
    adaptive_seconds: float

    @property
    def steps(self) -> int:
        """Number of sampling steps, in evaluations of the model."""
        return self.trace.steps

    @property
    def speedup(self) -> float:
        """Seconds of the full model over seconds with early exits."""
        return self.full_seconds / self.adaptive_seconds

    @property
    def difference(self) -> float:
        """Root mean squared difference between full and adaptive images, in grey levels of 255."""
        return 255 * (self.full - self.adaptive).square().mean().sqrt().item()


def compare(
    pipeline: AdaptivePipeline,
    policy: ExitPolicy,
    n: int,
    steps: int,
    seed: int = 0,
    conditions: Conditions = UNCONDITIONAL,
    repeats: int = 5,
) -> Comparison:
    """Sample n images in one batch with the full model and with a policy, alternately, `repeats` times each.

    Args:
        pipeline: The model and the scheduler.
        policy: The exit policy.
        n: Number of images.
        steps: Number of sampling steps.
        seed: Seed of the noise.
        conditions: Conditions of the images, and the guidance.
        repeats: Number of timed runs of each; the medians are reported.
    """

    def sample(rule: ExitPolicy) -> tuple[Tensor, Trace]:
        output = sample_seeded(pipeline, range(n), steps, rule, seed, conditions)
        return output.images.cpu(), output.trace

    return timed_comparison(lambda: sample(NeverExit()), lambda: sample(policy), repeats)


def timed_comparison(full: Sample, adaptive: Sample, repeats: int) -> Comparison:
    """Sample with all layers and with early exits, alternately, `repeats` times each.

    Args:
        full: Samples with all layers.
        adaptive: Samples the same noise with early exits.
        repeats: Number of timed runs of each; the medians are reported.
    """
    sampled: dict[str, tuple[Tensor, Trace | StockTrace]] = {}

    def run(name: str, sample: Sample) -> None:
        sampled[name] = sample()

    seconds = median_seconds(
        {"full": partial(run, "full", full), "adaptive": partial(run, "adaptive", adaptive)}, repeats
    )
    images, trace = sampled["adaptive"]
    return Comparison(sampled["full"][0], images, trace, seconds["full"], seconds["adaptive"])


def draw_comparison(comparison: Comparison, path: Path, columns: int = 12) -> None:
    """Draw the full model's images, those with early exits below them, and the heat map of exits into an image file."""
    columns = min(columns, len(comparison.full))
    figure = Figure(figsize=(0.8 * columns + 0.6, 5.2), layout="constrained")
    panels: Any = figure.subfigures(2, 1, height_ratios=(2, 3))
    upper, lower = panels
    axes = upper.subplots(2, columns, squeeze=False)
    rows = (("full", comparison.full), ("adaptive", comparison.adaptive))
    for (name, images), row in zip(rows, axes, strict=True):
        for image, cell in zip(images, row, strict=False):
            cell.imshow(image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            cell.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    comparison.trace.draw(lower.subplots())
    upper.suptitle(
        f"the same noise sampled with all layers, and with {comparison.trace.layer_fraction:.0%} of them "
        f"({comparison.speedup:.2f}x as fast)"
    )
    with atomic_write(path) as part:
        figure.savefig(part, dpi=120)


def require_own_folder(out: Path, own: set[str]) -> None:
    """Raise InputError if the folder holds files other than `own`, the names that the command writes."""
    if out.exists() and (not out.is_dir() or any(entry.name not in own for entry in out.iterdir())):
        raise InputError(f"{out} already holds other files: choose another output folder with --out")


def comparison_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the table's rows: name, layers, compute, seconds, speedup, difference."""
    trace = comparison.trace
    return [
        ("full", "100.0%", "100.0%", f"{comparison.full_seconds:.2f}", "1.00x", ""),
        (
            "adaptive",
            f"{trace.layer_fraction:.1%}",
            f"{trace.compute_fraction:.1%}",
            f"{comparison.adaptive_seconds:.2f}",
            f"{comparison.speedup:.2f}x",
            f"{comparison.difference:.1f} of 255",
        ),
    ]
