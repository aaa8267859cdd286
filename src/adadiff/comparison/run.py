"""A whole comparison: train what is missing, fill every cell, write the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from adadiff.comparison.cells import Cell, Cells
from adadiff.comparison.config import CompareConfig
from adadiff.comparison.methods import METHODS, Bench, Setup, Thresholded
from adadiff.comparison.networks import ADADIFF, FULL, Networks
from adadiff.data import DataConfig
from adadiff.evaluation.estimator import EstimatorStudy, study_estimators
from adadiff.evaluation.evaluate import judge_for
from adadiff.exits import NeverExit, ThresholdExit
from adadiff.files import claim_folder, whole_file

CONFIG = "compare.json"
STUDIED = 256  # images


@dataclass(frozen=True)
class Results:
    """What a comparison came to.

    Args:
        config: The comparison.
        full: The full model at all steps.
        cells: Every method at every compute where it has a setting.
        steps_synergy: Thresholds (rows) at numbers of steps (columns).
        pruning_synergy: Thresholds (rows) in networks pruned more and more (columns).
        study: What our estimators know; None for a model that takes text.
    """

    config: CompareConfig
    full: Cell
    cells: tuple[Cell, ...]
    steps_synergy: tuple[tuple[Cell, ...], ...]
    pruning_synergy: tuple[tuple[Cell, ...], ...]
    study: EstimatorStudy | None


def compare(config: CompareConfig, out: Path) -> Results:
    """Fill every cell of a comparison; what is there already is not done again.

    Args:
        config: The comparison.
        out: Folder of the report: new, empty, or one begun with the same comparison.

    Raises:
        InputError: If something that is needed is not there, or the folder holds another comparison.
    """
    config.check()
    claim_folder(out, CONFIG, asdict(config), "a comparison")
    networks = Networks(config, out / "networks")
    bench = Bench(config, networks)
    reference = DataConfig(
        source=config.reference, split=config.reference_split, image_column=config.image_column or "image"
    )
    judge = judge_for(networks.backbone, reference, config.features, None, torch.device("cpu"))
    judge.require_enough(min(config.images, config.headline_images))
    cells = Cells(bench, judge, out / "cells")

    full = _filled(
        cells.fill(
            "full",
            "full",
            1.0,
            config.headline_images,
            lambda: Setup(networks.pipeline(FULL), NeverExit(), config.steps, f"{config.steps} steps", 1.0),
        )
    )
    found = []
    order = sorted(config.compute, key=lambda compute: compute != config.headline_compute)
    for compute in order:
        images = config.headline_images if compute == config.headline_compute else config.images
        for method in METHODS:
            tqdm.write(f"{method.title} at {compute:.0%} of the compute")
            cell = cells.fill(
                f"{method.name}-{compute:g}",
                method.name,
                compute,
                images,
                lambda method=method, compute=compute: method.setup(bench, compute),  # type: ignore[misc]
            )
            if cell is not None:
                found.append(cell)
    ours = networks.pipeline(ADADIFF)
    study = None if ours.text_encoder else study_estimators(ours, judge.real, min(STUDIED, len(judge.real)))
    return Results(config, full, tuple(found), _steps_synergy(cells), _pruning_synergy(cells), study)


def _steps_synergy(cells: Cells) -> tuple[tuple[Cell, ...], ...]:
    """Our exits with fewer and more steps, each row with the thresholds that meet its compute at all steps."""
    config = cells.bench.config

    def setup(tau: float, steps: int) -> Callable[[], Setup]:
        def choose() -> Setup:
            return Setup(
                cells.bench.networks.pipeline(ADADIFF), ThresholdExit(tau), steps, f"tau {tau:.4g}, {steps} steps", 0.0
            )

        return choose

    return tuple(
        tuple(
            _filled(cells.fill(f"steps-{steps}-{row:g}", "adadiff", row, config.images, setup(tau, steps)))
            for steps in config.synergy_steps
        )
        for row, tau in _thresholds(cells).items()
    )


def _pruning_synergy(cells: Cells) -> tuple[tuple[Cell, ...], ...]:
    """Our exits in networks that are pruned, and trained with exits after."""
    config = cells.bench.config

    def setup(tau: float, kept: float) -> Callable[[], Setup]:
        def choose() -> Setup:
            pipeline = cells.bench.networks.pipeline(replace(ADADIFF, compute=kept))
            return Setup(pipeline, ThresholdExit(tau), config.steps, f"tau {tau:.4g}, {1 - kept:.0%} cut off", 0.0)

        return choose

    return tuple(
        tuple(
            _filled(cells.fill(f"pruned-{kept:g}-{row:g}", "adadiff", row, config.images, setup(tau, kept)))
            for kept in (1.0, *config.pruned)
        )
        for row, tau in _thresholds(cells).items()
    )


def _thresholds(cells: Cells) -> dict[float, float]:
    """The threshold of our exits for each row of the grids: the one that meets the compute, kept in a file."""
    path = cells.folder / "thresholds.json"
    if path.is_file():
        return {float(row): tau for row, tau in json.loads(path.read_text()).items()}
    method = next(method for method in METHODS if method.name == "adadiff")
    assert isinstance(method, Thresholded)
    taus = {row: 0.0 if row == 1 else method.search(cells.bench, row)[0] for row in cells.bench.config.synergy_compute}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(json.dumps(taus) + "\n")
    return taus


def _filled(cell: Cell | None) -> Cell:
    assert cell is not None
    return cell
