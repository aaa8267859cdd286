"""The ways to sample a stock pipeline with less compute that `stock_caches.py` compares: ours, fewer steps, caches.

The caches are those of diffusers. DiTTransformer2DModel and PixArtTransformer2DModel lack the mixin that enables them,
and their pipelines do not name their calls, as most caches require: both are supplied here, from outside.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import CacheMixin, hooks
from torch import Tensor

import adadiff
from adadiff.calibration.result import Calibration

ABOVE = 0.02  # how far a setting's compute may lie above the target


@dataclass(frozen=True)
class Setting:
    """A method with values for its parameters.

    Args:
        name: The parameters and their values.
        applied: Returns a context in which the pipeline samples by the method.
        arguments: Arguments of the pipeline's call that differ from the full model's.
        note: What is to be said about it.
    """

    name: str
    applied: Callable[[], AbstractContextManager[Any]] = nullcontext
    arguments: dict[str, Any] = field(default_factory=dict)
    note: str = ""


class Method(ABC):
    """A way to sample with less compute."""

    name: str

    @abstractmethod
    def settings(self, target: float, compute: Callable[[Setting], float]) -> Iterator[Setting]:
        """Yield settings for a compute target.

        Args:
            target: Fraction of the full model's compute, in (0, 1).
            compute: Measures the compute fraction of a setting, and remembers it.
        """


# ---------------------------------------------------------------------------------------------------------------------
# Ours, and fewer steps


@dataclass(frozen=True)
class Ours(Method):
    """Adaptive depth: the policy that `adadiff.calibrate` finds for the target.

    Args:
        name: Name of the method.
        pipe: The pipeline.
        steps: Number of steps of the full model.
        tried: Numbers of steps to calibrate, each for what the target leaves to it.
        calibrate: Calls `adadiff.calibrate` for a compute fraction and a number of steps.
    """

    name: str
    pipe: Any
    steps: int
    tried: tuple[int, ...]
    calibrate: Callable[[float, int], Calibration]

    def settings(self, target: float, compute: Callable[[Setting], float]) -> Iterator[Setting]:
        for steps in self.tried:
            if target * self.steps < 0.95 * steps:
                yield self._calibrated(target * self.steps / steps, steps)

    def _calibrated(self, compute: float, steps: int) -> Setting:
        found = self.calibrate(compute, steps)
        adadiff.disable(self.pipe)
        note = ""
        if found.beats_fewer_steps is False:
            errors = ", ".join(f"{point.kind} err {point.error:.2%}" for point in found.fewer_steps)
            note = f"calibrate says that early exits are not shown to save anything: {errors} on its samples"
        arguments = {"num_inference_steps": steps}
        return Setting(describe(found.policy), lambda: self._enabled(found.stored), arguments, note)

    @contextmanager
    def _enabled(self, policy: Any) -> Iterator[None]:
        adadiff.enable(self.pipe, policy)
        try:
            yield
        finally:
            adadiff.disable(self.pipe)


def describe(policy: Any) -> str:
    """Return a schedule as its layers, step by step."""
    return "layers " + " ".join(str(layer) for layer in policy.layers)


@dataclass(frozen=True)
class FewerSteps(Method):
    """All layers at fewer steps."""

    steps: int
    name = "fewer steps"

    def settings(self, target: float, compute: Callable[[Setting], float]) -> Iterator[Setting]:
        for steps in range(1, self.steps):
            if target - max(0.1, 1 / self.steps) < steps / self.steps <= target + ABOVE:
                yield Setting(f"{steps} steps", arguments={"num_inference_steps": steps})


# ---------------------------------------------------------------------------------------------------------------------
# The caches of diffusers


@contextmanager
def cached(pipe: Any, config: Any) -> Iterator[None]:
    """Enable a cache of diffusers in a pipeline whose transformer lacks `enable_cache`, and disable it at the end."""
    transformer = pipe.transformer
    plain, calls = type(transformer), ExitStack()

    def begin(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        calls.enter_context(module.cache_context("all", **position(pipe.scheduler, kwargs["timestep"])))

    def end(*_: Any) -> None:
        calls.close()

    transformer.__class__ = type(plain.__name__, (CacheMixin, plain), {})
    try:
        transformer.enable_cache(config)
        with ExitStack() as added:
            added.callback(transformer.disable_cache)
            added.callback(calls.close)
            added.callback(transformer.register_forward_pre_hook(begin, with_kwargs=True).remove)
            added.callback(transformer.register_forward_hook(end, always_call=True).remove)
            yield
    finally:
        transformer.__class__ = plain


def position(scheduler: Any, timestep: Tensor) -> dict[str, Any]:
    """Return where a call stands in the sampling, as SeaCache asks for it: sigma is the share of noise, in [0, 1]."""
    if not hasattr(hooks, "SeaCacheConfig"):
        return {}
    time = timestep.flatten()[0]
    signal = scheduler.alphas_cumprod[int(time)] ** 0.5
    noise = (1 - signal**2) ** 0.5
    return {
        "step_index": int((scheduler.timesteps == time).nonzero()[0]),
        "num_inference_steps": len(scheduler.timesteps),
        "sigma": float(noise / (signal + noise)),
    }


@dataclass(frozen=True)
class ThresholdCache(Method):
    """A cache that decides by a threshold.

    Args:
        name: Name of the cache.
        pipe: The pipeline.
        steps: Number of steps.
        variants: Configurations for a threshold, by the name of what else they set.
        enabled: Returns a context in which the pipeline samples by a configuration.
    """

    name: str
    pipe: Any
    steps: int
    variants: dict[str, Callable[[float], Any]]
    enabled: Callable[[Any, Any], AbstractContextManager[Any]] = cached
    tried: dict[str, list[float]] = field(default_factory=dict)

    def settings(self, target: float, compute: Callable[[Setting], float]) -> Iterator[Setting]:
        for variant in self.variants:
            tried = self.tried.setdefault(variant, [1e-6, 1e2])
            self._bisect(variant, tried, target, compute)
            yield from (self._setting(variant, threshold) for threshold in tried)

    def _bisect(
        self, variant: str, tried: list[float], target: float, compute: Callable[[Setting], float], times: int = 12
    ) -> None:
        """Try thresholds halfway between one that spends too much and one that does not; the compute comes in steps."""
        for _ in range(times):
            measured = {threshold: compute(self._setting(variant, threshold)) for threshold in sorted(tried)}
            low = max((each for each, spent in measured.items() if spent > target + ABOVE), default=0.0)
            high = min((each for each in measured if each > low), default=0.0)
            near = any(0 <= target + ABOVE - spent < 1 / self.steps for spent in measured.values())  # one step at most
            if near or not low or not high or high < 1.01 * low:
                return
            tried.append((low * high) ** 0.5)

    def _setting(self, variant: str, threshold: float) -> Setting:
        config = self.variants[variant]
        name = f"threshold {threshold:.4g}" + (f", {variant}" if variant else "")
        return Setting(name, lambda: self.enabled(self.pipe, config(threshold)))


def first_block_cache(pipe: Any, steps: int) -> Method:
    """Return FirstBlockCache: skips all blocks but the first while the first one's output changes little."""
    config = {"": lambda value: hooks.FirstBlockCacheConfig(threshold=value)}
    return ThresholdCache("FirstBlockCache", pipe, steps, config)


def sea_cache(pipe: Any, steps: int) -> Method:
    """Return SeaCache: skips the blocks while its input, filtered by frequency, has changed little since."""

    def frames(module: Any, args: Any, kwargs: Any) -> list[Tensor]:
        samples = args[0] if args else kwargs["hidden_states"]
        return list(samples[:, :, None])  # each (channels, 1 frame, height, width)

    def config(order: int, in_a_row: int) -> Callable[[float], Any]:
        return lambda value: hooks.SeaCacheConfig(
            threshold=value, residual_order=order, max_consecutive_cached=in_a_row, raw_vision_callback=frames
        )

    variants = {
        "order 1, at most 2 in a row": config(1, 2),  # as by default
        "order 1": config(1, 0),
        "order 0": config(0, 0),
    }
    return ThresholdCache("SeaCache", pipe, steps, variants)


def mag_cache(pipe: Any, steps: int, sample: Callable[[], Any]) -> Method:
    """Return MagCache: skips the blocks while the measured growth of what they add stays near 1.

    Args:
        pipe: The pipeline.
        steps: Number of steps.
        sample: Samples a batch, by which MagCache measures its ratios.
    """
    printed = io.StringIO()
    with (
        cached(pipe, hooks.MagCacheConfig(num_inference_steps=steps, calibrate=True)),
        contextlib.redirect_stdout(printed),
    ):
        sample()
    ratios = ast.literal_eval(next(line for line in printed.getvalue().splitlines() if line.startswith("[1.0")))

    def config(in_a_row: int, retention: float) -> Callable[[float], Any]:
        return lambda value: hooks.MagCacheConfig(
            threshold=value,
            max_skip_steps=in_a_row,
            retention_ratio=retention,
            num_inference_steps=steps,
            mag_ratios=torch.tensor(ratios),
        )

    variants = {
        "at most 3 in a row, first 20% full": config(3, 0.2),  # as by default
        "at most 8 in a row, first 10% full": config(8, 0.1),
    }
    return ThresholdCache("MagCache", pipe, steps, variants)


@dataclass(frozen=True)
class TaylorSeer(Method):
    """TaylorSeer: at regular intervals all is computed, between them the outputs of modules are extrapolated.

    Its own patterns fit no module of these transformers, so that the modules are named here: the outputs of attention
    and feed-forward networks, as in its paper, or the last projection's alone, as in its lite mode.
    """

    pipe: Any
    steps: int
    tried: dict[str, Setting] = field(default_factory=dict)
    name = "TaylorSeer"

    def settings(self, target: float, compute: Callable[[Setting], float]) -> Iterator[Setting]:
        patterns: dict[str, dict[str, list[str]]] = {
            "attention and feed-forward": {"cache_identifiers": [r"transformer_blocks\.\d+\.(attn1|attn2|ff)"]},
            "lite": {
                "cache_identifiers": [r"proj_out(_2)?"],
                "skip_predict_identifiers": [r"transformer_blocks\.\d+"],
            },
        }
        for before in sorted({2, *range(1, self.steps, max(2, self.steps // 10))}):
            within = (each for each in range(2, self.steps) if self._spends(each, before) <= target + ABOVE)
            if interval := next(within, None):
                for (kind, modules), order in itertools.product(patterns.items(), (1, 2)):
                    setting = self._setting(f"{kind}, order {order}", interval, before, order, modules)
                    self.tried[setting.name] = setting
        yield from self.tried.values()

    def _spends(self, interval: int, before: int) -> float:
        """Return the share of steps at which all is computed."""
        return sum(step < before or (step - before - 1) % interval == 0 for step in range(self.steps)) / self.steps

    def _setting(self, kind: str, interval: int, before: int, order: int, modules: dict[str, list[str]]) -> Setting:
        config = hooks.TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=before,
            max_order=order,
            taylor_factors_dtype=torch.float32,
            **modules,
        )
        return Setting(f"interval {interval}, first {before} full, {kind}", lambda: cached(self.pipe, config))


def caches(pipe: Any, steps: int, sample: Callable[[], Any]) -> list[Method]:
    """Return the caches that the installed diffusers has; `sample` samples a batch with the pipeline."""
    made = {
        "FirstBlockCacheConfig": lambda: first_block_cache(pipe, steps),
        "TaylorSeerCacheConfig": lambda: TaylorSeer(pipe, steps),
        "MagCacheConfig": lambda: mag_cache(pipe, steps, sample),
        "SeaCacheConfig": lambda: sea_cache(pipe, steps),
    }
    return [make() for config, make in made.items() if hasattr(hooks, config)]
