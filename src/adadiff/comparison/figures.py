"""The figures of the report, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adadiff.comparison.cells import SAMPLES, Cell
from adadiff.evaluation.estimator import EstimatorStudy
from adadiff.runtime.trace import TraceTotals
from adadiff.sampling.images import image_path, read_image
from adadiff.utils.front import pareto_front

COSTS: dict[str, Callable[[Cell], float]] = {
    "compute": lambda cell: cell.compute,
    "time": lambda cell: 1 / cell.speedup,
}
MARKERS = "osDv^<>PXh*d"


def tradeoff(full: Cell, cells: Sequence[Cell], titles: dict[str, str], cost: str, label: str) -> Figure:
    """Plot Fréchet distance against a cost for all methods, with the Pareto front.

    Args:
        full: Cell of the full model.
        cells: Cells of all methods.
        titles: Display names by method name, in the order of the legend.
        cost: `"compute"` or `"time"`, either over the full model's.
        label: Label of the horizontal axis.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    value = COSTS[cost]
    for index, (name, title) in enumerate(titles.items()):
        mine = sorted((cell for cell in cells if cell.method == name), key=value)
        if not mine:
            continue
        axes.errorbar(
            [value(cell) for cell in mine],
            [cell.evaluation.first.frechet for cell in mine],
            yerr=[cell.evaluation.first.frechet_error for cell in mine],
            marker=MARKERS[index % len(MARKERS)],
            linewidth=2.5 if name.startswith("adadiff") else 1,
            color=colormaps["tab20"](index % 20),
            label=title,
        )
    axes.axhline(full.evaluation.first.frechet, color="grey", linestyle=":", label="full model")
    front = pareto_front([(value(cell), cell.evaluation.first.frechet) for cell in (full, *cells)])
    axes.step(*zip(*front, strict=True), where="post", color="black", linewidth=6, alpha=0.12, label="Pareto front")
    axes.set(xlabel=label, ylabel="Fréchet distance", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", ncols=2)
    return figure


def synergy(
    rows: Sequence[Sequence[Cell]], row_names: Sequence[str], column_names: Sequence[str], across: str
) -> Figure:
    """Draw a grid of cells as two heat maps, Fréchet distance and compute, rows and columns in the given order.

    Args:
        rows: The cells.
        row_names: Labels of the rows.
        column_names: Labels of the columns.
        across: Label of the horizontal axis.
    """
    figure = Figure(figsize=(9, 1.4 + 0.6 * len(rows)), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for axes, title, read, form in (
        (panels[0], "Fréchet distance", lambda cell: cell.evaluation.first.frechet, "{:#.3g}"),
        (panels[1], "compute", lambda cell: cell.compute, "{:.0%}"),
    ):
        values = np.array([[read(cell) for cell in row] for row in rows])
        axes.imshow(np.log(values), cmap="viridis_r", aspect="auto")
        middle = np.log(values).mean()
        for (row, column), each in np.ndenumerate(values):
            colour = "white" if np.log(each) > middle else "black"
            axes.text(column, row, form.format(each), ha="center", va="center", color=colour)
        axes.set(title=title, xlabel=across, xticks=range(len(column_names)), yticks=range(len(row_names)))
        axes.set_xticklabels(column_names)
        axes.set_yticklabels(row_names)
    return figure


def reliability(study: EstimatorStudy) -> Figure:
    """Plot the estimators' reliability, the shares of their variance, and their rank correlation over images."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    estimated, true = study.reliability()
    limit = 1.05 * max(estimated.max(), true.max())
    left.plot([0, limit], [0, limit], color="grey", linestyle=":")
    left.plot(estimated, true, marker="o")
    left.set(title="reliability", xlabel="mean estimate, by tenths", ylabel="mean true error")
    shares = study.variance_shares
    middle.barh(list(shares), list(shares.values()))
    middle.invert_yaxis()
    middle.set(title="share of the estimates' variance", xlim=(0, 1))
    picture = right.imshow(study.sample_correlations, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    right.set(title="rank correlation over images", xlabel="layer", ylabel="time step")
    right.set_xticks(range(study.estimated.shape[2]), range(1, study.estimated.shape[2] + 1), fontsize="small")
    right.set_yticks(range(len(study.timesteps)), study.timesteps.tolist())
    figure.colorbar(picture, ax=right)
    return figure


def maps(study: EstimatorStudy) -> Figure:
    """Draw images in columns, each above its map of estimated uncertainty and its map of true error."""
    count = len(study.images)
    figure = Figure(figsize=(1.5 * count + 1, 4.6), layout="constrained")
    axes = figure.subplots(3, count, squeeze=False)
    limit = max(study.estimated_maps.max(), study.true_maps.max())
    for column in range(count):
        axes[0][column].imshow(study.images[column].transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1)
        axes[1][column].imshow(study.estimated_maps[column], vmin=0, vmax=limit)
        axes[2][column].imshow(study.true_maps[column], vmin=0, vmax=limit)
    for row, name in enumerate(("image", "estimated error", "true error")):
        axes[row][0].set_ylabel(name)
        for cell in axes[row]:
            cell.set(xticks=[], yticks=[])
    return figure


def exits_over_steps(totals: TraceTotals) -> Figure:
    """Plot the mean exit layer at each step, with bands for the middle 80% of the samples and for all of them."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(len(totals.exits))
    for low, high, alpha, label in ((0.0, 1.0, 0.15, "all samples"), (0.1, 0.9, 0.35, "80% of the samples")):
        band = (totals.exit_quantile(low), totals.exit_quantile(high))
        axes.fill_between(steps, *band, alpha=alpha, step="mid", label=label)
    axes.plot(steps, totals.mean_exit_layers, label="mean")
    axes.set(xlabel="sampling step", ylabel="exit layer", ylim=(0, totals.depth + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return figure


def side_by_side(full: Cell, cells: Sequence[Cell], titles: dict[str, str], folder: Path, columns: int = 10) -> Figure:
    """Draw images from the same noise, one row per method."""
    rows = [("full model", full), *((titles[cell.method], cell) for cell in cells)]
    figure = Figure(figsize=(2.4 + 0.8 * columns, 0.84 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (title, cell), row in zip(rows, axes, strict=True):
        for index, place in enumerate(row):
            pixels = np.array(read_image(image_path(folder / cell.name / SAMPLES, index)))
            place.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            place.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{title}\n{cell.compute:.0%}", rotation=0, ha="right", va="center", fontsize="small")
    return figure
