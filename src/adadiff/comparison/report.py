"""The report of a comparison: a self-contained HTML page, Markdown with pictures, and the results as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import compress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from adadiff.comparison import figures
from adadiff.comparison.cells import SAMPLES, TIMED_IMAGES, Cell
from adadiff.comparison.config import CompareConfig
from adadiff.comparison.methods import METHODS
from adadiff.comparison.pages import write_pages
from adadiff.comparison.run import Results
from adadiff.evaluation.estimator import EstimatorStudy
from adadiff.runtime.trace import TraceTotals
from adadiff.sampling.folder import TRACE
from adadiff.utils.files import read_json
from adadiff.utils.text import with_error

TITLES = {method.name: method.title for method in METHODS}
OURS = {name for name in TITLES if name.startswith("adadiff")}
HEADS = (
    "method",
    "setting",
    "compute",
    "layers",
    "speedup",
    "Fréchet distance",
    "KID",
    "precision",
    "recall",
    "class agreement",
    "images",
)


def write_report(results: Results, out: Path) -> None:
    """Write the comparison's report into its folder.

    index.html contains everything; report.md has the text and tables and links the images in `pictures/`; results.json
    and results.csv hold the measurements.

    Args:
        results: The results of the comparison.
        out: Folder of the comparison.
    """
    described = {**asdict(replace(results, study=None)), "estimators": _estimator_figures(results.study)}
    files = {"results.json": json.dumps(described, indent=2, default=list) + "\n", "results.csv": _csv(results)}
    write_pages(out, "report", _contents(results), _pictures(results, out), files)


# ---------------------------------------------------------------------------------------------------------------------
# Sentences


def winner_in_words(results: Results) -> str:
    """Name the method with the least distance at the headline compute, and compare others in standard errors."""
    config = results.config
    at_headline = _at(results, config.headline_compute)
    if not at_headline:
        return f"No method has a setting near {config.headline_compute:.0%} of the full model's compute."
    best = min(at_headline, key=lambda cell: cell.evaluation.first.frechet)
    sentence = (
        f"At {config.headline_compute:.0%} of the full model's compute, {TITLES[best.method]} ({best.setting}) has the "
        f"lowest Fréchet distance, {_distance(best)}; the full model has {_distance(results.full)}."
    )
    tied = [cell for cell in at_headline if cell is not best and difference_in_errors(cell, best) < 2]
    if tied:
        names = ", ".join(f"{TITLES[cell.method]} ({_distance(cell)})" for cell in tied)
        sentence += f" Within two standard errors: {names}."
    for cell in at_headline:
        if cell.method in OURS and cell is not best:
            more = cell.evaluation.first.frechet / best.evaluation.first.frechet - 1
            sentence += (
                f" {TITLES[cell.method]} has {_distance(cell)}: {more:.1%} higher, a difference of "
                f"{difference_in_errors(cell, best):.1f} standard errors."
            )
    return sentence


def difference_in_errors(cell: Cell, other: Cell) -> float:
    """Return the absolute difference of two Fréchet distances, in standard errors of that difference."""
    error = math.hypot(cell.evaluation.first.frechet_error, other.evaluation.first.frechet_error)
    return abs(cell.evaluation.first.frechet - other.evaluation.first.frechet) / error if error else math.inf


def synergy_in_words(results: Results) -> list[str]:
    """Summarise each grid: whether the savings of both techniques multiply, and the distance if both are used."""
    sentences = []
    for name, rows in (("fewer steps", results.steps_synergy), ("pruning", results.pruning_synergy)):
        if not rows:
            continue
        without_exits, with_exits = rows[0], rows[-1]
        columns = range(len(without_exits))
        cheapest = min(columns, key=lambda column: without_exits[column].compute)
        full = min(columns, key=lambda column: abs(without_exits[column].compute - 1))
        without, exits, both = without_exits[cheapest], with_exits[full], with_exits[cheapest]
        sentences.append(
            f"Exits combined with {name}: {without.setting} takes {without.compute:.0%} of the compute at a Fréchet "
            f"distance of {_distance(without)}; {exits.setting} {exits.compute:.0%} at {_distance(exits)}; both "
            f"together {both.compute:.0%} at {_distance(both)}. The product of the two compute fractions is "
            f"{without.compute * exits.compute:.0%}."
        )
    return sentences


def conditions_in_words(config: CompareConfig) -> str:
    """Describe how the results were measured."""
    samples = f"{config.images} samples per cell"
    if config.headline_images != config.images:
        samples += (
            f", {config.headline_images} at {config.headline_compute:.0%} and for the full model (distances from "
            f"different numbers of samples are not comparable)"
        )
    return (
        f"Backbone: {config.backbone}; every network is fine-tuned from it for {config.fine_tuning.steps} steps of "
        f"{config.fine_tuning.batch_size} images. {config.steps} {config.scheduler} steps in {config.dtype}, "
        f"{samples}, from the same noise for all methods. Features: {config.features}; real images: "
        f"{config.reference}. ± is one standard error, by bootstrap. Speedup: the full model's time over the method's, "
        f"timed alternately in one process, batches of {TIMED_IMAGES} images, medians of 5. Compute: FLOPs over the "
        f"full model's at {config.steps} steps, heads and estimators included."
    )


def _distance(cell: Cell) -> str:
    return with_error(cell.evaluation.first.frechet, cell.evaluation.first.frechet_error)


def _at(results: Results, compute: float) -> list[Cell]:
    return [cell for cell in results.cells if cell.target == compute]


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _row(cell: Cell) -> tuple[str, ...]:
    judged = cell.evaluation.first
    agreement = "" if judged.class_agreement is None else f"{judged.class_agreement:.1%}"
    return (
        TITLES.get(cell.method, "full model"),
        cell.setting,
        f"{cell.compute:.1%}",
        f"{cell.layers:.1%}",
        f"{cell.speedup:.2f}x",
        _distance(cell),
        f"{judged.kernel:.5f}",
        f"{judged.precision:.3f}",
        f"{judged.recall:.3f}",
        agreement,
        str(cell.evaluation.images),
    )


def _csv(results: Results) -> str:
    text = io.StringIO()
    grids = [cell for grid in (results.steps_synergy, results.pruning_synergy) for row in grid for cell in row]
    rows = [_flat(cell) for cell in (results.full, *results.cells, *grids)]
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(cell: Cell) -> dict[str, Any]:
    """Return all figures of a cell by name, those by the network in the place of the evaluation's networks."""
    values = asdict(cell)
    evaluation = values.pop("evaluation")
    (features, metrics), *_ = evaluation.pop("networks").items()
    return {**values, "images": evaluation.pop("images"), "features": features, **metrics, **evaluation}


def _estimator_figures(study: EstimatorStudy | None) -> dict[str, Any] | None:
    if study is None:
        return None
    return {
        "rank_correlation": study.rank_correlation,
        "sample_correlations": study.sample_correlations.tolist(),
        "variance_shares": study.variance_shares,
        "reliability": [values.tolist() for values in study.reliability()],
        "verdict": study.verdict,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Pages


def _contents(results: Results) -> dict[str, Any]:
    """Return the contents of the pages by the names that the templates use."""
    config, study = results.config, results.study
    groups = [("full model", [results.full])]
    groups += [(f"at {compute:.0%} of the compute", _at(results, compute)) for compute in sorted(config.compute)]
    filled = [any(values) for values in zip(*(_row(cell) for _, cells in groups for cell in cells), strict=True)]
    return {
        "title": f"Early exits and baselines: {config.preset}",
        "verdict": winner_in_words(results),
        "conditions": conditions_in_words(config),
        "unfilled": results.unfilled,
        "heads": list(compress(HEADS, filled)),
        "groups": [(name, _table_rows(cells, filled)) for name, cells in groups],
        "synergy": synergy_in_words(results),
        "estimators": None if study is None else study.verdict,
        "methods": [method for method in METHODS if method.name in (config.methods or TITLES)],
    }


def _pictures(results: Results, out: Path) -> dict[str, Figure]:
    """Draw the figures of the report, by the names that the templates use."""
    config, study = results.config, results.study
    headline = _at(results, config.headline_compute)
    drawn = {
        "compute": figures.tradeoff(
            results.full, results.cells, TITLES, "compute", "compute, relative to the full model's"
        ),
        "time": figures.tradeoff(results.full, results.cells, TITLES, "time", "time, relative to the full model's"),
        "side_by_side": figures.side_by_side(results.full, headline, TITLES, out / "cells"),
    }
    if steps := results.steps_synergy:
        drawn["steps"] = figures.synergy(
            steps, _row_names(steps), [str(n) for n in config.synergy_steps], "sampling steps"
        )
    if pruning := results.pruning_synergy:
        pruned = [f"{1 - fraction:.0%}" for fraction in (1.0, *config.pruned)]
        drawn["pruning"] = figures.synergy(pruning, _row_names(pruning), pruned, "FLOPs pruned")
    for cell in headline:
        if cell.method == "adadiff":
            totals = TraceTotals.from_dict(read_json(out / "cells" / cell.name / SAMPLES / TRACE))
            drawn["exits"] = figures.exits_over_steps(totals)
    if study is not None:
        drawn |= {"reliability": figures.reliability(study), "maps": figures.maps(study)}
    return drawn


def _row_names(grid: Sequence[Sequence[Cell]]) -> list[str]:
    return [f"exits at {row[0].target:.0%} of the compute" for row in grid]


def _table_rows(cells: Sequence[Cell], shown: Sequence[bool]) -> list[dict[str, Any]]:
    ordered = sorted(cells, key=lambda cell: cell.evaluation.first.frechet)
    return [{"cells": list(compress(_row(cell), shown)), "ours": cell.method in OURS} for cell in ordered]
