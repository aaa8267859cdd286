"""Solvers over samples at different steps, against diffusers' own schedulers, one for each sample."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from adadiff.sampling.schedulers import scheduler_like, started
from adadiff.serving.solvers import Solver, denoised, solver_of
from adadiff.training.config import DiffusionConfig

STEPS = (1, 2, 3, 5, 14, 15, 20, 50)
NAMES = ("ddim", "dpm-solver++", "euler")
SHAPE = (3, 5, 5)


def predicted(model_input: Tensor, time: Tensor) -> Tensor:
    """A stand-in for the model: it depends on the sample and on the time, elementwise."""
    return torch.sin(3 * model_input) + 0.001 * time * model_input.cos()


def by_diffusers(scheduler: SchedulerMixin, steps: int, noise: Tensor) -> list[Tensor]:
    """The sample before every step and after the last, as the pipeline samples: (1, *SHAPE) each."""
    scheduler = started(copy.deepcopy(scheduler), steps)
    samples = [noise * scheduler.init_noise_sigma]
    for time in scheduler.timesteps:
        prediction = predicted(scheduler.scale_model_input(samples[-1], time), time)
        samples.append(scheduler.step(prediction, time, samples[-1]).prev_sample)
    return samples


class Run:
    """One sample on its way: the coefficients and times of its own number of steps."""

    def __init__(self, solver: Solver, scheduler: SchedulerMixin, steps: int, noise: Tensor) -> None:
        own = started(copy.deepcopy(scheduler), steps)
        self.rows, self.times = solver.coefficients(own), own.timesteps.float()
        self.sample, self.previous, self.step = noise * own.init_noise_sigma, torch.zeros_like(noise), 0
        self.reached = [self.sample]

    @property
    def done(self) -> bool:
        return self.step == len(self.times)


def together(solver: Solver, runs: list[Run]) -> None:
    """Take a step of several samples in one call."""
    c = solver.at([run.rows[run.step] for run in runs], torch.device("cpu"))
    sample, previous = (torch.cat([getattr(run, name) for run in runs]) for name in ("sample", "previous"))
    times = torch.stack([run.times[run.step] for run in runs]).view(-1, 1, 1, 1)
    prediction = predicted(solver.model_input(sample, c), times)
    for run, new, kept in zip(runs, *solver.step(prediction, sample, previous, c), strict=True):
        run.sample, run.previous, run.step = new[None], kept[None], run.step + 1
        run.reached.append(run.sample)


def all_equal(solver: Solver | None, scheduler: SchedulerMixin, steps: tuple[int, ...] = STEPS) -> None:
    assert solver is not None
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(1, *SHAPE, generator=generator) for _ in steps]
    runs = [Run(solver, scheduler, count, noise) for count, noise in zip(steps, noises, strict=True)]
    tick = 0
    while running := [run for run in runs if not run.done]:
        # they start one after the other, so that every call holds samples at different steps
        together(solver, running[: tick + 1])
        tick += 1
    for count, noise, run in zip(steps, noises, runs, strict=True):
        expected = by_diffusers(scheduler, count, noise)
        assert len(expected) == len(run.reached)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(run.reached, expected, strict=True)), count


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", NAMES)
def test_equal_bit_for_bit(name: str, spacing: str, prediction_type: str) -> None:
    trained: Any = DiffusionConfig(beta_schedule="squaredcos_cap_v2").build()
    trained.register_to_config(prediction_type=prediction_type)
    scheduler = scheduler_like(name, trained, spacing)
    all_equal(solver_of(scheduler), scheduler)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "vp_sde"])
def test_equal_for_every_forward_process(name: str, schedule: Any) -> None:
    scheduler = scheduler_like(name, DiffusionConfig(beta_schedule=schedule).build(in_latents=True))
    all_equal(solver_of(scheduler), scheduler)


@pytest.mark.parametrize("name", NAMES)
def test_equal_with_as_many_steps_as_time_steps(name: str) -> None:
    scheduler = scheduler_like(name, DiffusionConfig(num_train_timesteps=40, beta_end=0.3).build())
    all_equal(solver_of(scheduler), scheduler, (40, 39, 7))


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample_range=0.5),
        DDIMScheduler(set_alpha_to_one=False, steps_offset=1, clip_sample=False),
        DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"),
        DPMSolverMultistepScheduler(final_sigmas_type="sigma_min", lower_order_final=False),
        DPMSolverMultistepScheduler(final_sigmas_type="sigma_min", euler_at_final=True),
        DPMSolverMultistepScheduler(use_karras_sigmas=True),
        EulerDiscreteScheduler(use_karras_sigmas=True),
        EulerDiscreteScheduler(final_sigmas_type="sigma_min"),
    ],
)
def test_equal_with_other_settings(scheduler: SchedulerMixin) -> None:
    all_equal(solver_of(scheduler), scheduler, (2, 6, 17))


@pytest.mark.parametrize(
    "scheduler",
    [
        scheduler_like("unipc", DiffusionConfig().build()),
        scheduler_like("ddpm", DiffusionConfig().build()),
        DDIMScheduler(thresholding=True),
        DPMSolverMultistepScheduler(solver_order=3),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        DPMSolverMultistepScheduler(solver_type="heun"),
        DPMSolverMultistepScheduler(thresholding=True),
        DPMSolverMultistepScheduler(variance_type="learned"),
    ],
)
def test_other_schedulers_have_no_solver(scheduler: SchedulerMixin) -> None:
    assert solver_of(scheduler) is None


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_denoised_estimate_is_the_image_for_a_perfect_prediction(prediction_type: str) -> None:
    alphas = torch.tensor([0.9, 0.3, 0.01])
    image, noise = torch.rand(3, *SHAPE), torch.randn(3, *SHAPE)
    signal, spread = (part.view(-1, 1, 1, 1) for part in (alphas.sqrt(), (1 - alphas).sqrt()))
    targets = {"epsilon": noise, "v_prediction": signal * noise - spread * image, "sample": image}
    estimate = denoised(prediction_type, signal * image + spread * noise, targets[prediction_type], alphas)
    torch.testing.assert_close(estimate, image, atol=1e-4, rtol=1e-4)
