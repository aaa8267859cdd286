"""The comparison: train the networks and compute every cell, skipping those that exist already."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from filelock import FileLock

from adadiff.comparison.bench import Bench, Setup
from adadiff.comparison.cells import CELL, Cell, Cells, Task
from adadiff.comparison.config import CompareConfig
from adadiff.comparison.methods import METHODS, Method, Thresholded
from adadiff.comparison.networks import ADADIFF, FULL, Networks
from adadiff.data import DataConfig
from adadiff.evaluation.estimator import EstimatorStudy, study_estimators
from adadiff.evaluation.evaluator import evaluator_for
from adadiff.policies import NeverExit, ThresholdExit
from adadiff.sampling.folder import Spread, one_by_one
from adadiff.utils.errors import InputError, lookup
from adadiff.utils.files import claim_folder, read_json, write_json

CONFIG = "compare.json"
THRESHOLDS = "thresholds.json"
STUDIED = 256  # images in the study of the estimators


@dataclass(frozen=True)
class Results:
    """The results of a comparison.

    Args:
        config: The configuration of the comparison.
        full: The full model at all steps.
        cells: All methods at all compute fractions for which they have a setting.
        steps_synergy: Grid of thresholds (rows) and numbers of steps (columns).
        pruning_synergy: Grid of thresholds (rows) and pruned networks (columns), from unpruned to smallest.
        study: The study of our estimators; None for a model that takes text.
        unfilled: Number of missing cells; a grid with a missing cell is empty.
    """

    config: CompareConfig
    full: Cell
    cells: tuple[Cell, ...]
    steps_synergy: tuple[tuple[Cell, ...], ...]
    pruning_synergy: tuple[tuple[Cell, ...], ...]
    study: EstimatorStudy | None
    unfilled: int = 0


def compare(config: CompareConfig, out: Path, so_far: bool = False, spread: Spread = one_by_one) -> Results:
    """Compute all cells of a comparison, reusing stored ones and waiting for those of concurrent processes.

    Args:
        config: The configuration of the comparison.
        out: Folder of the report: new, empty, or one begun with the same configuration.
        so_far: Train and compute nothing; use the stored cells only.
        spread: Samples the cells' images, here or on many machines; networks are trained, set up and timed in this
            process.

    Raises:
        InputError: If a model, the data or the feature network is missing, or the folder holds another comparison.
    """
    config.check()
    by_name = {method.name: method for method in METHODS}
    compared = [lookup(name, by_name, "method") for name in config.methods or by_name]
    if so_far and not (out / "cells" / "full" / CELL).is_file():
        raise InputError(f"{out} holds no comparison with a cell of the full model yet: run without --so-far first")
    networks = Networks(config, out / "networks")
    bench = Bench(config, networks)
    reference = DataConfig(
        source=config.reference, split=config.reference_split, image_column=config.image_column or "image"
    )
    evaluator = evaluator_for(networks.backbone, reference, [config.features], None, "cpu")
    evaluator.require_enough(min(config.images, config.headline_images))
    claim_folder(out, CONFIG, asdict(config), "a comparison")
    cells = Cells(bench, evaluator, out / "cells", spread)

    full = Task("full", "full", 1.0, config.headline_images, partial(_full, bench))
    methods = _method_tasks(bench, compared)
    steps, pruning = _steps_tasks(bench, out), _pruning_tasks(bench, out)
    tasks = [full, *methods, *itertools.chain(*steps, *pruning)]
    filled = cells.found(tasks) if so_far else cells.fill(tasks)
    study = None
    if networks.is_trained(ADADIFF) and not (ours := networks.pipeline(ADADIFF)).text_encoder:
        study = study_estimators(ours, evaluator.data, min(STUDIED, len(evaluator.data)))
    return Results(
        config,
        _required(filled, full),
        tuple(cell for task in methods if (cell := filled.get(task.name)) is not None),
        _grid(filled, steps),
        _grid(filled, pruning),
        study,
        len(tasks) - len(filled),
    )


def _required(filled: Mapping[str, Cell | None], task: Task) -> Cell:
    cell = filled[task.name]
    assert cell is not None
    return cell


def _grid(filled: Mapping[str, Cell | None], rows: Sequence[Sequence[Task]]) -> tuple[tuple[Cell, ...], ...]:
    if any(task.name not in filled for row in rows for task in row):
        return ()
    return tuple(tuple(_required(filled, task) for task in row) for row in rows)


# ---------------------------------------------------------------------------------------------------------------------
# The cells


def _full(bench: Bench) -> Setup:
    steps = bench.config.steps
    return Setup(bench.networks.pipeline(FULL), NeverExit(), steps, f"{steps} steps", 1.0)


def _method_tasks(bench: Bench, methods: Sequence[Method]) -> list[Task]:
    """List the tasks of all methods at all compute fractions, the headline first."""
    config = bench.config
    headline = config.headline_compute
    return [
        Task(
            f"{method.name}-{compute:g}",
            method.name,
            compute,
            config.headline_images if compute == headline else config.images,
            partial(method.setup, bench, compute),
        )
        for compute in sorted(config.compute, key=lambda compute: compute != headline)
        for method in methods
    ]


def _steps_tasks(bench: Bench, out: Path) -> list[list[Task]]:
    """List the tasks of our exits at several numbers of steps.

    Each row uses the threshold that meets its compute at the configured number of steps.
    """
    config = bench.config

    def setup(row: float, steps: int) -> Setup:
        tau = _thresholds(bench, out)[row]
        pipeline = bench.networks.pipeline(ADADIFF)
        return Setup(pipeline, ThresholdExit(tau), steps, f"tau {tau:.4g}, {steps} steps", 0.0)

    return [
        [
            Task(f"steps-{steps}-{row:g}", "adadiff", row, config.images, partial(setup, row, steps))
            for steps in config.synergy_steps
        ]
        for row in config.synergy_compute
    ]


def _pruning_tasks(bench: Bench, out: Path) -> list[list[Task]]:
    """List the tasks of our exits in networks that were pruned and then fine-tuned with exits."""
    config = bench.config

    def setup(row: float, fraction: float) -> Setup:
        tau = _thresholds(bench, out)[row]
        pipeline = bench.networks.pipeline(replace(ADADIFF, compute=fraction))
        setting = f"tau {tau:.4g}, {1 - fraction:.0%} of the FLOPs pruned"
        return Setup(pipeline, ThresholdExit(tau), config.steps, setting, 0.0)

    return [
        [
            Task(f"pruned-{fraction:g}-{row:g}", "adadiff", row, config.images, partial(setup, row, fraction))
            for fraction in (1.0, *config.pruned)
        ]
        for row in config.synergy_compute
    ]


def _thresholds(bench: Bench, out: Path) -> dict[float, float]:
    """Return the threshold of our exits that meets each row's compute; it is searched once and stored in a file."""
    path = out / THRESHOLDS
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            return {float(row): tau for row, tau in read_json(path).items()}
        method = next(method for method in METHODS if method.name == "adadiff")
        assert isinstance(method, Thresholded)
        taus = {row: 0.0 if row == 1 else method.search(bench, row)[0] for row in bench.config.synergy_compute}
        write_json(path, taus)
    return taus
