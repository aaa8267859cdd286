"""A budget, a speedup or a bound on the error in; a policy out, with what it was seen to do on samples of its own.

The full model is sampled once, and every exit looked at (`record.py`). On one half of these samples policies of every
kind are made at many prices (`solve.py`); on the other half they are sampled with, and the best kind is taken. What is
said of the chosen policy comes from fresh samples.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from adadiff.calibration.influence import measured_influence
from adadiff.calibration.kept import Kept, Tensors
from adadiff.calibration.record import ExitRecord, record_exits
from adadiff.calibration.risk import last_safe, least_samples, upper_bound
from adadiff.calibration.solve import KINDS, Kind, Problem
from adadiff.errors import InputError
from adadiff.evaluation.timing import median_seconds
from adadiff.exits import ExitPolicy, NeverExit
from adadiff.exits.flops import PartFlops
from adadiff.exits.trace import Trace
from adadiff.files import weights_checksum
from adadiff.policies.stored import Circumstances, StoredPolicy
from adadiff.sampling import UNCONDITIONAL, AdaDiffPipeline, Conditions, sample_numbered
from adadiff.sampling.folder import sampling_request
from adadiff.sampling.schedulers import scheduler_name

Metric = Callable[[Tensor, Tensor], Tensor]
"""From the full and the adaptive images, (batch, channels, height, width) in [0, 1], to losses, (batch,) in [0, 1]."""

SQUARED_ERROR = "squared error over the variance"
SEED = 2_000_000  # noise that sampling by default does not use
COMPUTES = (0.3, 0.45, 0.55, 0.7, 0.85)  # at which the trade-off is measured
CORRECTIONS = 4
TOLERANCE = 0.003  # of the compute, on the samples that correct it
LEVELS = (0.05, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0)  # predicted errors that are tested, over the allowed one
TIMED_IMAGES = 16
SPEED_TRIALS = 6
REPEATED = 8  # images that the full model samples again


@dataclass(frozen=True)
class Goal:
    """What is asked of a policy: one of the three.

    Args:
        compute: Spend this fraction of the full model's FLOPs, in (0, 1).
        error: Keep the mean difference from the full model's images below this, in (0, 1).
        speedup: Be so many times as fast as the full model on this machine, above 1.
        confidence: Of the bound on the error, in (0, 1).

    Raises:
        InputError: If not exactly one is given, or a value is out of range.
    """

    compute: float | None = None
    error: float | None = None
    speedup: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if len(self.asked) != 1:
            raise InputError("say what to reach: one of compute, error and speedup")
        for name in ("compute", "error", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InputError(f"{name} is {value}: it must be between 0 and 1")
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise InputError(f"the speedup is {self.speedup}: it must be above 1")

    @property
    def asked(self) -> dict[str, float]:
        """The one that is given, by name."""
        values = {"compute": self.compute, "error": self.error, "speedup": self.speedup}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Point:
    """A policy, and what sampling with it came to.

    Args:
        kind: Name of its kind.
        policy: When samples leave.
        compute: FLOPs over the full model's.
        losses: Of each sample, (samples,) in [0, 1].
    """

    kind: str
    policy: ExitPolicy
    compute: float
    losses: NDArray[np.floating]

    @property
    def error(self) -> float:
        """The mean loss."""
        return float(self.losses.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean loss."""
        return float(self.losses.std(ddof=1) / math.sqrt(len(self.losses)))


@dataclass(frozen=True)
class Calibration:
    """A policy for a goal, and what is known of it.

    Args:
        goal: What was asked.
        trade_off: Policies of every kind, on the samples that the choice was made by.
        predicted: The chosen one on these samples.
        checked: The same on fresh samples.
        error_bound: Above its true mean loss, with the goal's confidence: the error that was asked for, or, the fresh
            samples having had no part in the choice, what they show.
        speedup: Of a batch of `TIMED_IMAGES`, measured in turns with the full model.
        calibrated_for: What it belongs to.
        metric: What losses are, in words, or the name of the function that gave them.
    """

    goal: Goal
    trade_off: tuple[Point, ...]
    predicted: Point
    checked: Point
    error_bound: float
    speedup: float
    calibrated_for: Circumstances
    metric: str

    @property
    def policy(self) -> ExitPolicy:
        """When samples leave."""
        return self.predicted.policy

    @property
    def stored(self) -> StoredPolicy:
        """As it is kept in a model folder."""
        found = {
            "kind": self.predicted.kind,
            "compute": self.checked.compute,
            "error": self.checked.error,
            "error_bound": self.error_bound,
            "confidence": self.goal.confidence,
            "speedup": self.speedup,
            "samples": len(self.checked.losses),
            "metric": self.metric,
        }
        return StoredPolicy(self.policy, self.calibrated_for, self.goal.asked, found)

    def save(self, folder: Path) -> Path:
        """Write the policy into a model folder."""
        return self.stored.save(folder)


def normalised_squared_error(images: Tensor) -> Metric:
    """Mean squared difference over the variance of such images, at most 1, which is worse than a grey image is.

    Args:
        images: From which the variance is taken, (samples, channels, height, width).
    """
    variance = images.var(0, correction=0).mean().item()

    def metric(full: Tensor, adaptive: Tensor) -> Tensor:
        return ((full - adaptive).square().flatten(1).mean(1) / variance).clamp(max=1)

    return metric


def losses_by(metric: Metric, full: Tensor, adaptive: Tensor) -> Tensor:
    """What a metric says of pairs of images, (samples,) float64.

    Raises:
        InputError: If that is not one loss an image in [0, 1], which the bound holds for.
    """
    if not callable(metric):
        raise InputError(f"the metric is {metric!r}: give a function of two batches of images")
    losses = torch.as_tensor(metric(full, adaptive)).double().cpu()
    if losses.shape != (len(full),):
        raise InputError(f"the metric gave {tuple(losses.shape)} losses for {len(full)} images: give one an image")
    if not ((losses >= 0) & (losses <= 1)).all():
        low, high = losses.min().item(), losses.max().item()
        raise InputError(f"the metric gave losses from {low:.3g} to {high:.3g}: bring them between 0 and 1")
    return losses


def calibrate(
    pipeline: AdaDiffPipeline,
    goal: Goal,
    steps: int,
    conditions: Conditions = UNCONDITIONAL,
    samples: int = 192,
    metric: Metric | None = None,
    kinds: Sequence[Kind] = KINDS,
    seed: int = SEED,
    batch_size: int = 32,
    keep: Path | None = None,
) -> Calibration:
    """Find the policy that meets a goal at the best quality, or a bound on the error at the least compute.

    The bound holds by "Learn then Test" (Angelopoulos et al. 2021, arXiv 2110.01052; for early exits Jazbec et al.
    2024, arXiv 2405.20915): policies of growing error are tested on fresh samples until one fails.

    Args:
        pipeline: The model and the scheduler.
        goal: What to reach.
        steps: Sampling steps.
        conditions: What the samples show, and the guidance.
        samples: How many to calibrate on, half of them to choose by; and as many fresh ones to check.
        metric: The loss of a pair of images; by default `normalised_squared_error`.
        kinds: Kinds of policies to choose among.
        seed: Of the noise.
        batch_size: Samples at once.
        keep: Folder for what was sampled, deleted at the end: with it a calibration that was interrupted, or whose goal
            could not be met, goes on. What another one left there is deleted.

    Raises:
        InputError: If the goal cannot be met, or not be shown to be met with so few samples, or the metric is none.
    """
    pipeline.check_inputs(1, steps, NeverExit())
    if samples < 8:
        raise InputError(f"there are {samples} samples: calibrate on at least 8")
    delta = 1 - goal.confidence
    if goal.error is not None and samples < (least := least_samples(goal.error, delta)):
        raise InputError(
            f"{samples} samples are too few to show an error below {goal.error} with a confidence of "
            f"{goal.confidence}: take at least {least}"
        )
    if goal.compute is not None and goal.compute < (least_spent := least_compute(pipeline.transformer.part_flops)):
        raise InputError(
            f"one layer at every step takes {least_spent:.3f} of the full model's compute, and {goal.compute} was "
            f"asked for: ask for more, or take fewer steps"
        )
    if metric is not None:
        images = torch.rand(2, *pipeline.image_shape, generator=torch.Generator().manual_seed(0))
        losses_by(metric, images, images)  # what is no metric is refused before anything is sampled
    judged_by = SQUARED_ERROR if metric is None else _name(metric)
    settings = {
        **sampling_request(pipeline, steps, NeverExit(), seed, conditions),
        "samples": samples,
        "batch_size": batch_size,
        "metric": judged_by,
    }
    kept = Kept(keep, settings)
    record = record_exits(pipeline, samples, steps, conditions, seed, batch_size, kept)
    metric = metric or normalised_squared_error(record.images)
    trials = Trials(pipeline, steps, conditions, seed, batch_size, metric, kept)
    search = Search(trials, record, kinds)
    if goal.compute is not None:
        predicted = search.for_compute(goal.compute)
    elif goal.speedup is not None:
        predicted = search.for_speedup(goal.speedup)
    else:
        assert goal.error is not None
        predicted = search.for_error(goal.error, delta, fresh=range(samples, 2 * samples))
    checked = trials.sample(predicted.kind, predicted.policy, range(samples, 2 * samples))
    circumstances = Circumstances(
        weights_checksum(Path(pipeline.transformer.config.get("_name_or_path", ""))),
        pipeline.transformer.depth,
        scheduler_name(pipeline.scheduler),
        steps,
        conditions.guidance.scale,
        evaluations=len(record.errors),
    )
    calibration = Calibration(
        goal,
        tuple(search.trade_off),
        predicted,
        checked,
        goal.error or upper_bound(checked.losses, delta),
        trials.speedup(predicted.policy),
        circumstances,
        judged_by,
    )
    kept.discard()
    return calibration


def _name(metric: Metric) -> str:
    """A function's, as it is imported by; another callable's as it shows itself."""
    return f"{metric.__module__}:{metric.__qualname__}" if inspect.isfunction(metric) else repr(metric)


def least_compute(parts: PartFlops) -> float:
    """FLOPs of leaving after the first layer, always, over the full model's."""
    no_estimator = torch.zeros(len(parts.layers), dtype=torch.bool)
    return parts.until_exit(torch.tensor([1]), no_estimator).item() / parts.full


class Trials:
    """Samples with policies, and holds the images against the full model's.

    Args:
        pipeline: The model and the scheduler.
        steps: Sampling steps.
        conditions: What the samples show.
        seed: Of the noise.
        batch_size: Samples at once.
        metric: The loss of a pair of images.
        kept: Where the losses are kept, and found.
    """

    def __init__(
        self,
        pipeline: AdaDiffPipeline,
        steps: int,
        conditions: Conditions,
        seed: int,
        batch_size: int,
        metric: Metric,
        kept: Kept | None = None,
    ) -> None:
        self.pipeline, self.steps, self.conditions = pipeline, steps, conditions
        self.seed, self.batch_size, self.metric = seed, batch_size, metric
        self.kept = kept or Kept()
        self._full: dict[int, Tensor] = {}

    def know(self, images: Tensor) -> None:
        """Take over the full model's images 0, 1, ..."""
        self._full.update(enumerate(images))

    def sample(self, kind: str, policy: ExitPolicy, numbers: Sequence[int]) -> Point:
        """Sample these numbers with a policy, and with the full model, where that was not done yet."""

        def measure() -> Tensors:
            full = self._full_images(numbers)
            images, compute = self._images(policy, numbers, f"{kind}, {len(numbers)} samples")
            losses = losses_by(self.metric, full, images)
            return {"losses": losses, "compute": torch.tensor(compute, dtype=torch.double)}

        measured = self.kept.once(f"{policy} on {numbers}", measure)
        return Point(kind, policy, measured["compute"].item(), measured["losses"].numpy())

    def repeat_error(self, numbers: Sequence[int]) -> float:
        """The mean loss of the full model against itself, in batches of another size: rounding."""
        full = self._full_images(numbers)
        again = [self._batch(NeverExit(), [k])[0] for k in numbers]
        return losses_by(self.metric, full, torch.cat(again)).mean().item()

    def speedup(self, policy: ExitPolicy) -> float:
        """Time of the full model over time with the policy, in turns."""
        numbers = range(TIMED_IMAGES)
        seconds = median_seconds(
            {"full": lambda: self._batch(NeverExit(), numbers), "adaptive": lambda: self._batch(policy, numbers)}, 3
        )
        return seconds["full"] / seconds["adaptive"]

    def _full_images(self, numbers: Sequence[int]) -> Tensor:
        missing = [k for k in numbers if k not in self._full]
        if missing:
            images, _ = self._images(NeverExit(), missing, f"full model, {len(missing)} samples")
            self._full.update(zip(missing, images, strict=True))
        return torch.stack([self._full[k] for k in numbers])

    def _images(self, policy: ExitPolicy, numbers: Sequence[int], doing: str) -> tuple[Tensor, float]:
        parts, flops, predictions = [], 0, 0
        with tqdm(total=len(numbers), desc=doing, unit="image", leave=False) as progress:
            for first in range(0, len(numbers), self.batch_size):
                batch = numbers[first : first + self.batch_size]
                images, trace = self._batch(policy, batch)
                parts.append(images)
                flops, predictions = flops + int(trace.flops.sum()), predictions + trace.predictions
                progress.update(len(batch))
        return torch.cat(parts), flops / (predictions * self.pipeline.transformer.part_flops.full)

    def _batch(self, policy: ExitPolicy, numbers: Sequence[int]) -> tuple[Tensor, Trace]:
        output = sample_numbered(self.pipeline, numbers, self.steps, policy, self.seed, self.conditions)
        return output.images.float().cpu(), output.trace


class Search:
    """Finds policies on samples 0, 1, ... of a record: made on the first half, chosen on the second.

    Args:
        trials: Samples with policies.
        record: Of full samplings of the same noise.
        kinds: Kinds of policies.
    """

    def __init__(self, trials: Trials, record: ExitRecord, kinds: Sequence[Kind]) -> None:
        self.trials, self.kinds = trials, kinds
        samples = len(record.images)
        half = samples // 2
        influence = trials.kept.once(
            "influence",
            lambda: {
                "steps": measured_influence(trials.pipeline, record, trials.steps, trials.conditions, trials.seed)
            },
        )["steps"]
        parts = trials.pipeline.transformer.part_flops
        self.problem = Problem(record.select(torch.arange(half)), influence, parts)
        self.least_compute = least_compute(parts)
        self.choosing = range(half, samples)
        trials.know(record.images)

    @cached_property
    def trade_off(self) -> list[Point]:
        """Policies of every kind at several computes."""
        computes = [compute for compute in COMPUTES if compute > self.least_compute]
        return [self._at(kind, compute) for kind in self.kinds for compute in computes]

    def for_compute(self, compute: float) -> Point:
        """The best kind's policy that takes this compute."""
        return self.meeting(min(self.kinds, key=lambda kind: self._curve(kind).error_at(compute)), compute)

    def meeting(self, kind: Kind, compute: float) -> Point:
        """This kind's policy that takes this compute, corrected by what it takes when it is sampled with."""
        asked, found = compute, []
        for _ in range(CORRECTIONS):
            found.append(self._at(kind, asked))
            off = found[-1].compute - compute
            if abs(off) <= TOLERANCE:
                break
            asked -= off
        return min(found, key=lambda point: abs(point.compute - compute))

    def for_speedup(self, speedup: float) -> Point:
        """The best kind's policy that is so much faster.

        Raises:
            InputError: If no compute gives that.
        """
        kind = min(self.kinds, key=lambda kind: self._curve(kind).error_at(1 / speedup))
        low, high = self.least_compute, 1.0
        reached: dict[float, ExitPolicy] = {}
        for _ in range(SPEED_TRIALS):
            compute = (low + high) / 2
            policy = kind.meeting(self.problem, compute)
            measured = self.trials.speedup(policy)
            reached[measured] = policy
            low, high = (low, compute) if measured < speedup else (compute, high)
        most = max(reached)
        if most < speedup:
            raise InputError(f"a speedup of {speedup:g} was not reached on this machine: {most:.2f} at most")
        least = min(measured for measured in reached if measured >= speedup)
        return self.trials.sample(kind.name, reached[least], self.choosing)

    def for_error(self, error: float, delta: float, fresh: Sequence[int]) -> Point:
        """The policy of the least compute whose mean loss is shown to be below `error`.

        Raises:
            InputError: If none is.
        """
        repeat = self.trials.repeat_error(fresh[:REPEATED])
        if error <= repeat:
            raise InputError(
                f"the full model sampled again in other batches differs by {repeat:.2g} from itself, and an error "
                f"below {error} was asked for: ask for more, or take --dtype float32"
            )
        kind = min(self.kinds, key=lambda kind: self._curve(kind).compute_at(error))
        tried: list[Point] = []

        def candidates() -> Iterator[NDArray[np.floating]]:
            for level in LEVELS:
                policy = kind.meeting(self.problem, self._curve(kind).compute_at(level * error))
                tried.append(self.trials.sample(kind.name, policy, fresh))
                yield tried[-1].losses

        position = last_safe(candidates(), error, delta)
        if position is None:
            shown = upper_bound(tried[0].losses, delta)
            raise InputError(
                f"no policy was shown to keep the error below {error}: the most careful one that was tried is below "
                f"{shown:.3g}, at {tried[0].compute:.0%} of the compute; ask for that, or calibrate on more samples"
            )
        return self.trials.sample(kind.name, tried[position].policy, self.choosing)

    def _at(self, kind: Kind, compute: float) -> Point:
        return self.trials.sample(kind.name, kind.meeting(self.problem, compute), self.choosing)

    def _curve(self, kind: Kind) -> Curve:
        return Curve([point for point in self.trade_off if point.kind == kind.name])


class Curve:
    """Error against compute of one kind of policies, the logarithm of the error being linear between its points.

    Args:
        points: At least one; the full model, of compute 1 and no error, is the end of the curve.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        ordered = sorted(points, key=lambda point: point.compute)
        self.computes = np.array([point.compute for point in ordered])
        # The envelope: an error that can be had for less compute is not a larger one's.
        self.logs = np.minimum.accumulate([math.log(max(point.error, 1e-12)) for point in ordered])

    def error_at(self, compute: float) -> float:
        """The expected error at a compute; between the last point and 1 that of the last point."""
        return math.exp(np.interp(compute, self.computes, self.logs))

    def compute_at(self, error: float) -> float:
        """The least compute with this expected error."""
        logs, computes = np.append(self.logs, self.logs[-1] - 5), np.append(self.computes, 0.999)
        return float(np.interp(-math.log(error), -logs, computes))
