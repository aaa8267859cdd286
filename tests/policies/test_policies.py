"""Exit rules, and what they refuse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adadiff import (
    BatchMeanExit,
    CorrectedScheduleExit,
    FixedExit,
    InputError,
    NeverExit,
    PatienceExit,
    ScheduleExit,
    TableExit,
    ThresholdExit,
)
from adadiff.policies import LINE, ExitQuery


def query(history, step=0):
    history = torch.tensor(history, dtype=torch.float32)
    rows = torch.arange(len(history))
    return ExitQuery(torch.full_like(rows, step), layer=history.shape[1], rows=rows, uncertainty=history)


def test_threshold_is_strict_and_looks_at_the_last_layer_alone():
    assert ThresholdExit(0.25).leaves(query([[0.1, 0.25], [0.9, 0.2], [0.1, 0.3]])).tolist() == [False, True, False]


def test_zero_never_leaves_and_one_leaves_all_but_the_certainly_wrong():
    assert not ThresholdExit(0.0).leaves(query([[0.0]])).any()
    assert ThresholdExit(1.0).leaves(query([[0.999], [1.0]])).tolist() == [True, False]


def test_threshold_per_layer_and_per_step():
    history = [[0.5, 0.15], [0.5, 0.35]]
    assert ThresholdExit((0.9, 0.2, 0.9), per="layer").leaves(query(history)).tolist() == [True, False]
    assert ThresholdExit((0.9, 0.2, 0.1)).leaves(query(history, step=1)).tolist() == [True, False]
    assert ThresholdExit((0.9, 0.2, 0.1)).leaves(query(history, step=2)).tolist() == [False, False]


def test_a_full_step_measures_the_corrections_of_exits_that_it_is_the_last_or_the_last_but_one_before():
    policy = CorrectedScheduleExit((3, 4, 5, 2, 5, 1, 5, 3))
    layers = [policy.corrected_layers(step, depth=5) for step in range(8)]
    assert layers == [(), (), (1, 2), (), (1, 3), (), (3,), ()]
    assert ScheduleExit(policy.layers).corrected_layers(2, depth=5) == ()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=40), st.integers(1, 80))
def test_a_stretched_corrected_schedule_keeps_its_full_steps(layers, num_steps):
    policy = CorrectedScheduleExit(tuple(layers))
    assert policy.stretched(len(layers)) == policy
    stretched, deepest = policy.stretched(num_steps).layers, max(layers)
    assert len(stretched) == num_steps
    wanted = layers.count(deepest) * num_steps / len(layers)
    assert wanted - 1e-6 <= stretched.count(deepest) < wanted + 1
    assert set(stretched) <= set(layers)


def test_every_second_step_in_full_stays_every_second_step():
    policy = CorrectedScheduleExit((5, 1) * 10)
    assert policy.stretched(10).layers == (5, 1) * 5
    assert policy.stretched(50).layers == (5, 1) * 25


def test_min_layer():
    policy = ThresholdExit(0.5, min_layer=2)
    assert policy.leaves(query([[0.1]])).tolist() == [False]
    assert policy.leaves(query([[0.1, 0.1]])).tolist() == [True]
    assert not policy.reads_uncertainty(0, 1)
    assert policy.reads_uncertainty(0, 2)


def test_estimators_do_not_run_where_the_threshold_is_zero():
    policy = ThresholdExit((0.0, 0.3))
    assert [policy.reads_uncertainty(step, 1) for step in (0, 1)] == [False, True]
    assert not NeverExit().reads_uncertainty(0, 1)
    assert not FixedExit(2).reads_uncertainty(0, 1)


def test_patience_ends_after_its_last_layer():
    """The rule of the released CIFAR-10 sampler, written as there: a list of passes, and another loop after it."""

    def released(uncertainties, first_half, tau):
        passes = [0]
        for layer, value in enumerate(uncertainties, start=1):
            if value < tau:
                if layer > first_half or passes[-1] == 1:
                    return layer
                passes.append(1)
        return len(uncertainties)

    torch.manual_seed(0)
    policy = PatienceExit(0.3, patience=2, last_patient_layer=3)
    for uncertainties in torch.rand(200, 6):
        history = uncertainties[None]
        left = [layer for layer in range(1, 6) if policy.leaves(query(history[:, :layer].tolist())).item()]
        assert (left[0] if left else 6) == released([*history[0, :5].tolist(), 1.0], 3, 0.3)


def test_patience_counts_the_layers_that_pass():
    policy = PatienceExit(0.3, patience=2)
    assert policy.leaves(query([[0.1]])).tolist() == [False]
    assert policy.leaves(query([[0.1, 0.5], [0.1, 0.2]])).tolist() == [False, True]
    assert policy.leaves(query([[0.1, 0.5, 0.1]])).tolist() == [True]
    nan = float("nan")
    assert PatienceExit(0.3, patience=1, min_layer=2).leaves(query([[nan, 0.1], [0.1, 0.5]])).tolist() == [True, False]


def test_fixed_exit():
    assert FixedExit(2).leaves(query([[0.9]])).tolist() == [False]
    assert FixedExit(2).leaves(query([[0.9, 0.9]])).tolist() == [True]


def test_a_schedule_goes_by_the_step():
    policy = ScheduleExit((1, 3))
    assert policy.leaves(query([[0.9], [0.1]], step=0)).tolist() == [True, True]
    assert policy.leaves(query([[0.0, 0.0], [0.1, 0.1]], step=1)).tolist() == [False, False]
    assert policy.leaves(query([[0.9, 0.9, 0.9]], step=1)).tolist() == [True]
    assert not policy.reads_uncertainty(1, 1)


def test_the_batch_mean_takes_all_or_none():
    policy = BatchMeanExit(0.5)
    assert policy.leaves(query([[0.9, 0.2], [0.0, 0.7]])).tolist() == [True, True]
    assert policy.leaves(query([[0.0, 0.2], [0.0, 0.8]])).tolist() == [False, False]
    assert policy.reads_uncertainty(0, 1)
    assert not BatchMeanExit(0.0).reads_uncertainty(0, 1)


def test_a_table_has_a_threshold_for_every_step_and_layer():
    policy = TableExit(((0.0, 0.3), (1.0, 0.5)))
    assert policy.leaves(query([[0.0], [0.2]], step=0)).tolist() == [False, False]
    assert policy.leaves(query([[0.9, 0.2], [0.0, 0.3]], step=0)).tolist() == [True, False]
    nan = float("nan")
    assert policy.leaves(query([[nan], [nan]], step=1)).tolist() == [True, True]
    assert [policy.reads_uncertainty(*place) for place in ((0, 1), (0, 2), (1, 1), (1, 2))] == [
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ThresholdExit(1.5), "between 0 and 1"),
        (lambda: ThresholdExit(-0.1), "between 0 and 1"),
        (lambda: ThresholdExit(float("nan")), "between 0 and 1"),
        (lambda: ThresholdExit((0.1, 2.0)), "between 0 and 1"),
        (lambda: ThresholdExit(0.1, per="image"), "per"),
        (lambda: PatienceExit(1.5), "between 0 and 1"),
        (lambda: PatienceExit(0.5, patience=0), "patience"),
        (lambda: ThresholdExit((0.1, 0.2)).check(depth=5, num_steps=3), "2 values: give .* one per step, 3"),
        (lambda: ThresholdExit((0.1,)).check(depth=5, num_steps=3), "1 value: give .* one per step, 3"),
        (lambda: ThresholdExit((0.1, 0.2), per="layer").check(depth=5, num_steps=2), "one per layer, 5"),
        (lambda: ThresholdExit(0.1, min_layer=6).check(depth=5, num_steps=2), "numbered 1 to 5"),
        (lambda: BatchMeanExit(1.5), "between 0 and 1"),
        (lambda: ScheduleExit((1, 2)).check(depth=5, num_steps=3), "2 exit layers: give one per step, 3"),
        (lambda: ScheduleExit((1,)).check(depth=5, num_steps=3), "1 exit layer: give one per step, 3"),
        (lambda: ScheduleExit((1, 6)).check(depth=5, num_steps=2), "numbered 1 to 5"),
        (lambda: TableExit(((0.1, 1.2),)), "between 0 and 1"),
        (lambda: TableExit(((0.1, 0.2),)).check(depth=3, num_steps=2), "1 row: give one per step, 2"),
        (lambda: TableExit(((0.1, 0.2),)).check(depth=5, num_steps=1), "layers 1 to 4"),
        (lambda: FixedExit(0).check(depth=5, num_steps=2), "numbered 1 to 5"),
        (lambda: PatienceExit(0.1, min_layer=0).check(depth=5, num_steps=2), "numbered 1 to 5"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_policies_describe_themselves():
    assert ThresholdExit(0.1).describe() == {"policy": "ThresholdExit", "tau": 0.1, "per": "step", "min_layer": 1}
    assert NeverExit().describe() == {"policy": "NeverExit"}


DEPTH, STEPS = 5, 3
TAUS = st.floats(0, 1, width=32)
LAYERS = st.integers(1, DEPTH)
TABLES = st.one_of(
    st.just(NeverExit()),
    st.builds(FixedExit, LAYERS),
    st.builds(ScheduleExit, st.tuples(*[LAYERS] * STEPS)),
    st.builds(CorrectedScheduleExit, st.tuples(*[LAYERS] * STEPS)),
    st.builds(ThresholdExit, TAUS, min_layer=LAYERS),
    st.builds(ThresholdExit, st.tuples(*[TAUS] * STEPS), min_layer=LAYERS),
    st.builds(ThresholdExit, st.tuples(*[TAUS] * DEPTH), per=st.just("layer"), min_layer=LAYERS),
    st.builds(TableExit, st.tuples(*[st.tuples(*[TAUS] * (DEPTH - 1))] * STEPS)),
    st.builds(PatienceExit, TAUS, patience=st.just(1), min_layer=LAYERS),
)


@given(
    TABLES, st.integers(0, STEPS - 1), st.integers(1, DEPTH - 1), st.lists(st.floats(0, 0.984375, width=32), min_size=1)
)
def test_the_table_says_what_the_rule_says(policy, step, layer, uncertainties):
    threshold = policy.table(STEPS, DEPTH)[step, layer - 1]
    history = [[0.99] * (layer - 1) + [uncertainty] for uncertainty in uncertainties]
    wanted = (torch.tensor(uncertainties) < threshold) | (threshold == 1)
    assert policy.leaves(query(history, step)).tolist() == wanted.tolist()
    assert policy.table(STEPS, DEPTH).shape == (STEPS, DEPTH - 1)


def test_rules_that_count_or_look_at_the_batch_are_no_table():
    assert PatienceExit(0.5, patience=2).table(STEPS, DEPTH) is None
    assert BatchMeanExit(0.5).table(STEPS, DEPTH) is None


def test_layer_0_comes_after_a_full_step():
    policy = CorrectedScheduleExit((9, 0, 1, 9, 0))
    policy.check(depth=9, num_steps=5)
    assert [policy.skips(step) for step in range(5)] == [False, True, False, False, True]
    assert policy.corrected_layers(step=0, depth=9) == (0, 1)
    assert policy.table(num_steps=5, depth=9) is None
    for layers in ((0, 9, 0), (1, 0, 9)):
        with pytest.raises(InputError, match=r"is at layer 0, .* run all 9 layers at a step before it"):
            CorrectedScheduleExit(layers).check(depth=9, num_steps=3)
    with pytest.raises(InputError, match="numbered 1 to 9"):
        ScheduleExit((9, 0)).check(depth=9, num_steps=2)


@given(layers=st.lists(st.sampled_from([0, 1, 2, 9]), min_size=2, max_size=12), num_steps=st.integers(1, 30))
def test_a_stretched_schedule_never_begins_at_layer_0(layers, num_steps):
    policy = CorrectedScheduleExit((9, *layers))
    policy.check(depth=9, num_steps=len(policy.layers))
    policy.stretched(num_steps).check(depth=9, num_steps=num_steps)
    shallow_first = CorrectedScheduleExit((2, 9, *layers))
    shallow_first.stretched(num_steps).check(depth=9, num_steps=num_steps)


def test_a_parabola_needs_the_corrections_of_three_full_steps():
    layers = (5, 1, 5, 2, 5, 3, 5, 4)
    assert CorrectedScheduleExit(layers).corrected_layers(0, depth=5) == (1, 2)
    curved = CorrectedScheduleExit(layers, ((1.0, 1.0, 0.5),) * 8)
    assert curved.corrected_layers(0, depth=5) == (1, 2, 3)


def test_the_weights_of_the_extrapolation_go_with_their_steps():
    rows = tuple((1.0, step / 4, 0.0) for step in range(4))
    policy = CorrectedScheduleExit((5, 1, 5, 2), rows)
    assert policy.extrapolation_at(3) == (1.0, 0.75, 0.0)
    assert CorrectedScheduleExit((5, 1)).extrapolation_at(1) == LINE
    longer = policy.stretched(8)
    for step, layer in enumerate(longer.layers):
        wanted = LINE if layer == 5 else rows[policy.layers.index(layer)]
        assert longer.extrapolation_at(step) == wanted


@pytest.mark.parametrize("rows", [((1.0, 1.0, 0.0),), ((1.0, 1.0), (1.0, 1.0)), ((1.0, 1.0, float("nan")),) * 2])
def test_an_extrapolation_of_another_size_or_without_numbers_is_an_error(rows):
    with pytest.raises(InputError, match=r"three finite weights for each step.*2 rows of three numbers"):
        CorrectedScheduleExit((5, 1), rows)
