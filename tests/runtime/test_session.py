"""Sessions: each row at its own step, whatever else is in the call, against the same row run alone, step by step."""

from dataclasses import dataclass
from functools import cache

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
from adadiff.baselines import DuoDiff, FirstBlockCaching, SkipCaching
from tests.conftest import make_model, predict

STEPS = 5
ROWS = 4
MODEL = make_model(depth=5)
torch.manual_seed(0)
SAMPLES = torch.randn(ROWS, STEPS, 1, 8, 8)  # what row k denoises at its step s; any sequence does
TIMES = torch.tensor([900.0, 700.0, 500.0, 300.0, 100.0])


def middle_of_the_widest_gap():
    """A threshold that rounding cannot reach: in the middle of the widest gap between uncertainties near the median."""
    seen = [
        predict(MODEL, SAMPLES[:, step], TIMES[step].item(), return_uncertainties=True).uncertainties[:, :-1]
        for step in range(STEPS)
    ]
    values = torch.stack(seen).flatten().sort().values
    values = values[len(values) // 3 : 2 * len(values) // 3]
    widest = values.diff().argmax()
    return ((values[widest] + values[widest + 1]) / 2).item()


TAU = middle_of_the_widest_gap()


@dataclass(frozen=True)
class CorrectedThreshold(ThresholdExit):
    """Corrects exits of samples that decide for themselves."""

    def corrected_layers(self, step, depth):
        return (1, 2, 3, 4)


POLICIES = {
    "never": NeverExit(),
    "fixed": FixedExit(2),
    "threshold": ThresholdExit(TAU),
    "per step": ThresholdExit((0.0, TAU, 1.0, TAU, 0.0)),
    "per layer": ThresholdExit((0.0, TAU, 0.0, TAU, 0.0), per="layer"),
    "schedule": ScheduleExit((5, 1, 3, 2, 4)),
    "corrected": CorrectedScheduleExit((5, 1, 5, 2, 1)),
    "corrected later": CorrectedScheduleExit((2, 5, 1, 5, 2)),
    "corrected at layer 0": CorrectedScheduleExit((5, 0, 5, 0, 0)),
    "corrected at layers 0 and 1": CorrectedScheduleExit((1, 5, 0, 1, 0)),
    "corrected threshold": CorrectedThreshold(TAU),
    "table": TableExit(((0.0, TAU, TAU, 1.0), (1.0,) * 4, (TAU,) * 4, (0.0,) * 4, (0.0, 0.0, TAU, TAU))),
    "patience": PatienceExit(TAU),
}
CASES = [(MODEL, policy) for policy in POLICIES.values()] + [
    (SkipCaching(MODEL, 2), NeverExit()),
    (SkipCaching(MODEL, 3, shallow=2), NeverExit()),
    (FirstBlockCaching(MODEL, 0.9), NeverExit()),
    (DuoDiff(MODEL, make_model(depth=3, seed=1), switch=2), NeverExit()),
]
NAMES = [*POLICIES, "skip caching", "skip caching, two layers", "first-block caching", "duodiff"]


@cache
def alone(denoiser, policy, k):
    """The predictions of row k in a session of its own, step after step."""
    session = denoiser.session(1)
    return [
        predict(session, SAMPLES[k : k + 1, step], TIMES[step].item(), policy=policy, step=step)
        for step in range(STEPS)
    ]


def assert_row_equals(together, row, wanted):
    torch.testing.assert_close(together.sample[row], wanted.sample[0], rtol=1e-5, atol=1e-5)
    assert together.exit_layers[row] == wanted.exit_layers[0]
    assert together.flops[row] == wanted.flops[0]
    torch.testing.assert_close(together.uncertainties[row], wanted.uncertainties[0], equal_nan=True)


def call(session, policy, rows, steps):
    """Predict for samples `rows` at `steps`, the session's rows in this order."""
    at = torch.tensor(steps)
    return predict(session, SAMPLES[torch.tensor(rows), at], TIMES[at], policy=policy, step=steps)


@pytest.mark.parametrize(("denoiser", "policy"), CASES, ids=NAMES)
@given(data=st.data())
def test_rows_at_different_steps_give_what_each_gives_alone(denoiser, policy, data):
    """Samples come and go: at every tick some of them take a step, in any order, split off the others and joined."""
    wanted = [alone(denoiser, policy, k) for k in range(ROWS)]
    session, order = denoiser.session(0), []  # the waiting rows, and which samples they are
    next_step = dict.fromkeys(range(ROWS), 0)
    while next_step:
        tick = data.draw(st.permutations(sorted(next_step)))[: data.draw(st.integers(1, len(next_step)))]
        new = [k for k in tick if k not in order]
        session, order = session.join(denoiser.session(len(new))), order + new
        running = session.select(torch.tensor([order.index(k) for k in tick]))
        waiting = [k for k in order if k not in tick]
        session = session.select(torch.tensor([order.index(k) for k in waiting], dtype=torch.int64))
        output = call(running, policy, tick, [next_step[k] for k in tick])
        for row, k in enumerate(tick):
            assert_row_equals(output, row, wanted[k][next_step[k]])
            next_step[k] += 1
        session, order = session.join(running), waiting + tick
        next_step = {k: step for k, step in next_step.items() if step < STEPS}
        keep = [row for row, k in enumerate(order) if k in next_step]
        session, order = session.select(torch.tensor(keep, dtype=torch.int64)), [order[row] for row in keep]


@pytest.mark.parametrize(("denoiser", "policy"), CASES, ids=NAMES)
def test_a_cleared_row_begins_anew_and_the_others_go_on(denoiser, policy):
    wanted = [alone(denoiser, policy, k) for k in range(ROWS)]
    session = denoiser.session(2)
    for step in range(3):
        call(session, policy, [0, 1], [step, step])
    session.clear(torch.tensor([0]))
    for step in range(2):
        output = call(session, policy, [2, 1], [step, 3 + step])
        assert_row_equals(output, 0, wanted[2][step])
        assert_row_equals(output, 1, wanted[1][3 + step])


def test_selecting_copies_so_that_one_branch_does_not_change_another():
    policy = POLICIES["corrected"]
    wanted = alone(MODEL, policy, 0)
    session = MODEL.session(1)
    call(session, policy, [0], [0])
    branch = session.select(torch.tensor([0]))
    for step in (1, 2):
        call(branch, policy, [3], [step])
    assert_row_equals(call(session, policy, [0], [1]), 0, wanted[1])


@given(
    groups=st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS),
    steps=st.lists(st.integers(0, STEPS - 1), min_size=ROWS, max_size=ROWS),
)
def test_tied_rows_exit_after_the_first_layer_where_all_of_them_may(groups, steps):
    rows = torch.arange(ROWS)
    sample, time = SAMPLES[rows, torch.tensor(steps)], TIMES[torch.tensor(steps)]
    policy = POLICIES["per step"]
    taus, seen = policy.tau, predict(MODEL, sample, time, return_uncertainties=True).uncertainties
    output = predict(MODEL, sample, time, policy=policy, step=steps, ties=torch.tensor(groups))
    for row in range(ROWS):
        tied = [other for other in range(ROWS) if groups[other] == groups[row]]
        may = [i for i in range(1, 5) if all(seen[other, i - 1] < taus[steps[other]] for other in tied)]
        assert output.exit_layers[row] == (may or [5])[0]


def test_a_batch_mean_is_refused_at_several_steps():
    session = MODEL.session(2)
    call(session, BatchMeanExit(0.5), [0, 1], [2, 2])
    with pytest.raises(InputError, match="at one and the same step"):
        call(session, BatchMeanExit(0.5), [0, 1], [2, 3])


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: predict(MODEL.session(3), SAMPLES[:2, 0], 9.0), "the inputs have 2 rows: give one for each row .* 3"),
        (lambda: predict(MODEL.session(2), SAMPLES[:2, 0], 9.0, ties=torch.zeros(3).long()), "the ties have 3 rows"),
        (lambda: MODEL.session(1).join(SkipCaching(MODEL, 2).session(1)), "belong to two denoisers"),
    ],
    ids=["inputs", "ties", "join"],
)
def test_what_does_not_fit_a_session_is_named(run, message):
    with pytest.raises(InputError, match=message):
        run()
