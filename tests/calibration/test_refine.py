"""Fitting the extrapolation of a corrected schedule to its own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from adadiff import CorrectedScheduleExit, NeverExit
from adadiff.calibration import refine
from adadiff.calibration.metric import normalised_squared_error
from adadiff.calibration.refine import refined
from adadiff.calibration.sampling import Batch, Sampling
from adadiff.calibration.stock import StockSampling
from adadiff.calibration.trials import Trials
from adadiff.policies import LINE, ExitPolicy
from adadiff.stock import StockSampler
from tests.stock.tiny import build

DEPTH, BATCH = 4, 3
SCHEDULE = CorrectedScheduleExit((1, 4, 0, 4, 2, 2, 4, 1, 4))
FREE = {2: 1, 4: 2, 5: 2, 7: 3}  # early steps, and how many full ones came before


class LinearSampling(Sampling):
    """Images that are linear in the weights of the extrapolation: least squares finds the best ones at once.

    Args:
        best: The weights that give the full model's images, (steps, 3).
        noise: Part of the full model's images that no weights give.
    """

    parts: Any = None
    evaluations = len(SCHEDULE.layers)
    with_steps: Any = None
    record: Any = None
    settings: Any = None
    context: Any = None

    def __init__(self, best: np.ndarray, noise: float) -> None:
        self.best, self.noise, self.asked = torch.from_numpy(best), noise, []

    def batch(self, policy: ExitPolicy, numbers: Sequence[int]) -> Batch:
        self.asked.append(len(numbers))
        return Batch(torch.stack([self._image(policy, number) for number in numbers]).float(), 1.0, 1.0)

    def _image(self, policy: ExitPolicy, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        effects = torch.randn(3, 6, 6, *self.best.shape, generator=generator, dtype=torch.double)
        noise = self.noise * torch.randn(3, 6, 6, generator=generator, dtype=torch.double)
        weights = self.best
        if not isinstance(policy, NeverExit):
            rows = [policy.extrapolation_at(step) for step in range(self.evaluations)]
            weights, noise = torch.tensor(rows, dtype=torch.double), torch.zeros(())
        return (effects * weights).sum((-1, -2)) + noise


def best_weights(change: float) -> np.ndarray:
    """Weights of lines, changed where a refinement may."""
    best = np.array([LINE] * len(SCHEDULE.layers))
    generator = np.random.default_rng(0)
    for step, terms in FREE.items():
        best[step, :terms] += change * generator.standard_normal(terms)
    return best


def trials_of(sampling: Sampling, batch_size: int = BATCH) -> Trials:
    return Trials(sampling, batch_size, lambda full, other: (full - other).square().flatten(1).mean(1))


def test_the_best_weights_are_found_at_every_early_step_after_a_full_one():
    best = best_weights(0.3)
    sampling = LinearSampling(best, noise=0.0)
    found = refined(trials_of(sampling), SCHEDULE, DEPTH, range(16))
    assert found.layers == SCHEDULE.layers
    np.testing.assert_allclose(found.extrapolation, best, atol=2e-3)
    assert sum(sampling.asked) == 16 * (1 + 1 + sum(FREE.values()))  # full, as it is, and once for each weight


def test_it_is_least_squares_over_all_samples(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(refine, "DAMPINGS", (0.0,))
    sampling = LinearSampling(best_weights(0.3), noise=0.5)
    trials, numbers = trials_of(sampling), range(10)
    found = np.array(refined(trials, SCHEDULE, DEPTH, numbers).extrapolation)
    own = sampling.batch(SCHEDULE, numbers).images
    columns, start = [], np.array([LINE] * len(SCHEDULE.layers))
    free = [(step, term) for step, terms in FREE.items() for term in range(terms)]
    for step, term in free:
        changed = start.copy()
        changed[step, term] += 1
        policy = replace(SCHEDULE, extrapolation=tuple(map(tuple, changed.tolist())))
        columns.append((sampling.batch(policy, numbers).images - own).flatten().numpy())
    lacking = (sampling.batch(NeverExit(), numbers).images - own).flatten().numpy()
    expected = np.linalg.lstsq(np.stack(columns, 1), lacking)[0]
    np.testing.assert_allclose([found[place] - start[place] for place in free], expected, atol=1e-3)


def test_what_other_samples_do_not_gain_by_is_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(refine, "DAMPINGS", (0.0, 1.0))
    sampling = LinearSampling(best_weights(0.0), noise=3.0)
    found = refined(trials_of(sampling), SCHEDULE, DEPTH, range(4))
    np.testing.assert_array_equal(found.extrapolation, best_weights(0.0))


def test_schedules_without_weights_or_with_too_many_stay(monkeypatch: pytest.MonkeyPatch):
    sampling = LinearSampling(best_weights(0.3), noise=0.0)
    nothing_carried_on = CorrectedScheduleExit((1, 2, 1, 4, 4, 4, 4, 4, 4))
    assert refined(trials_of(sampling), nothing_carried_on, DEPTH, range(8)) is nothing_carried_on
    monkeypatch.setattr(refine, "MOST_WEIGHTS", sum(FREE.values()) - 1)
    assert refined(trials_of(sampling), SCHEDULE, DEPTH, range(8)) is SCHEDULE
    assert sampling.asked == []


def test_fresh_images_come_closer_to_the_full_models():
    pipe = build("dit").pipe
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler()
    sampler = StockSampler(pipe, [1, 2, 3], 0, {"num_inference_steps": 8, "guidance_scale": 2.0})
    sampling, fresh = StockSampling(sampler, (1, 2, 3), None, "latent"), range(100, 116)
    trials = Trials(sampling, 8, normalised_squared_error(sampling.batch(NeverExit(), fresh).images))
    schedule = CorrectedScheduleExit((4, 1) * 4)
    policies = (schedule, refined(trials, schedule, DEPTH, range(8)))
    errors = [trials.sample("", policy, fresh).error for policy in policies]
    assert errors[1] < 0.5 * errors[0]
