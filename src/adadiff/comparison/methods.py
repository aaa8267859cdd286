"""The methods of a comparison, and how each is set up for a given fraction of the full model's compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from adadiff.baselines import DuoDiff, FirstBlockCaching, SkipCaching
from adadiff.calibration.kinds import KINDS, Kind, SingleThreshold
from adadiff.comparison.bench import CALIBRATION_IMAGES, Bench, Setup
from adadiff.comparison.networks import ADADIFF, BERXIT, CALM, FULL, RELEASED, Recipe
from adadiff.policies import (
    BatchMeanExit,
    CorrectedScheduleExit,
    ExitPolicy,
    FixedExit,
    NeverExit,
    ScheduleExit,
    ThresholdExit,
)
from adadiff.sampling import AdaptivePipeline

HALVINGS = 9  # bisection steps towards a threshold


@dataclass(frozen=True)
class Method(ABC):
    """A method that reduces the compute of sampling.

    Args:
        name: Name in configurations and folders.
        title: Name in tables and plots.
        source: Publication or software that it comes from.
    """

    name: str
    title: str
    source: str

    @abstractmethod
    def setup(self, bench: Bench, compute: float) -> Setup | None:
        """Return the setup with about this fraction of the full compute, or None if the method has none near it."""


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of methods


@dataclass(frozen=True)
class Thresholded(Method):
    """A method with one threshold, found by bisection on a pilot batch.

    Args:
        recipe: The recipe of its network.
        run: Maps the network's pipeline and a threshold to the pipeline and policy to sample with. A larger threshold
            means less compute.
        most: The largest useful threshold; the smallest is 0.
    """

    recipe: Recipe
    run: Callable[[AdaptivePipeline, float], tuple[AdaptivePipeline, ExitPolicy]]
    most: float = 1.0

    def setup(self, bench: Bench, compute: float) -> Setup:
        threshold, found = self.search(bench, compute)
        pipeline, policy = self.run(bench.networks.pipeline(self.recipe), threshold)
        return Setup(pipeline, policy, bench.config.steps, f"threshold {threshold:.4g}", found)

    def search(self, bench: Bench, compute: float) -> tuple[float, float]:
        """Find the threshold whose compute is closest to the requested one; return it with its compute."""
        low, high = 0.0, self.most
        tried = []
        for _ in range(HALVINGS):
            threshold = (low + high) / 2
            found = bench.pilot(*self.run(bench.networks.pipeline(self.recipe), threshold))
            tried.append((threshold, found))
            low, high = (threshold, high) if found > compute else (low, threshold)
        return min(tried, key=lambda pair: abs(pair[1] - compute))


@dataclass(frozen=True)
class Enumerated(Method):
    """A method with families of discrete settings.

    From each family the setting with the closest compute is taken; among these, the one with the least pilot error.

    Args:
        families: Functions that list the setups of each family.
        tolerance: Largest accepted difference from the requested compute.
    """

    families: tuple[Callable[[Bench], Sequence[Setup]], ...]
    tolerance: float = 0.08

    def setup(self, bench: Bench, compute: float) -> Setup | None:
        def distance(setup: Setup) -> float:
            return abs(setup.compute - compute)

        nearest = [min(setups, key=distance) for family in self.families if (setups := family(bench))]
        near = [setup for setup in nearest if distance(setup) <= self.tolerance]
        return min(near, key=bench.pilot_error) if len(near) > 1 else next(iter(near), None)


@dataclass(frozen=True)
class Calibrated(Method):
    """A method with one of our kinds of policies, calibrated to the requested compute.

    Args:
        kind: The kind of policy.
    """

    kind: Kind

    def setup(self, bench: Bench, compute: float) -> Setup:
        point = bench.search.meeting(self.kind, compute)
        setting = f"calibrated on {CALIBRATION_IMAGES} samples"
        return Setup(bench.networks.pipeline(ADADIFF), point.policy, bench.config.steps, setting, point.compute)


# ---------------------------------------------------------------------------------------------------------------------
# Settings of the methods


def fewer_steps(bench: Bench) -> list[Setup]:
    pipeline, most = bench.networks.pipeline(FULL), bench.config.steps
    return [Setup(pipeline, NeverExit(), steps, f"{steps} steps", steps / most) for steps in range(1, most)]


def smaller_models(bench: Bench) -> list[Setup]:
    recipes = {f"{depth} layers": Recipe(depth=depth) for depth in bench.config.smaller_depths}
    return _other_networks(bench, recipes)


def pruned_models(bench: Bench) -> list[Setup]:
    recipes = {f"{1 - fraction:.0%} of the FLOPs pruned": Recipe(compute=fraction) for fraction in bench.config.pruned}
    return _other_networks(bench, recipes)


def _other_networks(bench: Bench, recipes: dict[str, Recipe]) -> list[Setup]:
    setups = []
    for setting, recipe in recipes.items():
        pipeline = bench.networks.pipeline(recipe)
        compute = bench.fraction(pipeline.transformer.part_flops.full)
        setups.append(Setup(pipeline, NeverExit(), bench.config.steps, setting, compute))
    return setups


def fixed_exits(bench: Bench) -> list[Setup]:
    pipeline = bench.networks.pipeline(ADADIFF)
    layers = range(1, pipeline.transformer.depth)
    return [
        Setup(pipeline, FixedExit(layer), bench.config.steps, f"layer {layer}", _exit_compute(bench, pipeline, [layer]))
        for layer in layers
    ]


def growing_depths(bench: Bench) -> list[Setup]:
    """List schedules whose depth grows linearly from the first step to the last, for a range of mean depths."""
    pipeline, steps = bench.networks.pipeline(ADADIFF), bench.config.steps
    depth = pipeline.transformer.depth
    setups = []
    for mean in np.linspace(1, depth, 4 * depth, endpoint=False):
        last = min(depth, 2 * mean - 1)
        layers = tuple(int(layer) for layer in np.linspace(2 * mean - last, last, steps).round())
        compute = _exit_compute(bench, pipeline, layers)
        setups.append(Setup(pipeline, ScheduleExit(layers), steps, f"layer {layers[0]} to {layers[-1]}", compute))
    return setups


def _exit_compute(bench: Bench, pipeline: AdaptivePipeline, layers: Sequence[int]) -> float:
    model = pipeline.transformer
    no_estimator = torch.zeros(model.depth, dtype=torch.bool)
    flops = model.part_flops.until_exit(torch.tensor(layers), no_estimator)
    return bench.fraction(flops.double().mean().item())


def duodiff_switches(bench: Bench) -> list[Setup]:
    pipeline, steps = bench.networks.pipeline(FULL), bench.config.steps
    shallow = bench.networks.pipeline(Recipe(depth=bench.config.shallow_depth)).transformer
    share = bench.fraction(shallow.part_flops.full)
    return [
        Setup(
            pipeline.with_denoiser(DuoDiff(pipeline.transformer, shallow, switch)),
            NeverExit(),
            steps,
            f"{shallow.depth} layers before step {switch}",
            1 - (1 - share) * switch / steps,
        )
        for switch in range(1, steps + 1)
    ]


def extrapolations(order: int, bench: Bench) -> list[Setup]:
    """List schedules that run all layers every k-th step, and extrapolate the full predictions in between."""
    pipeline, steps = bench.networks.pipeline(FULL), bench.config.steps
    depth, weights = pipeline.transformer.depth, (1.0, float(order > 0), float(order > 1))
    setups = []
    for interval in range(2, 11):
        layers = tuple(0 if step % interval else depth for step in range(steps))
        compute = _exit_compute(bench, pipeline, layers)
        setting = f"full every {interval} steps, order {order}"
        setups.append(Setup(pipeline, CorrectedScheduleExit(layers, (weights,) * steps), steps, setting, compute))
    return setups


def skip_caches(shallow: int, bench: Bench) -> list[Setup]:
    pipeline, steps = bench.networks.pipeline(FULL), bench.config.steps
    setups: list[Setup] = []
    if shallow > pipeline.transformer.depth // 2:
        return setups
    for interval in range(2, 11):
        baseline = SkipCaching(pipeline.transformer, interval, shallow)
        full_steps = -(-steps // interval)
        flops = (full_steps * baseline.flops(whole=True) + (steps - full_steps) * baseline.flops(whole=False)) / steps
        setting = f"full every {interval} steps, {shallow} outer layers on either side otherwise"
        setups.append(Setup(pipeline.with_denoiser(baseline), NeverExit(), steps, setting, bench.fraction(flops)))
    return setups


METHODS: tuple[Method, ...] = (
    Enumerated("fewer-steps", "full model, fewer steps", "the simplest baseline", (fewer_steps,)),
    Enumerated("smaller", "smaller model", "the backbone with fewer layers, fine-tuned", (smaller_models,)),
    Thresholded(
        "adadiff",
        "AdaDiff, one threshold, per sample",
        "Tang et al., ECCV 2024",
        ADADIFF,
        lambda pipeline, tau: (pipeline, ThresholdExit(tau)),
    ),
    *(
        Calibrated(f"adadiff-{kind.name.replace(' ', '-')}", f"ours, {kind.name}", "adadiff calibrate", kind)
        for kind in KINDS
        if not isinstance(kind, SingleThreshold)
    ),
    Thresholded(
        "released",
        "AdaDiff as released",
        "github.com/Tangshengku/AdaDiff: one decision for the batch, normalised weights",
        RELEASED,
        lambda pipeline, tau: (pipeline, BatchMeanExit(tau)),
    ),
    Enumerated("fixed", "fixed exit", "all samples exit after the same layer at every step", (fixed_exits,)),
    Enumerated("step-schedule", "step schedule", "ASE, Moon et al., ICML 2024: growing depth", (growing_depths,)),
    Enumerated("duodiff", "DuoDiff", "arXiv 2410.09633", (duodiff_switches,)),
    Thresholded(
        "berxit",
        "BERxiT",
        "Xin et al., EACL 2021",
        BERXIT,
        lambda pipeline, tau: (pipeline, ThresholdExit(tau)),
    ),
    Thresholded(
        "calm",
        "CALM, saturation",
        "Schuster et al., NeurIPS 2022",
        CALM,
        lambda pipeline, tau: (pipeline, ThresholdExit(tau)),
    ),
    Enumerated(
        "extrapolation",
        "extrapolation of the prediction",
        "TaylorSeer, Liu et al., ICCV 2025, of the whole network's output, orders 0 to 2",
        tuple(partial(extrapolations, order) for order in range(3)),
    ),
    Enumerated(
        "skip-caching",
        "skip caching",
        "DeepCache, Ma et al., CVPR 2024",
        (partial(skip_caches, 1), partial(skip_caches, 2)),
    ),
    Thresholded(
        "first-block-caching",
        "first-block caching",
        "ParaAttention",
        FULL,
        lambda pipeline, threshold: (
            pipeline.with_denoiser(FirstBlockCaching(pipeline.transformer, threshold)),
            NeverExit(),
        ),
        most=2.0,
    ),
    Enumerated("pruned", "structured pruning", "torch-pruning: heads and hidden units", (pruned_models,)),
)
