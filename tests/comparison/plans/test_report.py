"""The report of a comparison of tuned plans."""

import json
from dataclasses import replace

from adadiff.comparison import verdicts_in_words, write_plans_report
from adadiff.comparison.plans.methods import METHODS
from adadiff.comparison.plans.run import Front
from tests.comparison.plans.conftest import CONFIG


def moved(point, factor, compute=0.3):
    """The same plan with other distances, each with a standard error of 1% of the true one."""
    fresh = point.fresh
    distances = {name: factor * distance for name, distance in fresh.distances.items()}
    errors = {name: 0.01 * distance for name, distance in fresh.distances.items()}
    return replace(point, compute=compute, fresh=replace(fresh, distances=distances, errors=errors))


def test_the_verdict_counts_differences_of_two_standard_errors(compared):
    results, _ = compared
    default = results.default
    mine, rival = ((moved(default, factor),) for factor in (0.9, 1.0))
    alike = (moved(default, 0.895), moved(default, 0.895, compute=0.55))
    fronts = (Front("ours", 0.0, default, mine), Front("fewer-steps", 0.0, default, rival))
    config = replace(CONFIG, floors=(0.0,), methods=("ours", "fewer-steps", "extrapolation"))
    (sentence,) = verdicts_in_words(replace(results, config=config, fronts=fronts))
    assert "of 4 comparisons" in sentence  # two targets, two networks
    assert "ours is better by two standard errors in 4, worse in 0" in sentence
    fronts = (*fronts, Front("extrapolation", 0.0, default, alike))
    (sentence,) = verdicts_in_words(replace(results, config=config, fronts=fronts))
    assert "in 0, worse in 0, and as good in the others" in sentence


def test_the_verdict_says_where_one_side_has_no_plan(compared):
    results, _ = compared
    default, config = (
        results.default,
        replace(CONFIG, floors=(0.0,), targets=(0.2, 0.4), methods=("ours", "fewer-steps")),
    )
    cheap, dear = (moved(default, 1.0, compute=compute) for compute in (0.2, 0.4))
    for mine, rival, said in (
        ((cheap,), (dear,), " Of plans that meet the floor, ours alone has one with at most 20% of the compute."),
        (
            (dear,),
            (cheap,),
            " Of plans that meet the floor, another method alone has one with at most 20% of the compute.",
        ),
        ((), (cheap,), ", another method alone has one with at most 20%, 40% of the compute."),
        ((cheap,), (cheap,), "as good in the others."),
    ):
        fronts = (Front("ours", 0.0, default, mine), Front("fewer-steps", 0.0, default, rival))
        (sentence,) = verdicts_in_words(replace(results, config=config, fronts=fronts))
        assert sentence.endswith(said)
    assert verdicts_in_words(replace(results, config=replace(config, methods=("fewer-steps",)), fronts=fronts)) == []


def test_the_pages_hold_every_method_network_and_plan(compared):
    results, out = compared
    write_plans_report(results, out)
    markdown, page = (out / "report.md").read_text(), (out / "index.html").read_text()
    for text in (markdown, page):
        assert all(method.title in text for method in METHODS.values())
        assert "judging, which no search went by" in text
        assert "outer layers on either side" in text
        assert "Class agreement of at least 20%" in text
    assert page.count("data:image/png;base64") == 2
    assert all((out / f"pictures/{name}.png").stat().st_size > 10_000 for name in ("compute", "seconds"))
    described = json.loads((out / "results.json").read_text())
    assert len(described["fronts"]) == len(results.fronts)
    assert described["default"]["frechet"]["judging"] == results.default.fresh.distances["judging"]
