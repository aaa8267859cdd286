"""Solvers over samples that are each at a step of their own: DDIM, DPM-Solver++ (2M) and Euler, as in diffusers.

A diffusers scheduler is at one step, so that samples at different steps would need one each. Here the numbers that a
step multiplies with are read off a diffusers scheduler once for each number of steps (`coefficients`), and a call
takes those of every sample's own step. The operations on images are diffusers' own, in its order, so that the results
are equal bit for bit.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

Row = tuple[float, ...]


@dataclass(frozen=True)
class Solver(ABC):
    """Takes one step of many samples at once, each by the coefficients of its own step.

    Args:
        prediction_type: What the model predicts: epsilon, v_prediction or sample.
    """

    prediction_type: str
    names: ClassVar[tuple[str, ...]]
    """Names of the coefficients."""

    @classmethod
    @abstractmethod
    def of(cls, config: Any) -> Solver | None:
        """Return the solver of a scheduler's configuration, or None if it asks for something else."""

    @abstractmethod
    def coefficients(self, scheduler: SchedulerMixin) -> list[Row]:
        """Read off the coefficients of every step: one row a step, float32 values in the order of `names`.

        Args:
            scheduler: A diffusers scheduler whose time steps are set.
        """

    def model_input(self, sample: Tensor, c: dict[str, Tensor]) -> Tensor:
        """Return the noisy image x_t that the model takes.

        Args:
            sample: The samples, (samples, channels, height, width) float32.
            c: Coefficients by name, (samples, 1, 1, 1) float32 each.
        """
        return sample

    @abstractmethod
    def step(self, prediction: Tensor, sample: Tensor, previous: Tensor, c: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Take a step.

        Args:
            prediction: The model's predictions, (samples, channels, height, width) float32.
            sample: The samples, of the same shape.
            previous: What the step before returned to be remembered, of the same shape; 0 at the first.
            c: Coefficients by name, (samples, 1, 1, 1) float32 each.

        Returns:
            The samples at the next time, and what the next step needs as `previous`.
        """

    def at(self, rows: Sequence[Row], device: torch.device) -> dict[str, Tensor]:
        """Arrange rows of coefficients, one for each sample, as `step` takes them."""
        columns = torch.tensor(rows, dtype=torch.float32, device=device).unbind(1)
        return {name: column.view(-1, 1, 1, 1) for name, column in zip(self.names, columns, strict=True)}


@dataclass(frozen=True)
class DDIMSolver(Solver):
    """DDIM without added noise, as diffusers' DDIMScheduler (Song et al. 2021, arXiv 2010.02502, formula 12).

    Args:
        clip: Predicted images are clipped to [-clip, clip]; None for no clipping.
    """

    clip: float | None = None
    names = ("signal", "noise", "next_signal", "next_noise")

    @classmethod
    def of(cls, config: Any) -> Solver | None:
        if config.thresholding:
            return None
        return cls(config.prediction_type, config.clip_sample_range if config.clip_sample else None)

    def coefficients(self, scheduler: Any) -> list[Row]:
        stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        rows = []
        for time in scheduler.timesteps.cpu():
            now, later = scheduler.alphas_cumprod[time].cpu(), time - stride
            after = (scheduler.alphas_cumprod[later] if later >= 0 else scheduler.final_alpha_cumprod).cpu()
            rows.append(_floats(now**0.5, (1 - now) ** 0.5, after**0.5, (1 - after) ** 0.5))
        return rows

    def step(self, prediction: Tensor, sample: Tensor, previous: Tensor, c: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.prediction_type == "epsilon":
            image, noise = _divide(sample - c["noise"] * prediction, c["signal"]), prediction
        elif self.prediction_type == "sample":
            image, noise = prediction, _divide(sample - c["signal"] * prediction, c["noise"])
        else:
            image = c["signal"] * sample - c["noise"] * prediction
            noise = c["signal"] * prediction + c["noise"] * sample
        if self.clip is not None:
            image = image.clamp(-self.clip, self.clip)
        return c["next_signal"] * image + c["next_noise"] * noise, previous


@dataclass(frozen=True)
class DPMSolver(Solver):
    """DPM-Solver++ of second order, multistep, midpoint (Lu et al. 2022, arXiv 2211.01095).

    It computes what diffusers' DPMSolverMultistepScheduler does with its default settings.
    """

    names = ("signal", "noise", "keep", "move", "half_move", "slope")

    @classmethod
    def of(cls, config: Any) -> Solver | None:
        defaults = config.algorithm_type == "dpmsolver++" and config.solver_order == 2
        learned = config.variance_type in ("learned", "learned_range")
        fits = defaults and config.solver_type == "midpoint" and not config.thresholding and not learned
        return cls(config.prediction_type) if fits else None

    def coefficients(self, scheduler: Any) -> list[Row]:
        config, steps = scheduler.config, len(scheduler.timesteps)
        short = config.lower_order_final and steps < 15
        last_is_first_order = config.euler_at_final or short or config.final_sigmas_type == "zero"
        signals, noises = zip(*(_signal_and_noise(sigma) for sigma in scheduler.sigmas.cpu()), strict=True)
        log_ratios = [torch.log(signal) - torch.log(noise) for signal, noise in zip(signals, noises, strict=True)]
        rows = []
        for step in range(steps):
            gap = log_ratios[step + 1] - log_ratios[step]
            move = signals[step + 1] * (torch.exp(-gap) - 1.0)
            half_move = slope = torch.tensor(0.0)
            if step > 0 and not (step == steps - 1 and last_is_first_order):
                half_move, slope = 0.5 * move, 1.0 / ((log_ratios[step] - log_ratios[step - 1]) / gap)
            keep = noises[step + 1] / noises[step]
            rows.append(_floats(signals[step], noises[step], keep, move, half_move, slope))
        return rows

    def step(self, prediction: Tensor, sample: Tensor, previous: Tensor, c: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.prediction_type == "epsilon":
            image = _divide(sample - c["noise"] * prediction, c["signal"])
        elif self.prediction_type == "sample":
            image = prediction
        else:
            image = c["signal"] * sample - c["noise"] * prediction
        change = c["slope"] * (image - previous)
        return c["keep"] * sample - c["move"] * image - c["half_move"] * change, image


@dataclass(frozen=True)
class EulerSolver(Solver):
    """Euler's method without added noise, as diffusers' EulerDiscreteScheduler (Karras et al., arXiv 2206.00364)."""

    names = ("scale", "sigma", "output_weight", "skip_divisor", "change")

    @classmethod
    def of(cls, config: Any) -> Solver | None:
        return cls(config.prediction_type)

    def coefficients(self, scheduler: Any) -> list[Row]:
        sigmas, rows = scheduler.sigmas.cpu(), []
        for sigma, later in itertools.pairwise(sigmas):
            variance = sigma**2 + 1
            rows.append(_floats(variance**0.5, sigma, -sigma / variance**0.5, variance, later - sigma))
        return rows

    def model_input(self, sample: Tensor, c: dict[str, Tensor]) -> Tensor:
        return _divide(sample, c["scale"])

    def step(self, prediction: Tensor, sample: Tensor, previous: Tensor, c: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.prediction_type == "epsilon":
            image = sample - c["sigma"] * prediction
        elif self.prediction_type == "sample":
            image = prediction
        else:
            image = prediction * c["output_weight"] + _divide(sample, c["skip_divisor"])
        derivative = _divide(sample - image, c["sigma"])
        return sample + derivative * c["change"], previous


SOLVERS: dict[type[SchedulerMixin], type[Solver]] = {
    DDIMScheduler: DDIMSolver,
    DPMSolverMultistepScheduler: DPMSolver,
    EulerDiscreteScheduler: EulerSolver,
}


def solver_of(scheduler: SchedulerMixin) -> Solver | None:
    """Return the solver that computes what a diffusers scheduler does, or None if there is none.

    Examples:
        >>> from diffusers import DDIMScheduler, UniPCMultistepScheduler
        >>> solver_of(DDIMScheduler(clip_sample=False))
        DDIMSolver(prediction_type='epsilon', clip=None)
        >>> solver_of(UniPCMultistepScheduler()) is None
        True
    """
    kind = SOLVERS.get(type(scheduler))
    return None if kind is None else kind.of(scheduler.config)


def denoised(prediction_type: str, noisy: Tensor, prediction: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Estimate the images that samples are going to be.

    Args:
        prediction_type: What the model predicts: epsilon, v_prediction or sample.
        noisy: What the model was given, x_t, (samples, channels, height, width).
        prediction: What it predicted, of the same shape.
        alphas_cumprod: abar_t of each sample, (samples,).
    """
    alphas = alphas_cumprod.to(noisy).view(-1, 1, 1, 1)
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        return alphas.sqrt() * noisy - (1 - alphas).sqrt() * prediction
    return (noisy - (1 - alphas).sqrt() * prediction) / alphas.sqrt()


def _signal_and_noise(sigma: Tensor) -> tuple[Tensor, Tensor]:
    signal = 1 / ((sigma**2 + 1) ** 0.5)
    return signal, sigma * signal


def _divide(images: Tensor, divisor: Tensor) -> Tensor:
    """Divide as torch divides by a number on the CPU: on other devices it multiplies with the reciprocal."""
    return images / divisor if images.device.type == "cpu" else images * (1 / divisor)


def _floats(*values: Tensor) -> Row:
    return tuple(float(value) for value in values)
