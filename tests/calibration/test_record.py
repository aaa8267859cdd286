"""The record against a sampling done by hand, exit by exit."""

import itertools

import pytest
import torch

from adadiff import FixedExit
from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.record import WINDOW, record_exits
from adadiff.sampling import UNCONDITIONAL, Conditions, Guidance
from adadiff.utils.seeding import generator_for
from tests.conftest import predict


@torch.no_grad()
def test_errors_and_uncertainties_are_those_of_every_exit_along_the_full_sampling(pipeline):
    record = record_exits(AdaptiveSampling(pipeline, 4, UNCONDITIONAL, seed=5), 3, batch_size=2)
    assert record.errors.shape == record.uncertainties.shape == (4, 5, 3)
    assert record.products.shape == (4, WINDOW, 6, 6, 3)
    model, scheduler = pipeline.transformer, pipeline.scheduler
    for k in range(3):
        generator = generator_for(5, k)
        scheduler.set_timesteps(4)
        sample = torch.randn(1, 1, 8, 8, generator=generator)
        differences = []
        for step, timestep in enumerate(scheduler.timesteps):
            full = predict(model, sample, timestep, return_uncertainties=True)
            exits = [predict(model, sample, timestep, policy=FixedExit(i)).sample for i in range(1, 6)]
            nothing = torch.zeros_like(full.sample)  # predicted after layer 0
            differences.append([early - full.sample for early in (nothing, *exits)])
            for before, one, other in itertools.product(range(WINDOW), range(6), range(6)):
                known = before <= step
                wanted = (differences[step][one] * differences[step - before][other]).mean().item() if known else 0
                assert record.products[step, before, one, other, k].item() == pytest.approx(wanted, rel=1e-3, abs=1e-5)
            assert record.uncertainties[step, :, k] == pytest.approx(full.uncertainties[0], abs=1e-4)
            sample = scheduler.step(full.sample, timestep, sample, generator=generator).prev_sample
        assert record.images[k : k + 1] == pytest.approx((sample / 2 + 0.5).clamp(0, 1), abs=1e-3)


@torch.no_grad()
def test_with_guidance_the_error_is_the_guided_predictions(class_pipeline):
    conditions = Conditions(("cat", "owl"), guidance=Guidance(2.5))
    record = record_exits(AdaptiveSampling(class_pipeline, 1, conditions, seed=0), 2)
    model = class_pipeline.transformer
    sample = torch.cat([torch.randn(1, 1, 8, 8, generator=generator_for(0, k)) for k in range(2)])
    class_pipeline.scheduler.set_timesteps(1)
    both, labels = torch.cat([sample, sample]), torch.tensor([0, 2, 3, 3])
    timestep = class_pipeline.scheduler.timesteps[0]
    full = predict(model, both, timestep, class_labels=labels, return_uncertainties=True)

    def guided(prediction):
        told, untold = prediction.chunk(2)
        return untold + 2.5 * (told - untold)

    for layer in range(1, 6):
        early = predict(model, both, timestep, class_labels=labels, policy=FixedExit(layer)).sample
        wanted = (guided(early) - guided(full.sample)).square().mean((1, 2, 3))
        torch.testing.assert_close(record.errors[0, layer - 1], wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(record.uncertainties[0], torch.maximum(*full.uncertainties.chunk(2)).T)
