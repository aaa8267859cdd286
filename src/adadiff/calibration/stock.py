"""Calibrating stock diffusers pipelines: sampling with them by number, recording the exits of their transformers."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adadiff.calibration.cache import Tensors
from adadiff.calibration.goal import SEED, Goal
from adadiff.calibration.kinds import CorrectedSchedule
from adadiff.calibration.metric import Metric
from adadiff.calibration.record import WINDOW
from adadiff.calibration.result import Calibration
from adadiff.calibration.run import calibrated, check_request
from adadiff.calibration.sampling import Batch, Sampling
from adadiff.policies import ExitPolicy, NeverExit, ScheduleExit
from adadiff.runtime import PartFlops
from adadiff.sampling import AdaptivePipeline, SamplingPlan
from adadiff.stock.costs import LayerCosts, mean_costs
from adadiff.stock.exits import checked_exits
from adadiff.stock.recorder import ExitRecorder
from adadiff.stock.samples import StockSampler
from adadiff.stock.stored import StockContext, StockPolicy, stock_context
from adadiff.stock.switch import depth_of, enable, recording, switch_on, trace, transformers_of, trying
from adadiff.utils.errors import InputError

logger = logging.getLogger(__name__)

STEPS = "num_inference_steps"
UNIT = 1e9  # FLOPs of a full call, since parts are whole numbers


class StockSampling(Sampling):
    """Samples with a stock pipeline, by policies of its transformers.

    Args:
        sampler: Calls the pipeline.
        exits: The early exit layers that are recorded, in 1..N-1, in order.
        layers: Names of the transformers' lists of blocks; see `adadiff.enable`.
        output_type: `latent`, or `pt` for decoded images.
    """

    def __init__(
        self, sampler: StockSampler, exits: tuple[int, ...], layers: Sequence[str] | None, output_type: str
    ) -> None:
        self.sampler, self.pipe = sampler, sampler.pipe
        self.exits, self.layers, self.output_type = exits, layers, output_type
        self.depth = depth_of(self.pipe, layers)

    @property
    def parts(self) -> PartFlops:
        mean = mean_costs(self.costs.values())
        segments = np.add.reduceat(mean.layers, (0, *self.exits))  # from one recorded exit to the next
        heads = torch.full((len(segments),), round(UNIT * mean.head))
        return PartFlops(
            round(UNIT * mean.refiners),
            torch.from_numpy(segments * UNIT).round().long(),
            heads,
            torch.zeros_like(heads),
            unread=round(UNIT * mean.of(0)),
        )

    @property
    def evaluations(self) -> int:
        return self._pilot.steps

    @cached_property
    def costs(self) -> dict[str, LayerCosts]:
        """FLOPs of the parts of each transformer, by its name."""
        return self._pilot.costs_by_transformer()

    def with_steps(self, steps: int) -> StockSampling:
        sampler = replace(self.sampler, arguments={**self.sampler.arguments, STEPS: steps})
        other = StockSampling(sampler, self.exits, self.layers, self.output_type)
        other.costs = self.costs
        return other

    def flops(self, policy: ExitPolicy) -> float:
        """Return the FLOPs of one sample by a policy that counts recorded exits, in billionths of a full prediction."""
        one_row = SamplingPlan(self.evaluations, policy).flops(self.parts, self.evaluations)
        return one_row * self.rows_per_evaluation

    @property
    def unit_flops(self) -> float:
        """FLOPs of the transformers in one unit of `flops`."""
        return self._pilot.flops_per_sample / self.flops(NeverExit())

    def batch(self, policy: ExitPolicy, numbers: Sequence[int]) -> Batch:
        switch_on(self.pipe, policy, self.layers, self.costs)
        images = self.sampler(numbers, self.output_type)
        found = trace(self.pipe)
        full = sum(call.values for call in found.calls)
        return Batch(images, found.compute_fraction * full, full)

    def record(self, numbers: Sequence[int]) -> Tensors:
        recorder, images = self._recorded(numbers)
        products = recorder.products  # (steps, WINDOW, exits + 2, exits + 2, samples)
        unknown = torch.full((len(products), *products.shape[3:]), torch.nan)
        return {
            "products": products,
            "uncertainties": unknown[:, 1:],
            "images": images,
        }

    def settings(self) -> dict[str, Any]:
        sampler = self.sampler
        return {
            **asdict(self._context),
            "prompts": [repr(each) for each in sampler.prompts],
            "arguments": {name: repr(each) for name, each in sampler.arguments.items()},
            "seed": sampler.seed,
            "exits": self.exits,
            "output_type": self.output_type,
        }

    def context(self) -> StockContext:
        return self._context

    def on_model(self, policy: ExitPolicy) -> ExitPolicy:
        if not isinstance(policy, ScheduleExit):
            return policy
        layers = (0, *self.exits, self.depth)
        return replace(policy, layers=tuple(layers[position] for position in policy.layers))

    def fewer_steps(self, compute: float) -> dict[int, StockSampling]:
        steps = compute * self._context.steps
        return {
            fewer: self.with_steps(fewer)
            for fewer in sorted({math.floor(steps), math.ceil(steps)})
            if 0 < fewer < self._context.steps
        }

    @property
    def rows_per_evaluation(self) -> float:
        """Predictions of the transformers for a sample at each evaluation: 2 where it is guided, else 1."""
        return self._pilot.rows / self._pilot.steps

    @property
    def values_per_row(self) -> float:
        """Number of values of a prediction, averaged over the shapes that the transformers predict."""
        return float(np.mean([math.prod(shape) for shape in self._pilot.shapes]))

    def like(self, seed: int, output_type: str) -> StockSampling:
        """Return the same sampling from other noise, to `latent` or to images, `pt`."""
        other = copy.copy(self)
        other.sampler, other.output_type = replace(self.sampler, seed=seed), output_type
        return other

    @cached_property
    def _context(self) -> StockContext:
        transformers, arguments, pilot = transformers_of(self.pipe), self.sampler.arguments, self._pilot
        shapes = sorted(pilot.shapes)
        return stock_context(self.pipe, transformers, self.depth, pilot.steps, arguments, shapes, self.costs)

    @cached_property
    def _pilot(self) -> ExitRecorder:
        """A recording of one sample, which shows before all others what the calls are."""
        return self._recorded([0])[0]

    def _recorded(self, numbers: Sequence[int]) -> tuple[ExitRecorder, torch.Tensor]:
        recorder = ExitRecorder(self.exits, WINDOW, len(numbers))
        with recording(self.pipe, recorder, self.layers):
            return recorder, self.sampler(numbers, self.output_type)


def calibrate(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    compute: float | None = None,
    error: float | None = None,
    speedup: float | None = None,
    confidence: float = 0.95,
    samples: int = 16,
    batch_size: int = 8,
    seed: int = SEED,
    exits: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    metric: Metric | None = None,
    keep: str | Path | None = None,
    periodic: bool = False,
    refine: bool = True,
    **arguments: Any,
) -> Calibration:
    """Find how deep to run a stock pipeline's transformer at each step, for a compute budget, an error or a speedup.

    Nothing is trained and no data are needed: the pipeline samples the prompts with all layers, what early exits would
    have predicted is recorded, and the best `CorrectedScheduleExit` is found by dynamic programming, sampled with,
    fitted to its own samples unless the goal is an error, and measured on fresh ones. Give exactly one goal. Afterwards
    the pipeline is enabled with the policy found; after an error it is as before.

    Args:
        pipe: A diffusers pipeline with one or several transformers.
        prompts: What to sample, in turn: values of the pipeline's argument `prompt` (or of its first argument, such as
            `class_labels`), or dictionaries of several arguments.
        compute: Fraction of the full model's FLOPs to spend, in (0, 1).
        error: Bound on the mean error, in (0, 1): the squared difference from the full model's latents over their
            variance.
        speedup: Times as fast as the full model on this machine, above 1.
        confidence: Confidence of the bound on the error, in (0, 1).
        samples: Number of samples to calibrate on, at least 8; as many fresh ones check the result.
        batch_size: Samples per call of the pipeline.
        seed: Seed of the noise.
        exits: Early exit layers to choose among, in 1..N-1; by default at most 8, closer together at the beginning.
        layers: Names of the transformers' lists of blocks, for models that adadiff does not know; see `adadiff.enable`.
        metric: Another error: a function of decoded images, as `calibration.metric.Metric`.
        keep: Folder that caches the samples, so that an interrupted calibration can be continued.
        periodic: Choose a schedule that is full at every k-th step; the best of any form is measured beside it.
        refine: Fit the schedule to its own samples, for goals of compute and speedup: less error, for one sampling more
            for each weight of its extrapolation, and up to three rounds.
        arguments: The other arguments of the pipeline's call, such as `num_inference_steps` and `guidance_scale`.

    Returns:
        What was found: its `policy`, measurements, and in `stored` the policy with what it belongs to, to be saved.

    Raises:
        InputError: If an argument is invalid, the pipeline cannot be cut, or the goal cannot be met.

    Examples:
        >>> found = adadiff.calibrate(pipe, ["a red apple", "a boat"], compute=0.55, num_inference_steps=28)
        ... # doctest: +SKIP
        >>> found.save("policy")  # doctest: +SKIP
        >>> adadiff.enable(pipe, "policy")  # in another session  # doctest: +SKIP
    """
    if isinstance(pipe, AdaptivePipeline):
        raise InputError("this is a pipeline of adadiff's own: call pipe.calibrate(compute=...)")
    goal = Goal(compute, error, speedup, confidence)
    check_request(goal, samples)
    sampler = StockSampler(pipe, prompts, seed, arguments)
    chosen = checked_exits(exits, depth_of(pipe, layers))
    with trying(pipe):
        sampling = StockSampling(sampler, chosen, layers, "latent" if metric is None else "pt")
        kinds = (CorrectedSchedule(),)
        cached = None if keep is None else Path(keep)
        (found,) = calibrated(sampling, (goal,), samples, metric, kinds, batch_size, cached, periodic, refine)
    assert isinstance(found.stored, StockPolicy)
    enable(pipe, found.stored, layers)
    if found.beats_fewer_steps is False:
        points = (*found.fewer_steps, replace(found.checked, kind="the policy"))
        each = (f"{p.error_in_words} ({p.kind}, {p.compute:.0%} of the compute)" for p in points)
        logger.warning(
            "early exits are not shown to save anything here, against fewer steps: errors of %s", ", ".join(each)
        )
    return found
