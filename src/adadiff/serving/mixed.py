"""Several exit policies in one call: each sample's step carries the number of the policy it follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adadiff.policies import ExitPolicy, ExitQuery
from adadiff.utils.errors import InputError

STRIDE = 2**20
"""More than any number of steps: step `s` of the policy numbered `n` is written `n * STRIDE + s`."""

PROBES = 12


@dataclass(frozen=True)
class MixedPolicy(ExitPolicy):
    """Lets every sample of a call follow an exit policy of its own.

    Only differences of steps enter the corrections of a sample, so that numbers beyond its own steps do no harm.

    Args:
        policies: The policies by their number.

    Examples:
        >>> from adadiff.policies import FixedExit, NeverExit
        >>> policy = MixedPolicy({0: NeverExit(), 1: FixedExit(2)})
        >>> steps = torch.tensor([4, STRIDE + 7])
        >>> policy.leaves(ExitQuery(steps, 2, torch.arange(2), torch.full((2, 2), torch.nan)))
        tensor([False,  True])
    """

    policies: Mapping[int, ExitPolicy]

    def leaves(self, query: ExitQuery) -> Tensor:
        numbers, steps = query.step // STRIDE, query.step % STRIDE
        if len(self.policies) == 1:
            (policy,) = self.policies.values()
            return policy.leaves(ExitQuery(steps, query.layer, query.rows, query.uncertainty))
        leaving = torch.zeros(len(query), dtype=torch.bool)
        for number, policy in self.policies.items():
            asked = (numbers == number).nonzero().squeeze(1)
            if len(asked):
                part = ExitQuery(steps[asked], query.layer, query.rows[asked], query.uncertainty[asked])
                leaving[asked] = policy.leaves(part)
        return leaving

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return self._of(step).reads_uncertainty(step % STRIDE, layer)

    def skips(self, step: int) -> bool:
        return self._of(step).skips(step % STRIDE)

    def extrapolation_at(self, step: int) -> tuple[float, float, float]:
        return self._of(step).extrapolation_at(step % STRIDE)

    def corrected_layers(self, step: int, depth: int) -> tuple[int, ...]:
        return self._of(step).corrected_layers(step % STRIDE, depth)

    def without_corrections(self, step: int, depth: int) -> ExitPolicy:
        own = self._of(step)
        other = own.without_corrections(step % STRIDE, depth)
        return self if other is own else MixedPolicy({step // STRIDE: other})

    def _of(self, step: int) -> ExitPolicy:
        return self.policies[step // STRIDE]


def require_independent(policy: ExitPolicy, evaluations: int, depth: int) -> None:
    """Raise InputError if a sample's exit depends on the rest of its batch.

    The policy is asked about rows of widely different uncertainties and steps, together and each alone: the answers
    must be the same.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(PROBES)
    uncertainty = 10 ** (-4 * torch.rand(PROBES, depth, generator=generator))  # from 0.0001 to 1
    steps = torch.randint(evaluations, (PROBES,), generator=generator)
    for layer in range(1, depth):
        for asked in (steps, steps[:1].expand(PROBES)):
            alone = [_leaves(policy, asked[k : k + 1], layer, uncertainty[k : k + 1, :layer]) for k in range(PROBES)]
            try:
                together = policy.leaves(ExitQuery(asked, layer, rows, uncertainty[:, :layer])).tolist()
            except InputError:
                together = None
            if together != alone:
                raise InputError(
                    f"the policy {policy.name()} looks at the whole batch, so that an image would depend on its "
                    f"neighbours: serve a policy that decides for each sample on its own"
                )


def _leaves(policy: ExitPolicy, step: Tensor, layer: int, uncertainty: Tensor) -> bool:
    return bool(policy.leaves(ExitQuery(step, layer, torch.zeros(1, dtype=torch.int64), uncertainty)))
