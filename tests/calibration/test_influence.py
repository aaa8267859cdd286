"""The influence of a step against the solvers' formulas, and against samplings with one prediction changed."""

import inspect

import pytest
import torch

from adadiff import FixedExit
from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.influence import measured_influence, step_influence
from adadiff.calibration.record import record_exits
from adadiff.sampling import UNCONDITIONAL
from adadiff.sampling.schedulers import SCHEDULERS, scheduler_like
from adadiff.training.config import DiffusionConfig
from adadiff.utils.seeding import generator_for
from tests.conftest import predict


def ddim_coefficients(scheduler, steps):
    """x_{k+1} = a x_k + b eps: the derivative of the last by the k-th eps is b_k times all later a (DDIM, eq. 12)."""
    scheduler.set_timesteps(steps)
    abar = scheduler.alphas_cumprod.double()
    times = scheduler.timesteps.tolist()
    after = [*times[1:], times[-1] - 1000 // steps]
    ends = [abar[t] if t >= 0 else scheduler.final_alpha_cumprod.double() for t in after]
    pairs = [(abar[t], end) for t, end in zip(times, ends, strict=True)]
    a = [(s / t).sqrt() for t, s in pairs]
    b = [(1 - s).sqrt() - (s / t).sqrt() * (1 - t).sqrt() for t, s in pairs]
    return torch.stack([b[k] * torch.stack([torch.ones(()).double(), *a[k + 1 :]]).prod() for k in range(steps)])


def test_of_ddim_is_the_closed_form():
    scheduler = scheduler_like("ddim", DiffusionConfig().build())
    wanted = ddim_coefficients(scheduler, 10).square()
    torch.testing.assert_close(step_influence(scheduler, 10), wanted, rtol=1e-3, atol=0, check_dtype=False)


@pytest.mark.parametrize("name", list(SCHEDULERS))
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_small_change_of_one_prediction_moves_the_final_sample_so_far(name, prediction_type):
    """Among predictions that depend on nothing."""
    trained = DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type).build(in_latents=True)
    scheduler = scheduler_like(name, trained)
    influence = step_influence(scheduler, 6)
    predictions = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def final(changed):
        twin = scheduler_like(name, trained)
        twin.set_timesteps(6)
        sample = torch.ones(1, 1, 2, 2, dtype=torch.float64)
        takes_noise = "generator" in inspect.signature(twin.step).parameters
        noise = {"generator": torch.Generator().manual_seed(2)} if takes_noise else {}
        for step, timestep in enumerate(twin.timesteps):
            twin.scale_model_input(sample, timestep)
            prediction = torch.full_like(sample, predictions[step] + (step == changed))
            sample = twin.step(prediction, timestep, sample, **noise).prev_sample
        return sample

    for step in range(6):
        moved = (final(step) - final(None)).square().mean()
        torch.testing.assert_close(influence[step], moved.double(), rtol=1e-2, atol=1e-9)


def test_the_scheduler_is_left_as_it_was():
    scheduler = scheduler_like("dpm-solver++", DiffusionConfig().build())
    scheduler.set_timesteps(7)
    before = scheduler.timesteps.clone()
    step_influence(scheduler, 5)
    assert torch.equal(scheduler.timesteps, before)


@torch.no_grad()
def test_measured_it_is_how_far_the_image_moves_when_one_step_leaves_early(pipeline):
    """Sampled by hand; steps that were not probed lie between those that were."""
    pipeline.scheduler = scheduler_like("ddim", DiffusionConfig(beta_schedule="squaredcos_cap_v2").build())
    sampling = AdaptiveSampling(pipeline, 5, UNCONDITIONAL, seed=1)
    record = record_exits(sampling, 4)
    influence = measured_influence(sampling, record, most_steps=3)
    model, scheduler = pipeline.transformer, pipeline.scheduler
    start = torch.cat([torch.randn(1, 1, 8, 8, generator=generator_for(1, k)) for k in range(4)])

    def final(early):
        scheduler.set_timesteps(5)
        sample = start
        for step, timestep in enumerate(scheduler.timesteps):
            prediction = predict(model, sample, timestep, policy=FixedExit(3) if step == early else None).sample
            sample = scheduler.step(prediction, timestep, sample).prev_sample
        return sample.clamp(-1, 1)

    coefficients = step_influence(scheduler, 5)
    amplification = influence / coefficients
    for step in (0, 2, 4):
        moved = (final(step) - final(None)).square().mean() / record.errors[step, 2].mean()
        assert influence[step].item() == pytest.approx(moved.item(), rel=1e-2)
    for step in (1, 3):
        between = (amplification[step - 1] + amplification[step + 1]) / 2
        assert amplification[step].item() == pytest.approx(between.item())
