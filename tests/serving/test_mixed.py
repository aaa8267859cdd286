"""Several policies in one call, and what is known of a policy before it is served."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from adadiff import (
    BatchMeanExit,
    CorrectedScheduleExit,
    ExitPolicy,
    FixedExit,
    NeverExit,
    PatienceExit,
    ScheduleExit,
    ThresholdExit,
)
from adadiff.policies import ExitQuery, TableExit
from adadiff.serving.mixed import STRIDE, MixedPolicy, require_independent
from adadiff.utils.errors import InputError
from tests.serving.traffic import DEPTH

STEPS = 4
INDEPENDENT: list[ExitPolicy] = [
    NeverExit(),
    FixedExit(2),
    ScheduleExit((5, 1, 3, 5)),
    CorrectedScheduleExit((5, 0, 5, 2)),
    ThresholdExit(0.1),
    ThresholdExit((0.1, 0.0, 0.3, 0.9), min_layer=2),
    ThresholdExit((0.1, 0.2, 0.3, 0.2, 0.1), per="layer"),
    TableExit(((0.0, 0.0, 0.0, 0.0), (0.1, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (0.5, 0.5, 0.5, 0.5))),
    PatienceExit(0.1, patience=2),
]


@dataclass(frozen=True)
class FirstRowExit(ExitPolicy):
    """Lets the first row of the batch exit: a rule that looks at a row's place."""

    def leaves(self, query: ExitQuery) -> Tensor:
        return query.rows == 0


@dataclass(frozen=True)
class CertainHalfExit(ExitPolicy):
    """Lets the more certain half of the batch exit; alone, a row does."""

    def leaves(self, query: ExitQuery) -> Tensor:
        return query.uncertainty[:, -1] <= query.uncertainty[:, -1].median()

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return True


@pytest.mark.parametrize("policy", INDEPENDENT)
def test_policies_that_decide_by_sample_are_served(policy: ExitPolicy) -> None:
    require_independent(policy, STEPS, DEPTH)


@pytest.mark.parametrize("policy", [BatchMeanExit(0.1), BatchMeanExit(0.9), FirstRowExit(), CertainHalfExit()])
def test_policies_that_look_at_the_batch_are_refused(policy: ExitPolicy) -> None:
    with pytest.raises(InputError, match="looks at the whole batch"):
        require_independent(policy, STEPS, DEPTH)


def test_every_row_follows_its_own_policy() -> None:
    policies = dict(enumerate(INDEPENDENT))
    mixed = MixedPolicy(policies)
    generator = torch.Generator().manual_seed(0)
    numbers, steps = (torch.randint(most, (40,), generator=generator) for most in (len(policies), STEPS))
    uncertainty = torch.rand(40, DEPTH, generator=generator) ** 3
    for layer in range(1, DEPTH):
        asked = uncertainty[:, :layer]
        leaving = mixed.leaves(ExitQuery(numbers * STRIDE + steps, layer, torch.arange(40), asked))
        for row, (number, step) in enumerate(zip(numbers.tolist(), steps.tolist(), strict=True)):
            query = ExitQuery(steps[row : row + 1], layer, torch.tensor([0]), asked[row : row + 1])
            own, coded = policies[number], number * STRIDE + step
            assert leaving[row] == own.leaves(query)[0]
            assert mixed.reads_uncertainty(coded, layer) == own.reads_uncertainty(step, layer)
            assert mixed.corrected_layers(coded, DEPTH) == own.corrected_layers(step, DEPTH)
            assert mixed.skips(coded) == own.skips(step)
            without = mixed.without_corrections(coded, DEPTH)
            expected = own.without_corrections(step, DEPTH)
            assert without.skips(coded) == expected.skips(step)
            assert without.corrected_layers(coded, DEPTH) == expected.corrected_layers(step, DEPTH)
