"""Cells of a comparison: one method at one setting, sampled, judged, timed, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from tqdm import tqdm

from adadiff.comparison.methods import Bench, Setup
from adadiff.comparison.networks import FULL
from adadiff.evaluation.evaluate import Evaluation, Judge, evaluate_folder
from adadiff.evaluation.timing import median_seconds
from adadiff.exits import NeverExit
from adadiff.exits.trace import TraceTotals
from adadiff.files import whole_file
from adadiff.sampling import sample_numbered
from adadiff.sampling.folder import sample_to_folder

CELL = "cell.json"
SAMPLES = "samples"
TIMED_IMAGES = 16


@dataclass(frozen=True)
class Cell:
    """One method at one setting.

    Args:
        name: Of its folder.
        method: Name of the method.
        setting: What was chosen, for people.
        target: The compute that was asked for, over the full model's.
        compute: The compute that it took.
        layers: Layers run over the full model's at all steps.
        seconds: Median time of a batch of `TIMED_IMAGES`.
        full_seconds: Median time of such a batch by the full model, in turns with it.
        evaluation: What its samples are worth.
    """

    name: str
    method: str
    setting: str
    target: float
    compute: float
    layers: float
    seconds: float
    full_seconds: float
    evaluation: Evaluation

    @property
    def speedup(self) -> float:
        """Full time over its time."""
        return self.full_seconds / self.seconds


@dataclass(frozen=True)
class Task:
    """A cell to fill.

    Args:
        name: Of its folder.
        method: Name of the method.
        target: The compute that is asked for, over the full model's.
        images: How many to sample.
        choose: Finds the setting, None where the method has none for it; called only where the cell is not filled yet.
    """

    name: str
    method: str
    target: float
    images: int
    choose: Callable[[], Setup | None]


class Cells:
    """Fills cells, or finds them filled.

    Args:
        bench: What the methods are set up with.
        judge: What samples are held against.
        folder: One folder a cell.
    """

    def __init__(self, bench: Bench, judge: Judge, folder: Path) -> None:
        self.bench, self.judge, self.folder = bench, judge, folder

    def fill(self, tasks: Sequence[Task]) -> dict[str, Cell | None]:
        """The tasks' cells by name; None where a method has no setting.

        Processes that do so at once share the work: cells that another one is at are left until the rest is done.
        """
        for wait in (False, True):
            for task in tasks:
                self._fill(task, wait)
        return self.found(tasks)

    def found(self, tasks: Sequence[Task]) -> dict[str, Cell | None]:
        """The same of those tasks alone whose cells are filled."""
        paths = {task.name: self._path(task) for task in tasks}
        kind = TypeAdapter(Cell | None)
        return {name: kind.validate_json(path.read_bytes()) for name, path in paths.items() if path.is_file()}

    def _fill(self, task: Task, wait: bool) -> None:
        path = self._path(task)
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path.with_suffix(".lock"), blocking=wait):
                if path.is_file():
                    return
                tqdm.write(task.name)
                setup = task.choose()
                cell = None if setup is None else self._measure(task, setup)
                with whole_file(path) as part:
                    part.write_text(json.dumps(None if cell is None else asdict(cell), indent=2) + "\n")
        except Timeout:
            return

    def _path(self, task: Task) -> Path:
        return self.folder / task.name / CELL

    def _measure(self, task: Task, setup: Setup) -> Cell:
        config, samples = self.bench.config, self.folder / task.name / SAMPLES
        conditions = self.bench.conditions(setup.pipeline)
        summary = sample_to_folder(
            setup.pipeline, samples, task.images, setup.steps, setup.policy, config.seed, conditions, config.batch_size
        )
        seconds = self._seconds(setup)
        compute, layers = self._spent(summary.totals, setup.steps)
        evaluation = evaluate_folder(samples, summary, self.judge)
        return Cell(
            task.name,
            task.method,
            setup.setting,
            task.target,
            compute,
            layers,
            seconds["this"],
            seconds["full"],
            evaluation,
        )

    def _spent(self, totals: TraceTotals, steps: int) -> tuple[float, float]:
        """FLOPs and layers over the full model's at all steps."""
        share = steps / self.bench.config.steps
        depth = self.bench.networks.pipeline(FULL).transformer.depth
        layers = totals.layer_fraction * totals.depth / depth
        return self.bench.fraction(totals.flops / totals.predictions) * share, layers * share

    def _seconds(self, setup: Setup) -> dict[str, float]:
        full = replace(setup, pipeline=self.bench.networks.pipeline(FULL), policy=NeverExit())
        full = replace(full, steps=self.bench.config.steps)

        def sample(which: Setup) -> Any:
            conditions = self.bench.conditions(which.pipeline)
            seed = self.bench.config.seed
            return sample_numbered(which.pipeline, range(TIMED_IMAGES), which.steps, which.policy, seed, conditions)

        return median_seconds({"full": lambda: sample(full), "this": lambda: sample(setup)})
