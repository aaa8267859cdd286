"""Goals against what the chosen policies do on samples that the calibration never saw."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler
from scipy.stats import sem

from adadiff import AdaDiffPipeline, InputError, NeverExit, load_policy
from adadiff.calibration import Goal, calibrate, calibration_table, draw_calibration
from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.bound import upper_bound
from adadiff.calibration.kinds import CorrectedSchedule, Schedule, SingleThreshold
from adadiff.calibration.metric import normalised_squared_error
from adadiff.calibration.problem import Problem
from adadiff.calibration.record import record_exits
from adadiff.calibration.result import Point
from adadiff.calibration.search import Curve
from adadiff.calibration.trials import Trials
from adadiff.policies.stored import StoredPolicy
from adadiff.sampling import Conditions, Guidance, sample_seeded
from adadiff.training.config import DiffusionConfig
from adadiff.utils.files import PRETRAINED, sha256
from adadiff.utils.text import with_error

STEPS = 8


@pytest.fixture(scope="module")
def digits():
    return AdaDiffPipeline.from_pretrained(PRETRAINED / "digits", own_settings=False)


@pytest.fixture(scope="module")
def for_compute(digits):
    return calibrate(digits, Goal(compute=0.55), STEPS, samples=16)


def test_a_budget_is_met_on_fresh_samples(digits, for_compute):
    output = sample_seeded(digits, range(24), STEPS, for_compute.policy, seed=7)
    assert output.trace.compute_fraction == pytest.approx(0.55, abs=0.02)
    assert for_compute.checked.compute == pytest.approx(0.55, abs=0.02)


def test_the_chosen_kind_is_the_one_with_the_least_error_near_the_budget(for_compute):
    near = [point for point in for_compute.trade_off if abs(point.compute - 0.55) < 0.05]
    best = min(near, key=lambda point: point.error)
    assert for_compute.predicted.error <= best.error * 1.5
    assert for_compute.predicted.kind != "single threshold"


def test_what_is_said_of_the_fresh_samples_is_what_sampling_them_gives(digits, for_compute):
    numbers = range(16, 32)
    full = sample_seeded(digits, numbers, STEPS, NeverExit(), seed=2_000_000).images
    early = sample_seeded(digits, numbers, STEPS, for_compute.policy, seed=2_000_000).images
    seen = sample_seeded(digits, range(16), STEPS, NeverExit(), seed=2_000_000).images
    variance = ((seen - seen.mean(0)) ** 2).mean()
    wanted = (((full - early) ** 2).mean((1, 2, 3)) / variance).clamp(max=1)
    assert for_compute.checked.losses == pytest.approx(wanted.numpy(), abs=1e-4)
    assert for_compute.checked.error < for_compute.error_bound <= 1


def test_an_error_is_kept_with_less_compute_than_the_full_model(digits):
    """The bound's validity over many calibrations is in test_bound.py; here it is used."""
    found = calibrate(digits, Goal(error=0.2, confidence=0.8), STEPS, samples=16, kinds=(Schedule(),))
    assert found.checked.error < found.error_bound == 0.2  # not less: these samples chose the policy
    assert found.checked.compute < 0.9


def test_an_error_that_so_few_samples_hardly_show_is_kept_by_a_careful_policy(digits):
    shown_by_no_loss_at_all = upper_bound(np.zeros(16), 0.2)
    goal = Goal(error=1.1 * shown_by_no_loss_at_all, confidence=0.8)
    found = calibrate(digits, goal, STEPS, samples=16, kinds=(Schedule(),))
    assert found.checked.error < 0.1 * goal.error
    assert found.checked.compute < 0.9


def test_a_speedup_takes_the_policy_with_the_most_compute_that_reaches_it(digits, monkeypatch):
    """Seconds being what a clock says, here they are the FLOPs."""

    def speedup(trials, policy):
        return 1 / sample_seeded(digits, range(4), STEPS, policy, 3).trace.compute_fraction

    monkeypatch.setattr("adadiff.calibration.trials.Trials.speedup", speedup)
    found = calibrate(digits, Goal(speedup=2.0), STEPS, samples=8, kinds=(Schedule(),))
    assert found.speedup >= 2
    assert found.checked.compute == pytest.approx(0.5, abs=0.04)
    with pytest.raises(InputError, match="was not reached on this machine"):
        calibrate(digits, Goal(speedup=500.0), STEPS, samples=8, kinds=(Schedule(),))


def largest(full, adaptive):
    return (full - adaptive).abs().flatten(1).amax(1)


def test_another_metric_is_what_errors_are_measured_by(digits):
    found = calibrate(digits, Goal(compute=0.6), STEPS, samples=8, metric=largest, kinds=(SingleThreshold(),))
    full = sample_seeded(digits, range(8, 16), STEPS, NeverExit(), 2_000_000).images
    early = sample_seeded(digits, range(8, 16), STEPS, found.policy, 2_000_000).images
    assert found.checked.losses == pytest.approx(largest(full, early).numpy(), abs=1e-4)
    assert found.stored.found["metric"] == f"{__name__}:largest"


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda full, adaptive: (full - adaptive).abs().amax(), r"gave \(\) losses for \d+ images: give one per image"),
        (lambda full, adaptive: torch.linspace(-2, 3, len(full)), "losses from -2 to 3: bring them between 0 and 1"),
        (lambda full, adaptive: torch.full((len(full),), torch.nan), "losses from nan to nan"),
    ],
)
def test_a_metric_must_give_what_the_bound_holds_for(digits, monkeypatch, metric, message):
    monkeypatch.setattr("adadiff.calibration.run.record_exits", None)  # it is refused before
    with pytest.raises(InputError, match=message):
        calibrate(digits, Goal(compute=0.6), 2, samples=8, metric=metric, kinds=(Schedule(),))


def test_a_metric_that_goes_out_of_range_on_the_way_is_refused_too(digits):
    def unbounded(full, adaptive):
        return 1e6 * (full - adaptive).abs().flatten(1).mean(1)

    with pytest.raises(InputError, match=r"losses from .* bring them between 0 and 1"):
        calibrate(digits, Goal(compute=0.6), 2, samples=8, metric=unbounded, kinds=(Schedule(),))


def test_the_circumstances_are_noted_and_the_policy_comes_back_from_the_folder(digits, for_compute, tmp_path):
    folder = tmp_path / "digits"
    shutil.copytree(PRETRAINED / "digits", folder)
    for_compute.save(folder)
    assert load_policy(folder) == for_compute.policy
    made_for = for_compute.calibrated_for
    assert (made_for.scheduler, made_for.steps, made_for.depth, made_for.guidance_scale) == ("ddpm", STEPS, 17, 1.0)
    assert made_for.weights == sha256(PRETRAINED / "digits/transformer/diffusion_pytorch_model.safetensors")


def test_the_table_and_the_plot_show_the_chosen_policy(for_compute, tmp_path):
    table = calibration_table(for_compute)
    assert table.row_count == len(for_compute.trade_off) + 2
    assert "fresh samples" in list(table.columns[3].cells)[-1]
    losses = for_compute.checked.losses
    assert list(table.columns[2].cells)[-1] == with_error(losses.mean(), sem(losses))
    draw_calibration(for_compute, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_pairs_of_guidance_are_calibrated_together(class_pipeline):
    conditions = Conditions(("cat", "owl"), guidance=Guidance(2.0))
    found = calibrate(class_pipeline, Goal(compute=0.6), 3, conditions, samples=8, kinds=(Schedule(),))
    assert found.calibrated_for.guidance_scale == 2
    assert found.checked.compute == pytest.approx(0.6, abs=0.15)  # schedules of 3 steps and 5 layers are few


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({}, "one of compute, error and speedup"),
        ({"compute": 0.5, "error": 0.1}, "one of compute, error and speedup"),
        ({"compute": 1.5}, "compute is 1.5: it must be between 0 and 1"),
        ({"error": 0.0}, "error is 0.0"),
        ({"speedup": 0.5}, "must be above 1"),
        ({"compute": 0.5, "confidence": 1.0}, "confidence is 1.0"),
    ],
)
def test_goals_that_make_no_sense(digits, goal, message):
    with pytest.raises(InputError, match=message):
        digits.calibrate(**goal)


def test_what_cannot_be_met_says_what_can(digits):
    with pytest.raises(
        InputError, match=r"compute is 0\.01, but with 2 evaluations of the model no policy takes less than 0\.056 of"
    ):
        digits.calibrate(compute=0.01, num_inference_steps=2, samples=8)
    with pytest.raises(InputError, match=r"8 samples are too few .* calibrate on at least 1"):
        digits.calibrate(error=0.02, samples=8)
    never = {"metric": lambda full, adaptive: torch.full((len(full),), 0.3), "kinds": (Schedule(),)}
    with pytest.raises(InputError, match=r"differs by \S+ from itself"):
        digits.calibrate(error=0.25, confidence=0.5, num_inference_steps=2, samples=8, **never)
    with pytest.raises(InputError, match="at least 8"):
        digits.calibrate(compute=0.5, samples=4)


def test_an_impossible_budget_is_refused_before_anything_is_sampled(digits, monkeypatch):
    monkeypatch.setattr("adadiff.calibration.run.record_exits", None)
    with pytest.raises(InputError, match=r"no policy takes less than 0\.056 of"):
        calibrate(digits, Goal(compute=0.01), STEPS, samples=8)


@pytest.mark.parametrize("steps", [4, 12])
def test_a_corrected_schedule_spends_as_little_as_one_full_step(digits, steps):
    kinds = (CorrectedSchedule(),)
    with pytest.raises(InputError, match=f"no policy takes less than {0.084 if steps == 12 else 0.056:.3f} of"):
        calibrate(digits, Goal(compute=0.05), steps, samples=8, kinds=kinds)
    if steps == 12:
        found = calibrate(digits, Goal(compute=0.09), steps, samples=8, kinds=kinds)
        assert found.policy.layers == (digits.transformer.depth, *[0] * 11)
        assert found.checked.compute == pytest.approx(1 / 12)


def test_only_kinds_that_spend_so_little_are_chosen(digits):
    """With 12 steps one full step takes 8% of the compute, one layer at every step 6%."""
    found = calibrate(digits, Goal(compute=0.06), 12, samples=8, kinds=(Schedule(), CorrectedSchedule()))
    assert found.predicted.kind == "step schedule"
    assert found.checked.compute <= 0.063


@pytest.fixture
def sampled(monkeypatch):
    """Policies and numbers of samples, as they are tried."""
    images, seen = Trials._images, []

    def counted(trials, policy, numbers, doing):
        seen.append((policy, tuple(numbers)))
        return images(trials, policy, numbers, doing)

    monkeypatch.setattr(Trials, "_images", counted)
    return seen


def test_nothing_is_sampled_twice_with_the_same_policy(digits, sampled):
    found = calibrate(digits, Goal(error=0.2, confidence=0.8), STEPS, samples=16, kinds=(Schedule(),))
    assert (found.policy, tuple(range(16, 32))) in sampled
    assert len(sampled) == len(set(sampled))


def test_an_interrupted_calibration_goes_on_and_finds_the_same(digits, for_compute, tmp_path, monkeypatch, sampled):
    keep, counted = tmp_path / "kept", Trials._images

    def interrupted(*trial):
        if len(sampled) == 5:
            raise KeyboardInterrupt
        return counted(*trial)

    with monkeypatch.context() as patch:
        patch.setattr(Trials, "_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate(digits, Goal(compute=0.55), STEPS, samples=16, keep=keep)
    before = list(sampled)
    sampled.clear()

    monkeypatch.setattr(AdaptiveSampling, "record", lambda *_: pytest.fail("the record is there already"))
    monkeypatch.setattr("adadiff.calibration.search.measured_influence", None)
    found = calibrate(digits, Goal(compute=0.55), STEPS, samples=16, keep=keep)
    assert not set(before) & set(sampled)
    assert found.policy == for_compute.policy
    assert found.checked.losses == pytest.approx(for_compute.checked.losses)
    assert [point.error for point in found.trade_off] == [point.error for point in for_compute.trade_off]
    assert not keep.exists()


def test_a_curve_is_linear_in_the_logarithm_and_never_rises():
    points = [Point("", NeverExit(), compute, np.array([error])) for compute, error in ((0.4, 0.1), (0.8, 0.001))]
    curve = Curve(points)
    assert curve.error_at(0.6) == pytest.approx(0.01)
    assert curve.compute_at(0.01) == pytest.approx(0.6)
    assert curve.compute_at(0.5) == 0.4
    assert 0.8 < curve.compute_at(1e-4) < 1
    risen = Curve([*points, Point("", NeverExit(), 0.9, np.array([0.5]))])
    assert risen.error_at(0.9) == pytest.approx(0.001)


def test_a_difference_as_large_as_the_images_own_is_1():
    images = torch.rand(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    metric = normalised_squared_error(images)
    assert metric(images, images).tolist() == [0] * 50
    assert metric(images, images.mean(0).expand_as(images)).mean() == pytest.approx(1, abs=0.15)
    assert metric(images, 1 - images).max() == 1


def test_schedulers_that_evaluate_more_often_are_calibrated_by_evaluations(model, tmp_path):
    """Heun's method evaluates the model 7 times in 4 steps; what is stored is stretched to 11 for 6."""
    pipe = AdaDiffPipeline(model, DiffusionConfig(beta_schedule="squaredcos_cap_v2").build())
    pipe.save_pretrained(tmp_path)
    pipe = AdaDiffPipeline.from_pretrained(tmp_path)
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    found = calibrate(pipe, Goal(compute=0.6), 4, samples=8, kinds=(Schedule(), CorrectedSchedule()))
    assert len(found.policy.layers) == 7
    assert found.checked.compute == pytest.approx(0.6, abs=0.1)
    found.save(tmp_path)
    stored = StoredPolicy.load(tmp_path)
    assert (stored.calibrated_for.steps, stored.for_steps(7)) == (4, found.policy)
    assert len(pipe(num_inference_steps=6, policy=stored.for_steps(11)).trace.exit_layers) == 11


def test_a_flow_matching_scheduler_is_refused_before_sampling(model):
    with pytest.raises(InputError, match="FlowMatchEulerDiscreteScheduler does not fit the model"):
        calibrate(AdaDiffPipeline(model, FlowMatchEulerDiscreteScheduler()), Goal(compute=0.6), 4, samples=8)


@pytest.mark.parametrize("speedup", [1.0, float("nan"), float("inf")])
def test_a_speedup_that_is_none_is_refused(speedup):
    with pytest.raises(InputError, match="the speedup is"):
        Goal(speedup=speedup)


@pytest.mark.parametrize("interval", [(0.25, 1.0), (0.25, 0.75), (0.0, 0.5)])
def test_a_schedule_for_guidance_at_some_steps_takes_the_compute_that_is_predicted(class_pipeline, interval):
    guidance = Guidance(3.0, interval)
    sampling = AdaptiveSampling(class_pipeline, STEPS, Conditions((0, 1), guidance=guidance))
    record = record_exits(sampling, 4)
    problem = Problem(record, torch.ones(STEPS), sampling.parts, sampling.predictions(STEPS))
    policy = CorrectedSchedule().meeting(problem, 0.6)
    batch = sampling.batch(policy, range(2))
    assert batch.flops / batch.full_flops == pytest.approx(problem.outcome(policy)[1])
    assert 0.55 < batch.flops / batch.full_flops <= 0.605
