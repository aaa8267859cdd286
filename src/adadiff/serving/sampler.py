"""Running samples in their slots, each at its own step: one call of the model takes a step of many of them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from adadiff.policies import ExitPolicy, NeverExit
from adadiff.runtime import Inputs, InternalWeights, Prediction
from adadiff.sampling import AdaptivePipeline
from adadiff.sampling.schedulers import noise_arguments
from adadiff.serving.mixed import STRIDE, MixedPolicy
from adadiff.serving.plans import PreparedPlan
from adadiff.serving.rows import Row, SessionRows
from adadiff.serving.solvers import Solver, denoised
from adadiff.utils.seeding import generator_for


@dataclass(eq=False)
class Sample:
    """An image on its way.

    Args:
        number: Tells it from all other samples of the engine.
        slot: The slot that holds its latents.
        prepared: Its plan.
        conditions: The model's keyword arguments for what it shall show, (1, ...) each.
        null_conditions: Those of its unconditional predictions; empty where nothing is guided.
        generator: Source of its noise.
        scheduler: Its own scheduler, where its plan has no solver.
        step: Steps taken.
        exit_layers: The layer that it exited after at each step taken; of a guided pair, the deeper one.
        layers: Layers run so far, those of unconditional predictions included.
        predictions: Predictions so far: one a step, two where it is guided.
        flops: FLOPs spent so far.
        finite: Whether its latents are finite.
    """

    number: int
    slot: int
    prepared: PreparedPlan
    conditions: Mapping[str, Tensor]
    null_conditions: Mapping[str, Tensor]
    generator: torch.Generator
    scheduler: SchedulerMixin | None
    step: int = 0
    exit_layers: list[int] = field(default_factory=list)
    layers: int = 0
    predictions: int = 0
    flops: int = 0
    finite: bool = True

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self.step == self.prepared.evaluations

    @property
    def guided(self) -> bool:
        """Whether the next step is guided."""
        return self.prepared.guided[self.step]

    @property
    def planned_layers(self) -> int:
        """Layers that the next step is going to run, in 0..N."""
        return self.prepared.layers[self.step]

    @property
    def internal_layer(self) -> int | None:
        """The layer of internal guidance, or None if there is none."""
        internal = self.prepared.plan.guidance.internal
        return None if internal is None else internal.layer


class Sampler:
    """Holds the latents and the memory of running samples, and takes their steps.

    Args:
        pipeline: The model.
        slots: Most samples at a time.
    """

    def __init__(self, pipeline: AdaptivePipeline, slots: int) -> None:
        backbone = pipeline.transformer.backbone
        self.pipeline, self.denoiser = pipeline, pipeline.denoiser
        self.device, self.dtype = pipeline._execution_device, pipeline.transformer.dtype
        self.shape = (backbone.in_channels, *backbone.sample_size)
        self.latents, self.previous = torch.zeros(2, slots, *self.shape, device=self.device)  # (slots, C, H, W) each
        self.rows = SessionRows(self.denoiser)

    def begin(
        self,
        number: int,
        slot: int,
        prepared: PreparedPlan,
        seed: int,
        conditions: Mapping[str, Tensor],
        null_conditions: Mapping[str, Tensor],
    ) -> Sample:
        """Draw the noise of an image into a slot; its noise is that of image 0 of the seed.

        Args:
            number: Tells the sample from all others.
            slot: A slot that holds no running sample.
            prepared: The plan.
            seed: The seed.
            conditions: The model's keyword arguments for what it shall show, (1, ...) each.
            null_conditions: Those of its unconditional predictions.
        """
        generator = generator_for(seed, 0)
        noise = randn_tensor((1, *self.shape), generator=generator, device=torch.device(self.device))
        self.latents[slot] = (noise * prepared.scheduler.init_noise_sigma)[0]
        self.previous[slot] = 0
        scheduler = None if prepared.solver is not None else copy.deepcopy(prepared.scheduler)
        return Sample(number, slot, prepared, conditions, null_conditions, generator, scheduler)

    def end(self, samples: Sequence[Sample]) -> None:
        """Forget samples, so that their slots can be given to others."""
        self.rows.drop((sample.number, unconditional) for sample in samples for unconditional in (False, True))

    @torch.no_grad()
    def step(self, samples: Sequence[Sample], watched: Sequence[Sample] = ()) -> dict[int, Tensor]:
        """Take the next step of every sample, in one call of the model.

        Only samples whose internal guidance reads different layers are called for one after the other.

        Args:
            samples: Different samples, none of them done.
            watched: Those whose denoised estimates are wanted.

        Returns:
            Estimates of watched samples by their number, (channels, height, width) each, not decoded.
        """
        by_layer: dict[int, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_layer[sample.internal_layer or 0].append(sample)
        if len(by_layer) > 1:  # samples without internal guidance can share the call of any layer
            plain = by_layer.pop(0, [])
            next(iter(by_layer.values())).extend(plain)
        watched_numbers = {sample.number for sample in watched}
        estimates: dict[int, Tensor] = {}
        for layer, group in by_layer.items():
            estimates.update(self._call(group, layer, watched_numbers))
        return estimates

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        """Decode latents, (samples, channels, height, width), to images in [0, 1]; not finite ones stay so."""
        return (self.pipeline.decode(latents) / 2 + 0.5).clamp(0, 1)

    def _call(self, samples: list[Sample], internal_layer: int, watched: set[int]) -> dict[int, Tensor]:
        places = torch.tensor([sample.slot for sample in samples], device=self.device)
        latents = self.latents[places]  # (samples, channels, height, width)
        groups = _Groups(samples, self.device)
        noisy = groups.model_inputs(latents).to(self.dtype)
        prediction = self._predict(samples, noisy, internal_layer).to(latents.dtype)
        stepped, self.previous[places] = groups.step(prediction, latents, self.previous[places])
        self.latents[places] = stepped
        finite = stepped.isfinite().flatten(1).all(1).tolist()
        estimates = {}
        for k, sample in enumerate(samples):
            if sample.number in watched:
                alpha = torch.tensor([sample.prepared.alphas_cumprod[sample.step]])
                kind, rows = sample.prepared.prediction_type, slice(k, k + 1)
                estimates[sample.number] = denoised(kind, noisy[rows].to(latents.dtype), prediction[rows], alpha)[0]
            sample.step += 1
            sample.finite = finite[k]
        return estimates

    def _predict(self, samples: list[Sample], noisy: Tensor, internal_layer: int) -> Tensor:
        """Predict the next step of every sample, guided where its plan says so: (samples, channels, height, width)."""
        wanted: list[Row] = [(sample.number, False) for sample in samples]
        guided = [k for k, sample in enumerate(samples) if sample.guided]
        wanted += [(samples[k].number, True) for k in guided]
        self.rows.drop((sample.number, True) for sample in samples if not sample.guided)  # guidance has ended
        order, session = self.rows.take(wanted)
        place = {sample.number: k for k, sample in enumerate(samples)}
        sources = [place[number] for number, _ in order]  # the sample of each row
        call = _Call([samples[k] for k in sources], [unconditional for _, unconditional in order])
        inputs = Inputs(noisy[torch.tensor(sources, device=noisy.device)], call.times(noisy.device), call.conditions())
        policy, steps = call.policy()
        internal = InternalWeights(internal_layer, call.internal_weights()) if internal_layer else None
        output = session.predict(inputs, steps, policy, call.ties() if guided else None, internal=internal)
        self.rows.put(order, session)
        _record(call, output)
        row_of = {row: k for k, row in enumerate(order)}
        conditional = output.sample[torch.tensor([row_of[row] for row in wanted[: len(samples)]], device=noisy.device)]
        if not guided:
            return conditional
        unconditional = output.sample[
            torch.tensor([row_of[row] for row in wanted[len(samples) :]], device=noisy.device)
        ]
        return _combined(samples, guided, conditional, unconditional)


@dataclass(frozen=True)
class _Call:
    """The rows of one call of the model: conditional and unconditional ones.

    Args:
        samples: The sample of each row.
        unconditional: Whether each is the unconditional row of its pair.
    """

    samples: list[Sample]
    unconditional: list[bool]

    def times(self, device: torch.device) -> Tensor:
        return torch.tensor([sample.prepared.times[sample.step] for sample in self.samples], device=device)

    def conditions(self) -> dict[str, Tensor]:
        rows = [
            sample.null_conditions if without else sample.conditions
            for sample, without in zip(self.samples, self.unconditional, strict=True)
        ]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def policy(self) -> tuple[ExitPolicy, Tensor]:
        """Return the policy of all rows, and the steps by which it knows them, (rows,) int64."""
        policies = {sample.prepared.number: sample.prepared.plan.policy for sample in self.samples}
        if all(isinstance(policy, NeverExit) for policy in policies.values()):  # all that baselines take
            return NeverExit(), torch.tensor([sample.step for sample in self.samples])
        steps = torch.tensor([sample.prepared.number * STRIDE + sample.step for sample in self.samples])
        return MixedPolicy(policies), steps

    def ties(self) -> Tensor:
        """Number the groups of rows that exit together: (rows,) int64."""
        group: dict[Any, int] = {}
        tied = (
            (sample.number, not sample.prepared.plan.guidance.tied and without)
            for sample, without in zip(self.samples, self.unconditional, strict=True)
        )
        return torch.tensor([group.setdefault(key, len(group)) for key in tied])

    def internal_weights(self) -> Tensor:
        weights = [
            sample.prepared.internal_weights(torch.tensor([sample.step])) if sample.internal_layer else torch.zeros(1)
            for sample in self.samples
        ]
        return torch.cat(weights)


class _Groups:
    """The samples of one call by solver: their coefficients, and the positions of each solver's samples.

    Args:
        samples: The samples, none of them done.
        device: Where their latents are.
    """

    def __init__(self, samples: list[Sample], device: torch.device) -> None:
        self.samples = samples
        by_solver: dict[Solver, list[int]] = defaultdict(list)
        self.own = [k for k, sample in enumerate(samples) if sample.scheduler is not None]
        for k, sample in enumerate(samples):
            if sample.prepared.solver is not None:
                by_solver[sample.prepared.solver].append(k)
        self.groups = [
            (solver, torch.tensor(places, device=device), solver.at(self._coefficients(places), device))
            for solver, places in by_solver.items()
        ]

    def model_inputs(self, latents: Tensor) -> Tensor:
        """Return what the model takes for latents, (samples, channels, height, width) both."""
        inputs = latents.clone()
        for solver, places, c in self.groups:
            inputs[places] = solver.model_input(latents[places], c)
        for k, scheduler, time in self._schedulers():
            inputs[k] = scheduler.scale_model_input(latents[k : k + 1], time)[0]
        return inputs

    def step(self, prediction: Tensor, latents: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents at the next times, and what each solver remembers."""
        stepped, remembered = torch.empty_like(latents), previous.clone()
        for solver, places, c in self.groups:
            stepped[places], remembered[places] = solver.step(prediction[places], latents[places], previous[places], c)
        for k, scheduler, time in self._schedulers():
            rows, noise = slice(k, k + 1), noise_arguments(scheduler, self.samples[k].generator)
            stepped[rows] = scheduler.step(prediction[rows], time, latents[rows], **noise).prev_sample
        return stepped, remembered

    def _coefficients(self, places: list[int]) -> list[tuple[float, ...]]:
        return [self.samples[k].prepared.coefficients[self.samples[k].step] for k in places]

    def _schedulers(self) -> list[tuple[int, Any, Tensor]]:
        """List the samples that have schedulers of their own, with the time of their step."""
        schedulers: list[tuple[int, Any]] = [(k, self.samples[k].scheduler) for k in self.own]
        return [(k, scheduler, scheduler.timesteps[self.samples[k].step]) for k, scheduler in schedulers]


def _combined(samples: list[Sample], guided: list[int], conditional: Tensor, unconditional: Tensor) -> Tensor:
    """Guide the predictions of some samples, each by the scale of its plan."""
    combined, by_scale = conditional.clone(), defaultdict[float, list[int]](list)
    for pair, place in enumerate(guided):
        by_scale[samples[place].prepared.plan.guidance.scale].append(pair)
    for pairs in by_scale.values():
        guidance = samples[guided[pairs[0]]].prepared.plan.guidance
        chosen = torch.tensor(pairs, device=conditional.device)
        places = torch.tensor([guided[pair] for pair in pairs], device=conditional.device)
        combined[places] = guidance.combine(conditional[places], unconditional[chosen])
    return combined


def _record(call: _Call, output: Prediction) -> None:
    """Add the exits and FLOPs of a call to its samples."""
    deepest: dict[int, int] = {}
    exits = zip(call.samples, output.exit_layers.tolist(), output.flops.tolist(), strict=True)
    for sample, layers, flops in exits:
        sample.layers, sample.flops, sample.predictions = (
            sample.layers + layers,
            sample.flops + flops,
            sample.predictions + 1,
        )
        deepest[sample.number] = max(layers, deepest.get(sample.number, 0))
    for sample in dict.fromkeys(call.samples):
        sample.exit_layers.append(deepest[sample.number])
