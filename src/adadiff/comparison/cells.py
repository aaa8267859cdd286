"""Cells of a comparison: each is one method at one setting, sampled, evaluated, timed and stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from tqdm import tqdm

from adadiff.comparison.bench import Bench, Setup
from adadiff.comparison.networks import FULL
from adadiff.evaluation.evaluate import Evaluation, evaluate_folder
from adadiff.evaluation.evaluator import Evaluator
from adadiff.policies import NeverExit
from adadiff.runtime.trace import TraceTotals
from adadiff.sampling import sample_seeded
from adadiff.sampling.folder import Spread, one_by_one, sample_to_folder
from adadiff.utils.files import write_json
from adadiff.utils.timing import median_seconds

CELL = "cell.json"
SAMPLES = "samples"
TIMED_IMAGES = 16


@dataclass(frozen=True)
class Cell:
    """The measurements of one method at one setting.

    Args:
        name: Name of the cell and its folder.
        method: Name of the method.
        setting: The chosen setting in words, for tables.
        target: The requested compute, over the full model's.
        compute: The measured compute, over the full model's.
        layers: Layers run over the full model's at all steps.
        seconds: Median seconds of a batch of `TIMED_IMAGES`.
        full_seconds: Median seconds of such a batch by the full model, timed alternately.
        evaluation: Quality metrics of its samples.
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
        """Seconds of the full model over seconds of this method."""
        return self.full_seconds / self.seconds


@dataclass(frozen=True)
class Task:
    """A cell to compute.

    Args:
        name: Name of the cell and its folder.
        method: Name of the method.
        target: The requested compute, over the full model's.
        images: Number of images to sample.
        choose: Returns the setup for the target, or None if the method has none; called only if the cell is missing.
    """

    name: str
    method: str
    target: float
    images: int
    choose: Callable[[], Setup | None]


class Cells:
    """Computes cells and stores them, or reads stored ones.

    Args:
        bench: The networks and settings that methods are set up with.
        evaluator: The real images and networks that samples are evaluated with.
        folder: Folder of the cells, with one sub-folder per cell.
        spread: Samples the cells' images, here or on many machines.
    """

    def __init__(self, bench: Bench, evaluator: Evaluator, folder: Path, spread: Spread = one_by_one) -> None:
        self.bench, self.evaluator, self.folder, self.spread = bench, evaluator, folder, spread

    def fill(self, tasks: Sequence[Task]) -> dict[str, Cell | None]:
        """Compute all missing cells; return the cells by name, None if a method has no setting.

        Concurrent processes share the work: a cell that another process is computing is waited for only at the end.
        """
        for wait in (False, True):
            for task in tasks:
                self._fill(task, wait)
        return self.found(tasks)

    def found(self, tasks: Sequence[Task]) -> dict[str, Cell | None]:
        """Read the stored cells of these tasks, by name; None if a method has no setting, missing cells left out."""
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
                write_json(path, None if cell is None else asdict(cell))
        except Timeout:
            return

    def _path(self, task: Task) -> Path:
        return self.folder / task.name / CELL

    def _measure(self, task: Task, setup: Setup) -> Cell:
        config, samples = self.bench.config, self.folder / task.name / SAMPLES
        conditions = self.bench.conditions(setup.pipeline)
        summary = sample_to_folder(
            setup.pipeline,
            samples,
            task.images,
            setup.steps,
            setup.policy,
            config.seed,
            conditions,
            config.batch_size,
            self.spread,
        )
        seconds = self._seconds(setup)
        compute, layers = self._spent(summary.totals, setup.steps)
        evaluation = evaluate_folder(samples, summary, self.evaluator)
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
        """Return FLOPs and layers of a sampling run, each over the full model's at all steps."""
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
            return sample_seeded(which.pipeline, range(TIMED_IMAGES), which.steps, which.policy, seed, conditions)

        return median_seconds({"full": lambda: sample(full), "this": lambda: sample(setup)})
