"""Plans of a stock pipeline: what they cost, and what a whole search finds and stores."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import adadiff
from adadiff import InputError
from adadiff.cli.stock import load_stock_pipeline
from adadiff.sampling import Guidance
from adadiff.sampling.images import decoded_images, pixels_of
from adadiff.stock import StockPolicy, StockSampler
from adadiff.stock.switch import trace
from adadiff.tuning import TunableStockPipeline, TuneConfig, TuningGoal, tune
from adadiff.tuning.depth import DepthPlanner
from adadiff.tuning.space import Choices
from adadiff.utils.files import PRETRAINED
from tests.stock.tiny import build

STEPS = 4
CONFIG = TuneConfig(TuningGoal(compute=0.6), ("searched",), ("judging",), 3, (8,), confirm=12, batch_size=12)


@pytest.fixture(scope="module")
def pipe():
    """A class-conditional DiT with random weights."""
    pipe = build("dit").pipe
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler()
    return pipe


@pytest.fixture(scope="module")
def stock(pipe):
    return TunableStockPipeline(pipe, [1, 2, 3], num_inference_steps=STEPS, guidance_scale=2.0)


@pytest.fixture
def planner(stock, tmp_path):
    return DepthPlanner(stock, tmp_path, seed=5)


def sampled(stock, plan, numbers, seed=0):
    """The images of a plan, and the FLOPs of each."""
    ((_, contents),) = stock.sampled(plan, seed, iter([numbers]))
    images, flops = decoded_images(contents)
    return pixels_of(images), flops / len(numbers)


def test_the_default_is_the_call_s(stock, pipe):
    assert (stock.default.steps, stock.default.guidance.scale) == (STEPS, 2.0)
    assert stock.flops(stock.default) == 2 * STEPS * stock.prediction_flops
    own = TunableStockPipeline(pipe, [1]).default  # of DiTPipeline's signature
    assert (own.steps, own.guidance.scale) == (50, 4.0)


def test_classes_are_named_where_the_pipeline_names_them(pipe):
    assert TunableStockPipeline(pipe, [1, 2]).classes == (1, 2)
    pipe.labels = {"cat": 1}
    assert TunableStockPipeline(pipe, [1, 2]).classes == ("cat", 2)
    del pipe.labels


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_plan_takes_what_was_predicted_and_keeps_its_share(stock, planner, scale):
    choices = Choices(STEPS, "dpm-solver++", None, Guidance(scale), depth=0.6)
    plan, full = planner.plan(choices), choices.with_all_layers
    _, flops = sampled(stock, plan, range(4))
    assert flops == pytest.approx(stock.flops(plan), rel=1e-6)
    assert 0.3 < stock.flops(plan) / stock.flops(full) <= 0.6
    assert plan.policy.layers[-1] == stock.depth
    assert sampled(stock, full, range(4))[1] == pytest.approx(stock.flops(full), rel=1e-6)


def test_images_are_those_of_the_pipeline_s_own_call(stock, pipe, planner):
    plan = planner.plan(Choices(STEPS, "dpm-solver++", None, Guidance(3.0), depth=0.6))
    images, _ = sampled(stock, plan, [2, 0], seed=7)
    adadiff.enable(pipe, plan.policy)
    expected = StockSampler(pipe, [1, 2, 3], 7, {"num_inference_steps": STEPS, "guidance_scale": 3.0})([2, 0], "pt")
    adadiff.disable(pipe)
    torch.testing.assert_close(images, (255 * expected).round() / 255, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def digits():
    return load_stock_pipeline(PRETRAINED / "digits-dit", "float32", "cpu")


@pytest.fixture(scope="module")
def found(digits, evaluator, tmp_path_factory):
    model = TunableStockPipeline(digits, list(range(10)), num_inference_steps=STEPS, guidance_scale=4.0)
    attributes = set(vars(digits.transformer))
    folder = tmp_path_factory.mktemp("found") / "search"
    tuning = tune(model, evaluator, CONFIG, folder)
    assert set(vars(digits.transformer)) == attributes  # left as it was
    return model, tuning, folder


def test_a_search_keeps_the_budget_on_fresh_images(found):
    model, tuning, _ = found
    for each in tuning.tuned:
        assert each.compute <= 0.6 + 1e-6
        assert each.compute == pytest.approx(each.predicted)
        assert each.plan.scheduler == model.default.scheduler
        assert each.plan.guidance.interval == (0.0, 1.0)
    assert tuning.default.compute == pytest.approx(1.0)
    assert tuning.chosen is not None


def test_what_is_stored_is_enabled_and_sampled_by(found, digits, tmp_path):
    """The folder's policy says with how many steps and which scale to call the pipeline, and what that takes."""
    model, tuning, _ = found
    plan = tuning.chosen.plan
    tuning.stored(model).save(tmp_path)
    stored = StockPolicy.load(tmp_path)
    arguments = dict(stored.calibrated_for.arguments)
    assert arguments == {"num_inference_steps": plan.steps, "guidance_scale": plan.guidance.scale}
    assert stored.found["full_model_at_its_best"]["plan"]["steps"] == STEPS
    adadiff.enable(digits, tmp_path)
    digits(class_labels=[3, 4], **arguments)
    fraction = trace(digits).compute_fraction
    adadiff.disable(digits)
    assert fraction == pytest.approx(model.flops(plan) / model.flops(plan.without_exits))


def test_a_finished_search_samples_nothing_again_and_refuses_another_default(found, digits, evaluator, monkeypatch):
    _, tuning, folder = found

    def again(scale):
        model = TunableStockPipeline(digits, list(range(10)), num_inference_steps=STEPS, guidance_scale=scale)
        return tune(model, evaluator, CONFIG, folder)

    monkeypatch.delattr(TunableStockPipeline, "_images")
    assert [each.plan for each in again(4.0).tuned] == [each.plan for each in tuning.tuned]
    with pytest.raises(InputError, match="holds a search with"):
        again(3.0)


def test_a_budget_in_gflops_is_that_of_the_flops_counted(digits, evaluator, tmp_path):
    model = TunableStockPipeline(digits, list(range(10)), num_inference_steps=STEPS, guidance_scale=4.0)
    counter, spent = FlopCounterMode(display=False), []
    before = digits.transformer.register_forward_pre_hook(lambda *_: spent.append(-counter.get_total_flops()))
    after = digits.transformer.register_forward_hook(lambda *_: spent.append(counter.get_total_flops()))
    with counter:
        digits(class_labels=[3], num_inference_steps=STEPS, guidance_scale=4.0)
    before.remove()
    after.remove()
    config = replace(CONFIG, goal=TuningGoal(gflops=0.6 * sum(spent) / 1e9), trials=1)
    assert tune(model, evaluator, config, tmp_path / "search").budget == pytest.approx(0.6, rel=1e-3)
    with pytest.raises(InputError, match="the budget gflops is 1e-06: one step with all layers takes"):
        tune(model, evaluator, replace(config, goal=TuningGoal(gflops=1e-6)), tmp_path / "other")
