"""Fitting exit heads and uncertainty estimators to a frozen stock pipeline, on its own samplings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from adadiff.policies import NeverExit
from adadiff.stock.adapting.adaptation import Adaptation, FittedExits, Settings
from adadiff.stock.adapting.estimators import EstimatorFit
from adadiff.stock.adapting.fitting import FittingHooks, Survey
from adadiff.stock.adapting.heads import HeadFit
from adadiff.stock.exits import checked_exits
from adadiff.stock.hooks import TransformerHooks
from adadiff.stock.recorder import guidance_weights, steps_observed
from adadiff.stock.samples import StockSampler
from adadiff.stock.stored import weights_fingerprint
from adadiff.stock.switch import depth_of, switch_on, transformers_of, trying
from adadiff.stock.trajectory import PipelineState
from adadiff.stock.views import Blocks
from adadiff.utils.errors import InputError
from adadiff.utils.ranges import as_int

SEED = 0


def adapt(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    exits: Sequence[int] | None = None,
    samples: int = 32,
    batch_size: int = 8,
    bins: int = 10,
    seed: int = SEED,
    layers: Sequence[str] | None = None,
    **arguments: Any,
) -> Adaptation:
    """Fit exit heads and uncertainty estimators for a stock pipeline's transformers, without data or training.

    The pipeline samples the prompts with all layers. At each exit layer a head is fitted by ridge regression: a linear
    map of the tokens that the model's last linear map reads, which is added to its output so that it comes nearest to
    what it returns after all layers. On fresh samples an estimator is fitted that predicts how far an exit is off. The
    transformers' own weights stay as they are, and the pipeline is enabled or disabled as before.

    Args:
        pipe: A diffusers pipeline with one or several transformers.
        prompts: What to sample, in turn: values of the pipeline's argument `prompt` (or of its first argument, such as
            `class_labels`), or dictionaries of several arguments.
        exits: Exit layers to fit for, in 1..N-1; by default at most 8, closer together at the beginning.
        samples: Number of samples to fit the heads on, at least 2; as many fresh ones for the estimators.
        batch_size: Samples per call of the pipeline.
        bins: Number of bins that the steps of a sampling are divided into; each has heads and estimators of its own.
        seed: Seed of the noise.
        layers: Names of the transformers' lists of blocks, for models that adadiff does not know; see `adadiff.enable`.
        arguments: The other arguments of the pipeline's call, such as `num_inference_steps` and `guidance_scale`.

    Returns:
        The heads and estimators, to be saved and given to `adadiff.enable`.

    Raises:
        InputError: If an argument is invalid, or the pipeline cannot be cut.

    Examples:
        >>> adaptation = adadiff.adapt(pipe, ["a red apple", "a boat"], num_inference_steps=28)  # doctest: +SKIP
        >>> adadiff.enable(pipe, adadiff.ThresholdExit(0.1), adaptation=adaptation)  # doctest: +SKIP
        >>> adaptation.save("adaptation")  # doctest: +SKIP
    """
    for name, value, least in (("samples", samples, 2), ("batch_size", batch_size, 1), ("bins", bins, 1)):
        if as_int(value, name) < least:
            raise InputError(f"{name} is {value}: it must be at least {least}")
    sampler = StockSampler(pipe, prompts, seed, arguments)
    chosen = checked_exits(exits, depth_of(pipe, layers))
    with trying(pipe):
        return fitted(Samplings(sampler, samples, batch_size, layers), chosen, bins)


class Fit(Protocol):
    """What is fitted from what the exits of a transformer read and predict."""

    def see(self, exit_: int, bin_: int, tokens: Tensor, early: Tensor, full: Tensor) -> None:
        """Take what an exit reads and predicts in one call."""

    def end_step(self, weights: Tensor | None, samples: int) -> None:
        """Take by which weights the predictions of a step were combined, and of how many samples they are."""


@dataclass(frozen=True)
class Samplings:
    """The samplings that exits are fitted on.

    Args:
        sampler: Calls the pipeline.
        samples: Number of samples of each round.
        batch_size: Samples per call.
        layers: Names of the transformers' lists of blocks.
    """

    sampler: StockSampler
    samples: int
    batch_size: int
    layers: Sequence[str] | None

    def show(self, round_: int, surveys: Mapping[str, Survey], fits: Mapping[str, Fit]) -> None:
        """Sample a round with all layers, and show the exits of each transformer, by its name.

        The first sample is alone, so that two sizes of a batch are seen.
        """

        def hooks(component: nn.Module, name: str, blocks: Blocks, state: PipelineState) -> TransformerHooks:
            return FittingHooks(component, name, blocks, state, surveys[name], fits[name].see)

        switch_on(self.sampler.pipe, NeverExit(), self.layers, make_hooks=hooks)
        first, last = round_ * self.samples, (round_ + 1) * self.samples
        starts = (first, *range(first + 1, last, self.batch_size), last)
        for start, end in itertools.pairwise(starts):
            with steps_observed(self.sampler.pipe.scheduler, partial(_end_step, surveys, fits, end - start)):
                self.sampler(range(start, end))


def _end_step(surveys: Mapping[str, Survey], fits: Mapping[str, Fit], samples: int, combined: Tensor) -> None:
    """Find out how the predictions of a step were combined; `combined` is what the scheduler gets."""
    for name, survey in surveys.items():
        full, survey.predictions = survey.predictions, []
        weights = None
        if sum(map(len, full)) > samples and not any(len(each) % samples for each in full):
            parts = [part for each in full for part in each.view(-1, samples, each.shape[1])]
            weights, _ = guidance_weights(parts, combined, samples)
        fits[name].end_step(weights, samples)


def fitted(samplings: Samplings, exits: tuple[int, ...], bins: int) -> Adaptation:
    """Fit the exits of a pipeline's transformers: the heads on a first round of samplings, the estimators on another.

    Args:
        samplings: The samplings.
        exits: The exit layers.
        bins: Number of bins that the steps of a sampling are divided into.
    """
    transformers = transformers_of(samplings.sampler.pipe)
    surveys = {name: Survey(exits, bins) for name, _ in transformers}
    heads = {name: HeadFit(len(exits), bins) for name in surveys}
    samplings.show(0, surveys, heads)
    for name, survey in surveys.items():
        if not survey.projection:
            raise InputError(f"the pipeline does not call its {name} with these arguments, so nothing can be fitted")
        survey.row_inputs_known = True
    estimators = {name: EstimatorFit(fit.solve()) for name, fit in heads.items()}
    samplings.show(1, surveys, estimators)
    found = {name: _exits(surveys[name], estimators[name]) for name in surveys}
    return Adaptation(found, weights_fingerprint(transformers))


def _exits(survey: Survey, fit: EstimatorFit) -> FittedExits:
    """Put together what was fitted for one transformer, without the bins that it was not called in."""
    called = [bin_ for bin_, time in enumerate(survey.times) if math.isfinite(time)]
    times = tuple(survey.times[bin_] for bin_ in called)
    settings = Settings(
        survey.projection, survey.exits, times, survey.costs, survey.row_inputs.known, bool(survey.separable)
    )
    return FittedExits(settings, fit.heads[:, called], fit.solve()[:, called], fit.errors()[:, called])
