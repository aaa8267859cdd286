"""A whole comparison of tuned plans with a tiny model."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from adadiff import InputError
from adadiff.cli import main
from adadiff.cli.stock import load_stock_pipeline
from adadiff.comparison import compare_plans, write_plans_report
from adadiff.comparison.plans.methods import METHODS
from adadiff.evaluation.metrics import frechet_distance
from adadiff.policies import NeverExit
from adadiff.sampling import sample_seeded
from adadiff.sampling.images import decoded_images, pixels_of
from adadiff.stock.hooks import hooks_of
from adadiff.tuning import TunablePipeline, TunableStockPipeline
from adadiff.tuning.measure import Measurer
from adadiff.utils.files import PRETRAINED
from tests.comparison.plans.conftest import CONFIG


def points(results, *methods):
    return [point for front in results.fronts for point in front.points if front.method in (methods or METHODS)]


def test_every_method_has_a_search_under_every_floor(compared):
    results, _ = compared
    assert {(front.method, front.floor) for front in results.fronts} == {
        (name, floor) for name in METHODS for floor in CONFIG.floors
    }
    assert all(point.compute <= CONFIG.most_compute + 1e-9 for point in points(results, "ours", "fewer-steps"))
    assert {point.plan.steps for point in points(results, "full-model")} == {4}
    assert all(isinstance(point.plan.policy, NeverExit) for point in points(results, "full-model", "fewer-steps"))


def test_floors_hold_on_the_fresh_images(compared):
    results, _ = compared
    for front in results.fronts:
        assert all(point.fresh.shares["agreement"] >= front.floor for point in front.points)


@pytest.mark.parametrize("method", ["ours", "extrapolation", "skip-caching", "first-block-caching", "threshold"])
def test_what_is_measured_is_what_the_plan_samples(compared, classes_pipeline, conditions, evaluator, method):
    results, _ = compared
    point = points(results, method)[0]
    plan, given = point.plan, replace(conditions, guidance=point.plan.guidance)
    output = sample_seeded(classes_pipeline.with_plan(plan), range(30), plan.steps, plan.policy, CONFIG.seed + 1, given)
    judge = evaluator.references["judging"]
    vectors = judge.network.of([(255 * output.images).round() / 255]).vectors
    assert point.fresh.distances["judging"] == pytest.approx(frechet_distance(vectors, judge.real.vectors), rel=1e-3)
    full = results.default.plan.flops(classes_pipeline.transformer.part_flops)
    assert point.compute == pytest.approx(output.trace.flops.sum().item() / 30 / full)


def test_the_judges_name_the_plan_at_a_target(compared):
    results, _ = compared
    for front in results.fronts:
        for target in CONFIG.targets:
            named = results.at(front.method, front.floor, target)
            within = [point for point in front.points if point.compute <= target + 0.005]
            assert (named is None) == (not within)
            if within:
                relative = [point.fresh.distances["judging"] for point in within]
                assert named.fresh.distances["judging"] == min(relative)


def test_a_comparison_that_was_interrupted_goes_on(compared, tunable, evaluator, tmp_path, monkeypatch):
    original, sampled = Measurer._features_of, []

    def interrupted(self, *args):
        sampled.append(args)
        if len(sampled) == 6:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Measurer, "_features_of", interrupted)
    config = replace(CONFIG, methods=("ours", "extrapolation"), floors=(0.2,))
    arguments = (config, tunable, evaluator, tmp_path / "report")
    with pytest.raises(KeyboardInterrupt):
        compare_plans(*arguments)
    fronts = compare_plans(*arguments).fronts
    wanted = [front for front in compared[0].fronts if front.floor == 0.2 and front.method in config.compared]
    described = [[point.fresh for point in front.points] for front in fronts]
    assert described == [[point.fresh for point in front.points] for front in wanted]
    sampled.clear()
    compare_plans(*arguments)
    assert not sampled


def test_the_folder_of_another_model_is_refused(compared, classes_pipeline, default, conditions, evaluator):
    other = classes_pipeline.with_parts(transformer=copy.deepcopy(classes_pipeline.transformer))
    with torch.no_grad():
        next(other.transformer.parameters()).add_(1)
    with pytest.raises(InputError, match=r"holds a comparison with measured\.model.*: choose another folder"):
        compare_plans(CONFIG, TunablePipeline(other, default, conditions), evaluator, compared[1])


def test_less_than_one_step_is_refused(tunable, evaluator, tmp_path):
    config = replace(CONFIG, most_compute=0.1, targets=(0.1,))
    with pytest.raises(InputError, match=r"most_compute is 0\.1: one step with all layers takes 0\.125"):
        compare_plans(config, tunable, evaluator, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_folder_of_another_comparison_is_refused(compared, tunable, evaluator):
    with pytest.raises(InputError, match=r"holds a comparison with .*: choose another folder"):
        compare_plans(replace(CONFIG, trials=10), tunable, evaluator, compared[1])


@pytest.fixture(scope="module")
def stock():
    pipe = load_stock_pipeline(PRETRAINED / "digits-dit", "float32", "cpu")
    return TunableStockPipeline(pipe, [1, 2, 3], num_inference_steps=4, guidance_scale=2.0)


def test_a_stock_pipeline_is_compared_by_the_methods_that_need_nothing_of_ours(stock, evaluator, tmp_path):
    config = replace(CONFIG, floors=(0.0,), trials=5, images=(12,), points=2)
    results = compare_plans(config, stock, evaluator, tmp_path / "report")
    assert hooks_of(stock.pipe.transformer) is None  # left as it was
    assert results.config.compared == ("full-model", "ours", "fewer-steps", "extrapolation")
    for point in points(results, "ours", "fewer-steps", "extrapolation"):
        assert point.compute == pytest.approx(point.predicted, rel=1e-6)
        assert point.compute <= config.most_compute + 1e-6
        ((_, contents),) = stock.sampled(point.plan, config.seed + 1, iter([range(30)]))
        vectors = evaluator.references["judging"].network.of([pixels_of(decoded_images(contents)[0])]).vectors
        wanted = frechet_distance(vectors, evaluator.references["judging"].real.vectors)
        assert point.fresh.distances["judging"] == pytest.approx(wanted, rel=1e-3)
    assert any(0 in point.plan.policy.layers for point in points(results, "extrapolation"))
    write_plans_report(results, tmp_path / "report")
    assert "skip caching" not in (tmp_path / "report/report.md").read_text()


def test_a_refused_comparison_leaves_a_stock_pipeline_as_it_was(evaluator, tmp_path):
    pipe = load_stock_pipeline(PRETRAINED / "digits-dit", "float32", "cpu")
    model = TunableStockPipeline(pipe, [1, 2, 3], num_inference_steps=4, guidance_scale=2.0)
    with pytest.raises(InputError, match=r"most_compute is 0\.01"):
        compare_plans(replace(CONFIG, most_compute=0.01, targets=(0.01,)), model, evaluator, tmp_path / "report")
    assert hooks_of(pipe.transformer) is None


def test_the_command_compares_a_stock_pipeline_at_the_default_that_the_file_names(tmp_path, capsys):
    settings = {
        "model": "digits-dit",
        "reference": "digits",
        "features": ["tests.tuning.conftest:random_features"],
        "judges": ["tests.tuning.conftest:more_random_features"],
        "methods": ["fewer-steps"],
        "floors": [0],
        "steps": 5,
        "guidance_scale": 3.0,
        "class_index": [3, 7],
        "trials": 2,
        "images": [12],
        "points": 1,
        "confirm": 12,
    }
    (tmp_path / "mine.json").write_text(json.dumps(settings))
    main(["compare", str(tmp_path / "mine.json"), "--out", str(tmp_path / "report")])
    default = json.loads((tmp_path / "report/results.json").read_text())["default"]
    assert (default["plan"]["steps"], default["plan"]["guidance"]["scale"]) == (5, 3.0)
    assert "search over steps and guidance scale" in (tmp_path / "report/report.md").read_text()
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "mine.json"), "--out", str(tmp_path / "other"), "--cluster"])
    assert "--cluster is for models of adadiff's own" in capsys.readouterr().err


def test_a_method_for_our_own_models_is_refused_for_others(stock, evaluator, tmp_path):
    with pytest.raises(InputError, match="the method skip-caching is for models of adadiff's own, and tiny is none"):
        compare_plans(replace(CONFIG, methods=("ours", "skip-caching")), stock, evaluator, tmp_path / "report")
