"""Methods: the compute they promise is what their samplings take."""

from dataclasses import replace
from itertools import pairwise

import pytest

from adadiff import BatchMeanExit, FixedExit, NeverExit, ScheduleExit, ThresholdExit
from adadiff.comparison.bench import Bench, Setup
from adadiff.comparison.methods import METHODS, Enumerated, Thresholded, extrapolations, growing_depths
from adadiff.comparison.networks import ADADIFF, FULL, Networks
from adadiff.sampling import sample_seeded

ENUMERATED = [method for method in METHODS if isinstance(method, Enumerated)]
THRESHOLDED = [method for method in METHODS if isinstance(method, Thresholded)]


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    """What a network computes does not depend on its training."""
    monkeypatch.setattr(Networks, "_trained", Networks._start)


@pytest.mark.parametrize("method", ENUMERATED, ids=lambda method: method.name)
def test_enumerated_settings_take_what_is_expected(method, bench):
    settings = [setup for family in method.families for setup in family(bench)]
    assert settings
    for setup in settings[:: max(1, len(settings) // 6)]:
        share = setup.steps / bench.config.steps
        measured = Bench(replace(bench.config, steps=setup.steps), bench.networks).pilot(setup.pipeline, setup.policy)
        assert share * measured == pytest.approx(setup.compute, rel=1e-6)


@pytest.mark.parametrize("method", ENUMERATED, ids=lambda method: method.name)
def test_the_nearest_setting_of_a_family_is_taken_if_it_is_near(method, bench):
    families = [[setup.compute for setup in setups] for family in method.families if (setups := family(bench))]
    for wanted in (0.3, 0.55, 0.7):
        nearest = [min(computes, key=lambda compute: abs(compute - wanted)) for computes in families]
        near = {compute for compute in nearest if abs(compute - wanted) <= 0.08} or {None}
        setup = method.setup(bench, wanted)
        assert (setup.compute if setup else None) in near


def test_of_two_families_the_setting_nearest_to_the_full_model_is_taken(bench):
    """A fixed exit's mean squared error, written out, against that of the full model's own steps."""
    ours, full = bench.networks.pipeline(ADADIFF), bench.networks.pipeline(FULL)
    steps, layer = bench.config.steps, (ours.transformer.depth + 1) // 2

    def setup(name, pipeline, policy):
        return Setup(pipeline, policy, steps, name, 0.5)

    poor, good = setup("poor", ours, FixedExit(1)), setup("good", full, NeverExit())
    for families in ([poor], [good]), ([good], [poor]):
        method = Enumerated("two", "", "", tuple(lambda bench, setups=setups: setups for setups in families))
        assert method.setup(bench, 0.5).setting == "good"
    middle = setup("middle", ours, FixedExit(layer))
    images = [
        sample_seeded(s.pipeline, range(32), steps, s.policy, 10**6, bench.conditions(s.pipeline)).images
        for s in (good, middle)
    ]
    wanted = ((images[0] - images[1]) ** 2).flatten(1).mean(1) / images[0].var(0, correction=0).mean()
    assert bench.pilot_error(middle) == pytest.approx(wanted.clamp(max=1).mean().item(), rel=1e-4)
    assert bench.pilot_error(good) == 0


@pytest.mark.parametrize("method", THRESHOLDED, ids=lambda method: method.name)
def test_more_of_a_threshold_is_less_compute_and_the_search_meets_it(method, bench, monkeypatch):
    monkeypatch.setattr("adadiff.comparison.methods.HALVINGS", 8)
    pipeline = bench.networks.pipeline(method.recipe)
    computes = [bench.pilot(*method.run(pipeline, threshold)) for threshold in (0.0, 0.3, 0.6, method.most)]
    assert computes[0] >= 1
    assert computes[-1] < 0.6
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(computes[:3]))
    threshold, found = method.search(bench, 0.7)
    assert found == bench.pilot(*method.run(pipeline, threshold))
    assert abs(found - 0.7) < 0.2


def test_depths_of_the_schedule_grow_and_have_the_mean(bench):
    depth = bench.networks.pipeline(ADADIFF).transformer.depth
    for setup in growing_depths(bench):
        layers = setup.policy.layers
        assert isinstance(setup.policy, ScheduleExit)
        assert list(layers) == sorted(layers)
        assert 1 <= layers[0] <= layers[-1] <= depth


def test_the_released_rule_decides_for_the_batch(bench):
    policies = {method.name: method.run(bench.networks.pipeline(method.recipe), 0.3)[1] for method in THRESHOLDED}
    assert policies["released"] == BatchMeanExit(0.3)
    assert policies["adadiff"] == ThresholdExit(0.3)


def test_names_are_different():
    assert len({method.name for method in METHODS}) == len(METHODS)


def test_extrapolations_hold_the_prediction_or_go_along_a_line_or_a_parabola(bench):
    policies = [extrapolations(order, bench)[0].policy for order in range(3)]
    assert [policy.extrapolation_at(1) for policy in policies] == [(1, 0, 0), (1, 1, 0), (1, 1, 1)]
    depth = bench.networks.pipeline(FULL).transformer.depth
    assert policies[0].layers[:4] == (depth, 0, depth, 0)
