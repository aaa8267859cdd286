"""Measurements of `stock_caches.py`: compute, error, time and quality of a setting, and which setting is best."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from stock_methods import ABOVE, Method, Setting
from torch import Tensor

from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.features import BATCH, load_feature_network, reference_features
from adadiff.evaluation.metrics import Features, Gaussian, bootstrap
from adadiff.exits.flops import flop_counter
from adadiff.stock.samples import StockSampler
from adadiff.utils.errors import InputError
from adadiff.utils.files import write_json
from adadiff.utils.timing import interleaved_seconds

SEED, PILOT_SEED = 0, 1_000_000  # calibration has a third
TRIES = 4  # settings that are sampled with until one spends as little on these samples as on the pilot batch
FULL = Setting("all layers")


@dataclass(frozen=True)
class Cell:
    """What was measured of a method at a compute target.

    Args:
        method: Name of the method.
        target: The compute target.
        setting: Parameters of the method; empty if none was found.
        compute: FLOPs of the transformer's calls over those of the full model's.
        error: Mean squared difference from the full model's images over their variance.
        standard_error: Standard error of that mean.
        seconds: Median seconds of a batch.
        full_seconds: Median seconds of a batch of the full model, in turns with it.
        repeats: Whether a second batch, without a reset in between, repeated the first bit for bit.
        frechet: Fréchet distance to real images, with its standard error, if asked for.
        note: What is to be said about it.
    """

    method: str
    target: float
    setting: str = ""
    compute: float | None = None
    error: float | None = None
    standard_error: float | None = None
    seconds: float | None = None
    full_seconds: float | None = None
    repeats: bool | None = None
    frechet: tuple[float, float] | None = None
    note: str = ""


class Results:
    """The cells measured so far, kept in a file.

    Args:
        path: The file, or None to keep nothing.
        settings: What the cells depend on.

    Raises:
        InputError: If the file holds cells of other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings, self.cells = path, settings, dict[str, Cell]()
        if path is not None and path.exists():
            stored = json.loads(path.read_text())
            if stored["settings"] != json.loads(json.dumps(settings)):
                raise InputError(f"{path} holds results of other settings: delete it, or choose another --out")
            self.cells = {key: Cell(**values) for key, values in stored["cells"].items()}

    def add(self, key: str, cell: Cell) -> None:
        """Add a cell, and write the file."""
        self.cells[key] = cell
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cells = {key: asdict(cell) for key, cell in self.cells.items()}
            write_json(self.path, {"settings": self.settings, "cells": cells})


class Images:
    """Real images that Fréchet distances are measured to, on the packaged features.

    Args:
        source: The real images, as `adadiff evaluate` takes them.
        pipe: The pipeline, whose images have the size and channels to compare at.
        number: Number of images to sample.
    """

    def __init__(self, source: str, pipe: Any, number: int) -> None:
        self.number, self.network = number, load_feature_network("small", torch.device("cpu"))
        channels: Literal[1, 3] = 1 if pipe.vae.config.out_channels == 1 else 3
        config = DataConfig(source=source, size=pipe.transformer.config.sample_size, channels=channels)
        real = ImageData(config, condition="none")
        self.real = Gaussian.fit(reference_features([self.network], real)[0].vectors)

    def distance(self, images: Tensor) -> tuple[float, float]:
        """Return the Fréchet distance of images to the real ones, and its standard error by bootstrap."""

        def frechet(vectors: Features) -> float:
            return Gaussian.fit(vectors).distance(self.real)

        rounded = (images[: self.number] * 255).round() / 255  # as in an 8-bit file
        vectors = self.network.of(rounded.split(BATCH)).vectors
        return frechet(vectors), bootstrap(frechet, vectors)


class Bench:
    """Samples a pipeline by any setting, and compares the samples with the full model's.

    Args:
        pipe: The pipeline.
        prompts: What is sampled, in turn.
        arguments: The arguments of the pipeline's call.
        samples: Number of samples of a cell.
        batch_size: Samples per call, on whose mean most caches decide.
        real: The real images to compare with, if any.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[Any],
        arguments: dict[str, Any],
        samples: int,
        batch_size: int,
        real: Images | None,
    ) -> None:
        self.pipe, self.prompts, self.arguments = pipe, prompts, arguments
        self.counted, self.samples = samples, max(samples, real.number if real else 0)
        self.batch_size, self.real = batch_size, real
        self.pilots: dict[str, tuple[float, float]] = {}

    def sample(self, setting: Setting, numbers: Sequence[int], seed: int = SEED) -> Tensor:
        """Sample a batch of images by a setting, (batch, channels, height, width) in [0, 1]."""
        sampler = StockSampler(self.pipe, self.prompts, seed, {**self.arguments, **setting.arguments})
        with setting.applied():
            return sampler(numbers, "pt")

    def sample_pilot(self) -> Tensor:
        """Sample the pilot batch with the full model."""
        return self.sample(FULL, range(self.batch_size), PILOT_SEED)

    def ranked(self, method: Method, target: float) -> list[Setting]:
        """Return settings of a method that spend at most the target and 2 points, the best on the pilot batch first."""
        tried = {each.name: each for each in method.settings(target, lambda each: self.pilot(method, each)[0])}
        pilots = {name: self.pilot(method, each) for name, each in tried.items()}
        allowed = [name for name in tried if pilots[name][0] <= target + ABOVE]
        return [tried[name] for name in sorted(allowed, key=lambda name: pilots[name][1])]

    def pilot(self, method: Method, setting: Setting) -> tuple[float, float]:
        """Return the compute and the error of a setting on the pilot batch, measured once."""
        key = f"{method.name}: {setting.name}"
        if key not in self.pilots:
            images, spent = self._counted(setting, range(self.batch_size), PILOT_SEED)
            full, all_spent = self._full_pilot
            self.pilots[key] = (spent / all_spent, losses(full, images).mean().item())
        return self.pilots[key]

    def full_cell(self, repeats: int) -> Cell:
        """Measure the full model."""
        seconds = interleaved_seconds({"full": lambda: self.sample(FULL, range(self.batch_size))}, repeats)["full"]
        median = statistics.median(seconds)
        distance = None if self.real is None else self.real.distance(self._full)
        return Cell("full model", 1.0, FULL.name, 1.0, 0.0, 0.0, median, median, True, distance)

    def cell(self, method: Method, target: float, repeats: int) -> Cell:
        """Measure the best setting of a method for a compute target; a cell without a setting if there is none.

        A cache's compute depends on the samples: one that spends more on these than allowed gives way to the next.
        """
        all_spent = self._full_counted[1]
        for setting in self.ranked(method, target)[:TRIES]:
            images, spent = self._count(setting)
            if spent / all_spent <= target + ABOVE:
                break
        else:
            return Cell(method.name, target, note="no setting spends as little")
        images, full = torch.cat([images, *self._rest(setting)]), self._full
        errors, first = losses(full, images), range(self.batch_size)
        runs = {"full": lambda: self.sample(FULL, first), "setting": lambda: self.sample(setting, first)}
        seconds = {name: statistics.median(runs) for name, runs in interleaved_seconds(runs, repeats).items()}
        return Cell(
            method.name,
            target,
            setting.name,
            spent / all_spent,
            errors.mean().item(),
            errors.std().item() / len(errors) ** 0.5,
            seconds["setting"],
            seconds["full"],
            self._repeats(setting),
            None if self.real is None else self.real.distance(images),
            setting.note,
        )

    def _repeats(self, setting: Setting) -> bool:
        """Sample a batch twice without a reset in between; return whether it was the same, bit for bit."""
        sampler = StockSampler(self.pipe, self.prompts, SEED, {**self.arguments, **setting.arguments})
        with setting.applied():
            once, again = (sampler(range(self.batch_size), "pt") for _ in range(2))
        return torch.equal(once, again)

    @cached_property
    def _full_counted(self) -> tuple[Tensor, int]:
        return self._count(FULL)

    @cached_property
    def _full(self) -> Tensor:
        return torch.cat([self._full_counted[0], *self._rest(FULL)])

    @cached_property
    def _full_pilot(self) -> tuple[Tensor, int]:
        return self._counted(FULL, range(self.batch_size), PILOT_SEED)

    def _count(self, setting: Setting) -> tuple[Tensor, int]:
        """Sample the first images of a cell, and count the FLOPs."""
        batches = [self._counted(setting, numbers, SEED) for numbers in self._batches(0, self.counted)]
        return torch.cat([images for images, _ in batches]), sum(spent for _, spent in batches)

    def _rest(self, setting: Setting) -> list[Tensor]:
        """Sample the images of a cell whose FLOPs are not counted."""
        return [self.sample(setting, numbers) for numbers in self._batches(self.counted, self.samples)]

    def _batches(self, first: int, end: int) -> list[range]:
        return [range(k, min(k + self.batch_size, end)) for k in range(first, end, self.batch_size)]

    def _counted(self, setting: Setting, numbers: Sequence[int], seed: int) -> tuple[Tensor, int]:
        """Sample a batch; return the images and the FLOPs of the transformer's calls."""
        spent = [0]

        @contextmanager
        def applied() -> Iterator[None]:
            with setting.applied(), flops_of_calls(self.pipe.transformer, spent):
                yield

        return self.sample(Setting(setting.name, applied, setting.arguments), numbers, seed), spent[0]


@contextmanager
def flops_of_calls(module: torch.nn.Module, spent: list[int]) -> Iterator[None]:
    """Add the FLOPs of a module's calls, other hooks on it included, to the only entry of `spent`."""
    with flop_counter() as counter:

        def begin(*_: Any) -> None:
            spent[0] -= counter.get_total_flops()

        def end(*_: Any) -> None:
            spent[0] += counter.get_total_flops()

        hooks = [module.register_forward_pre_hook(begin, prepend=True), module.register_forward_hook(end)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def losses(full: Tensor, images: Tensor) -> Tensor:
    """Return the mean squared difference from the full model's images over their variance, (samples,)."""
    return (full - images).square().flatten(1).mean(1) / full.var(0, correction=0).mean()
