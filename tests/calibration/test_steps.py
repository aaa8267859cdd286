"""The number of steps for a budget, against samplings made one by one."""

import pytest

from adadiff import AdaDiffPipeline, InputError, NeverExit
from adadiff.calibration import steps
from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.goal import SEED
from adadiff.calibration.report import steps_table
from adadiff.calibration.search import TOLERANCE
from adadiff.calibration.steps import choose_steps
from adadiff.policies import CorrectedScheduleExit
from adadiff.sampling import sample_seeded
from adadiff.sampling.schedulers import scheduler_like
from adadiff.utils.files import PRETRAINED

STEPS, REFERENCE, BUDGET = 10, 30, 0.6


@pytest.fixture(scope="module")
def digits():
    return AdaDiffPipeline.from_pretrained(PRETRAINED / "digits")


@pytest.fixture(scope="module")
def choice(digits):
    return choose_steps(AdaptiveSampling(digits, STEPS, seed=SEED), BUDGET, REFERENCE)


def images_of(pipeline, trial):
    return sample_seeded(pipeline, range(16, 48), trial.steps, trial.policy, SEED)


def test_every_number_of_steps_costs_no_more_than_the_budget(digits, choice):
    full = images_of(digits, choice.default).trace.flops.sum().item()
    assert [trial.steps for trial in choice.trials] == [6, 8, 9, 12, 15, 20]
    for trial in choice.trials:
        assert trial.compute == pytest.approx(images_of(digits, trial).trace.flops.sum().item() / full)
        assert 0.8 * BUDGET < trial.compute <= BUDGET + TOLERANCE
    assert isinstance(choice.trials[0].policy, NeverExit)
    assert all(isinstance(trial.policy, CorrectedScheduleExit) for trial in choice.trials[1:])


def test_errors_are_against_the_reference_from_the_same_noise(digits, choice):
    reference = sample_seeded(digits, range(16, 48), REFERENCE, NeverExit(), SEED).images
    variance = reference.var(0, correction=0).mean()
    for trial in (choice.default, choice.trials[0], choice.best):
        squared = (images_of(digits, trial).images - reference).square().mean((1, 2, 3)) / variance
        assert trial.error == pytest.approx(squared.mean().item(), rel=1e-4)
    assert choice.best.error == min(trial.error for trial in choice.trials)
    assert steps_table(choice).row_count == 1 + len(choice.trials)


def test_schedules_are_fitted_before_the_choice(digits, choice, monkeypatch):
    """Not fitted, those of many steps err more: the choice would favour few."""
    monkeypatch.setattr(steps, "SHARES", steps.SHARES[-1:])
    (as_found,) = choose_steps(AdaptiveSampling(digits, STEPS, seed=SEED), BUDGET, REFERENCE, refine=False).trials
    fitted = choice.trials[-1]
    assert fitted.steps == as_found.steps
    assert fitted.error < 0.8 * as_found.error


def test_a_scheduler_that_adds_noise_of_its_own_makes_a_warning(digits, monkeypatch, caplog):
    monkeypatch.setattr(steps, "SHARES", steps.SHARES[:1])
    noisy = digits.with_parts(scheduler=scheduler_like("ddpm", digits.scheduler))
    choose_steps(AdaptiveSampling(noisy, 6, seed=SEED), 0.5, 30)
    assert "6 and 30 steps from the same noise, with all layers, have little in common" in caplog.text


def test_a_reference_needs_more_steps(digits):
    with pytest.raises(InputError, match="reference_steps is 10: it must be above the number of steps, 10"):
        choose_steps(AdaptiveSampling(digits, STEPS), BUDGET, 10)


def test_less_than_one_step_is_refused(digits):
    with pytest.raises(InputError, match=r"compute is 0\.05: one step with all layers takes 0\.1; choose more"):
        choose_steps(AdaptiveSampling(digits, 10), 0.05, 50)
