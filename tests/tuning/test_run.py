"""Whole searches with a tiny model: what is found against scores computed one by one, and what was sampled for it."""

import contextlib
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from adadiff import AdaDiffPipeline, InputError, NeverExit
from adadiff.calibration.cache import TensorCache
from adadiff.evaluation.metrics import frechet_distance, precision_recall
from adadiff.evaluation.packaged import PACKAGED
from adadiff.sampling import Guidance, sample_seeded
from adadiff.tuning import (
    TunablePipeline,
    TuneConfig,
    TuningGoal,
    draw_tuning,
    outcome_in_words,
    plans_in_words,
    tune,
    tuning_table,
)
from adadiff.tuning.measure import Measurer
from adadiff.tuning.score import Scorer
from adadiff.tuning.search import Search, open_study
from adadiff.tuning.space import Space
from tests.conftest import make_model
from tests.tuning.conftest import NAMES, make_evaluator

CONFIG = TuneConfig(TuningGoal(compute=0.6), ("searched",), ("judging",), 5, (12, 24), confirm=30, batch_size=10)


@pytest.fixture
def search(tunable, evaluator, tmp_path):
    def run(config=CONFIG, folder="search", **others):
        return tune(**{"model": tunable, "evaluator": evaluator, **others}, config=config, folder=tmp_path / folder)

    return run


@pytest.fixture(scope="module")
def found(tunable, evaluator, tmp_path_factory):
    return tune(tunable, evaluator, CONFIG, tmp_path_factory.mktemp("found") / "search")


@pytest.fixture
def sampled(monkeypatch):
    """The seed and index of each image that is sampled."""
    images = []

    def recording(pipeline, indices, steps, policy, seed=0, conditions=None):
        images.extend((seed, k) for k in indices)
        return sample_seeded(pipeline, indices, steps, policy, seed, conditions)

    for module in ("sampling.folder", "calibration.adaptive"):
        monkeypatch.setattr(f"adadiff.{module}.sample_seeded", recording)
    return images


def everything(tuning):
    """All that a search finds, but for seconds."""
    rows = (tuning.default, *tuning.full, *tuning.tuned)
    return [replace(each, seconds=None) for each in rows], tuning.trials


def test_the_plans_found_take_the_compute_that_was_predicted_and_keep_the_budget(found, classes_pipeline, conditions):
    tuning = found
    full = sample_seeded(
        classes_pipeline, [0], 4, NeverExit(), 0, replace(conditions, guidance=tuning.default.plan.guidance)
    )
    for each in (tuning.default, *tuning.full, *tuning.tuned):
        assert each.compute == pytest.approx(each.predicted, abs=1e-9)
        assert each.compute * full.trace.flops.sum() == pytest.approx(each.fresh.flops)
    assert tuning.default.compute == 1
    assert tuning.chosen is not None
    assert max(each.compute for each in tuning.tuned if not each.missed(CONFIG.goal, 0.6)) <= 0.6


def test_distances_are_those_of_the_fresh_images(found, classes_pipeline, conditions, evaluator):
    chosen = found.chosen
    given, plan = replace(conditions, guidance=chosen.plan.guidance), chosen.plan
    output = sample_seeded(classes_pipeline.with_plan(plan), range(30), plan.steps, plan.policy, CONFIG.seed + 1, given)
    images = (255 * output.images).round() / 255
    for name, judge in evaluator.references.items():
        wanted = frechet_distance(judge.network.of([images]).vectors, judge.real.vectors)
        assert chosen.fresh.distances[name] == pytest.approx(wanted, rel=1e-4)


def test_fresh_images_have_no_part_in_the_search(search, sampled, monkeypatch):
    before = []
    original = Search.run

    def run(self, *args):
        found = original(self, *args)
        before.append(len(sampled))
        return found

    monkeypatch.setattr(Search, "run", run)
    search()
    searched, fresh = set(sampled[: before[-1]]), set(sampled[before[-1] :])
    assert {k for _, k in fresh} == set(range(30))
    assert not searched & fresh


def test_a_search_that_was_killed_finds_what_one_run_through_does(search, found, sampled, monkeypatch):
    """Killed twice, and afterwards run once more, which samples nothing."""
    original, calls = Measurer._features_of, []

    def killing(self, *args):
        calls.append(args)
        if len(calls) in (3, 10):
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Measurer, "_features_of", killing)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search()
    assert everything(search()) == everything(found)
    sampled.clear()
    assert everything(search()) == everything(found)
    assert {seed for seed, _ in sampled} == {0}  # to time the plans again


def test_the_best_of_a_tiny_space_is_found(tunable, default, evaluator, tmp_path):
    scorer = Scorer(Measurer(tunable, evaluator, TensorCache()), ["searched"], TuningGoal(), None, 0, (12, 12))
    space = Space((2, 4), ("ddim", "unipc"), (1.0, 1.0), spacings=("leading",))
    study = open_study(tmp_path, "tiny", 1)
    found = Search(study, lambda trial: space.suggest(trial).with_all_layers, scorer.score).run(20, (12,))
    everyone = [
        replace(default, steps=steps, scheduler=scheduler, spacing="leading", guidance=found[0].candidate.guidance)
        for steps in (2, 3, 4)
        for scheduler in ("ddim", "unipc")
    ]
    assert len({each.candidate for each in found}) == len(everyone)
    assert found[0].candidate == min(everyone, key=lambda plan: scorer.score(plan, 12).objective)


def test_floors_are_kept_on_fresh_images_or_nothing_is_chosen(search, found):
    reached = max(each.fresh.shares["agreement"] for each in found.tuned)
    kept = search(replace(CONFIG, goal=TuningGoal(compute=0.6, agreement=0.9 * reached, recall=0.01)), folder="kept")
    assert kept.chosen is None or kept.chosen.fresh.shares["agreement"] >= 0.9 * reached
    none = search(replace(CONFIG, goal=TuningGoal(compute=0.6, agreement=1.0)), folder="none")
    assert none.chosen is None
    assert f"agreement {none.nearest.fresh.shares['agreement']:.3f} of 1.000" in outcome_in_words(none)
    with pytest.raises(InputError, match="no plan met the floors"):
        none.stored(None)


def test_floors_of_recall_are_for_as_many_images_as_confirm_a_plan(tunable, default, evaluator):
    """Of few images recall is another one: the default's by both numbers says how much."""
    measurer, goal = Measurer(tunable, evaluator, TensorCache()), TuningGoal(recall=0.3)
    scorer = Scorer(measurer, ["searched"], goal, None, 7, (24, 60))
    plan, recall = replace(default, steps=3), {}
    for name, each, images, seed in (("plan", plan, 12, 7), ("few", default, 12, 7), ("fresh", default, 60, 8)):
        vectors = measurer._features(each, images, seed)["searched/vectors"].numpy()
        real = evaluator.references["searched"].real.vectors
        recall[name] = precision_recall(vectors, real[np.random.default_rng(0).permutation(60)[:images]])[1]
    assert recall["few"] != recall["fresh"]
    raised = 0.3 + (0.3 * 0.7 * (1 / 24 + 1 / 60)) ** 0.5
    wanted = 1 - (1 - raised) * (1 - recall["few"]) / (1 - recall["fresh"])
    assert scorer.score(plan, 12).missed == (pytest.approx((wanted - recall["plan"]) / 0.3),)
    assert wanted < 1  # however high a floor that fresh images can meet, few can, too


def test_a_larger_confirm_begins_another_search_if_floors_were_raised_by_it(search, found):
    for floor, goes_on in ((None, True), (0.1, False)):
        config = replace(CONFIG, goal=TuningGoal(compute=0.6, agreement=floor), trials=2)
        search(config, folder=f"{goes_on}")
        if goes_on:
            search(replace(config, confirm=40), folder=f"{goes_on}")
        else:
            with pytest.raises(InputError, match="holds a search with confirm = 30, not 40"):
                search(replace(config, confirm=40), folder=f"{goes_on}")


@pytest.mark.parametrize("damaged", ["search.db", "seconds.json"])
def test_a_damaged_file_of_a_search_is_named(search, tmp_path, damaged):
    config = replace(CONFIG, goal=TuningGoal(seconds=60.0), trials=1)
    search(config)
    (tmp_path / "search" / damaged).write_text("{}")
    with pytest.raises(InputError, match=rf"{damaged} .*delete it") as caught:
        search(config)
    assert "\n" not in str(caught.value)
    (tmp_path / "search" / damaged).unlink()
    search(config)


def test_a_budget_in_seconds_is_measured_once(search, monkeypatch):
    def times(seconds):
        monkeypatch.setattr("adadiff.tuning.confirm.median_seconds", lambda plans, _: dict.fromkeys(plans, seconds))

    seconds = replace(CONFIG, goal=TuningGoal(seconds=1.2), trials=2)
    times(16.0)  # of 8 images
    assert search(seconds).budget == pytest.approx(0.6)
    times(8.0)
    assert search(seconds).budget == pytest.approx(0.6)


def test_a_budget_in_gflops_is_one_of_compute(found, search, default, classes_pipeline):
    gflops = 0.6 * default.flops(classes_pipeline.transformer.part_flops) / 1e9
    tuning = search(replace(CONFIG, goal=TuningGoal(gflops=gflops)))
    assert tuning.budget == pytest.approx(0.6)
    assert [each.plan for each in tuning.tuned] == [each.plan for each in found.tuned]


def test_what_is_stored_is_what_the_folder_samples_by(search, classes_pipeline, default, conditions, tmp_path):
    classes_pipeline.save_pretrained(tmp_path / "model")
    pipeline = AdaDiffPipeline.from_pretrained(tmp_path / "model", own_settings=False)
    saved = TunablePipeline(pipeline, default, conditions)
    tuning = search(model=saved)
    tuning.stored(saved).save(tmp_path / "model")
    loaded = AdaDiffPipeline.from_pretrained(tmp_path / "model")
    assert loaded.own_settings.stored.plan == tuning.chosen.plan
    noise = torch.Generator().manual_seed(0)
    loaded.set_progress_bar_config(disable=True)
    trace = loaded(class_labels=["cat"], generator=noise).trace
    full = tuning.default.plan.flops(pipeline.transformer.part_flops)
    assert int(trace.flops.sum()) / full == pytest.approx(tuning.chosen.compute)


def test_a_search_by_default_is_judged_by_packaged_networks_that_it_does_not_go_by():
    config = TuneConfig()
    assert {*config.features, *config.judges} <= set(PACKAGED)
    assert not {*config.features} & {*config.judges}


def test_the_full_model_is_measured_at_the_guidance_of_every_plan_too(found):
    full = {each.plan.guidance for each in found.full}
    assert {each.plan.guidance for each in found.tuned} <= full
    assert {(each.plan.steps, each.plan.scheduler) for each in found.full} >= {
        (found.default.plan.steps, found.default.plan.scheduler)
    }


def test_the_report_names_every_plan_and_every_network(found, tmp_path):
    tuning = found
    table = tuning_table(tuning)
    assert [column.header for column in table.columns][1:4] == ["compute", "searched", "judging*"]
    assert table.row_count == 2 + len(tuning.tuned) == len(plans_in_words(tuning).splitlines())
    console = Console(width=80)
    with console.capture() as printed:
        console.print(table)
    assert "…" not in printed.get()  # nothing is cut off
    draw_tuning(tuning, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 10_000
    words = outcome_in_words(tuning)
    differ = len({tuning.default.plan.guidance, tuning.best_full.plan.guidance, tuning.chosen.plan.guidance}) > 1
    assert ("Guidance differs" in words) == differ


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": (5, 12)},
            "the 5 images that --images begins with are too few for metrics on the features searched",
        ),
        ({"confirm": 5}, "the 5 images of --confirm are too few"),
        ({"goal": TuningGoal(compute=0.1)}, "the budget compute is 0.1: one step with all layers takes 0.125"),
        ({"goal": TuningGoal(compute=45)}, "the budget compute is 45: no plan of this search takes more than 1.5;"),
        ({"goal": TuningGoal(clip_score=20.0)}, "needs prompts and a CLIP model"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_sampled(search, sampled, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        search(replace(CONFIG, **changes))
    assert not sampled
    assert not (tmp_path / "search").exists()


def test_a_judge_is_no_network_of_the_search_under_another_name(search, evaluator):
    again = evaluator.references["searched"]
    again = replace(again, network=replace(again.network, name="again"))
    both = replace(evaluator, references={**evaluator.references, "again": again})
    with pytest.raises(InputError, match="the judge again is the network searched that the search goes by"):
        search(replace(CONFIG, judges=("again",)), evaluator=both)


def test_a_database_in_use_is_named_with_the_reason(search, tmp_path, monkeypatch):
    """It is not damaged, and so the reason has to be told before anybody deletes it."""
    config = replace(CONFIG, trials=1)
    search(config)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **others: connect(*args, **{**others, "timeout": 0.1}))
    with contextlib.closing(connect(tmp_path / "search/search.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match=r"search\.db cannot be used \(database is locked\): if it is damaged"):
            search(config)


def test_a_folder_of_another_model_default_data_or_goal_is_refused(search, classes_pipeline, default, conditions):
    search()
    other = classes_pipeline.with_parts(
        transformer=make_model(seed=1, num_classes=4, class_names=[*NAMES], null_class=3)
    )
    for changed in (
        {"model": TunablePipeline(other, default, conditions)},
        {"model": TunablePipeline(classes_pipeline, replace(default, guidance=Guidance(2.0)), conditions)},
        {"evaluator": make_evaluator(real_seed=2)},
        {"config": replace(CONFIG, goal=TuningGoal(compute=0.7))},
    ):
        with pytest.raises(InputError, match=r"holds a search with .*: choose another folder") as caught:
            search(**changed)
        assert len(str(caught.value)) < 300
