"""What an exit policy says of the rows of one call, each at its own step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adadiff.policies import ExitPolicy, ExitQuery
from adadiff.runtime.ties import all_tied, any_tied


@dataclass(frozen=True)
class RowRules:
    """The decisions of a policy, by row.

    Args:
        policies: The policies in force: the caller's, and those it gives for rows that lack corrections.
        policy_of_row: Position in `policies` of each row's policy, (batch,) int64.
        steps: The step of each row, (batch,) int64.
        ties: Groups of rows that exit together, (batch,) int64, or None.
        estimated: Whether the estimator runs on a row after each layer, (batch, N) bool.
        measured: Whether a row's correction is measured at each layer if it runs all of them, (batch, N) bool.
        skipped: Whether the network does not run on a row, (batch,) bool.
        carried: Whether a row's prediction is kept as the correction of layer 0 if it runs all layers, (batch,) bool.
        extrapolation: Weights by which a row's corrections are carried on, (batch, 3).
    """

    policies: list[ExitPolicy]
    policy_of_row: Tensor
    steps: Tensor
    ties: Tensor | None
    estimated: Tensor
    measured: Tensor
    skipped: Tensor
    carried: Tensor
    extrapolation: Tensor

    @classmethod
    def of(
        cls,
        policy: ExitPolicy,
        steps: Tensor,
        depth: int,
        corrected: Tensor,
        ties: Tensor | None,
        return_uncertainties: bool,
    ) -> RowRules:
        """Ask a policy about each row's step.

        Args:
            policy: The exit policy.
            steps: The step of each row, (batch,) int64.
            depth: Number of layers N.
            corrected: For which rows any correction was measured, (batch,) bool.
            ties: Groups of rows that exit together, (batch,) int64, or None.
            return_uncertainties: Whether the estimator runs on all rows after every layer.
        """
        lacking = any_tied(~corrected, ties)  # tied rows run the same layers, so they follow the same rule
        kind_of_row = list(zip(steps.tolist(), lacking.tolist(), strict=True))
        kinds = {kind: k for k, kind in enumerate(dict.fromkeys(kind_of_row))}
        policies, estimated, measured, skipped, carried, weights = [], [], [], [], [], []
        for step, lacks in kinds:
            own = policy.without_corrections(step, depth) if lacks else policy
            policies.append(own)
            reads = [return_uncertainties or own.reads_uncertainty(step, layer) for layer in range(1, depth)]
            estimated.append([*reads, return_uncertainties])
            wanted = own.corrected_layers(step, depth)
            measured.append([layer in wanted for layer in range(1, depth + 1)])
            skipped.append(own.skips(step))
            carried.append(0 in wanted)
            weights.append(own.extrapolation_at(step))
        row = torch.tensor([kinds[kind] for kind in kind_of_row], dtype=torch.int64)  # (batch,)
        if all(own is policy for own in policies):
            policies, policy_of_row = [policy], torch.zeros_like(row)
        else:
            policy_of_row = row
        by_row = (torch.tensor(values)[row] for values in (estimated, measured, skipped, carried, weights))
        return cls(policies, policy_of_row, steps, ties, *by_row)

    def exits(self, layer: int, rows: Tensor, uncertainties: Tensor) -> Tensor:
        """Decide which of the remaining rows exit after a layer; after the last, all of them.

        Args:
            layer: The layer just run, 1..N.
            rows: Positions of the remaining rows, (remaining,) int64.
            uncertainties: Their mean uncertainties after layers 1..layer, (remaining, layer) float32.

        Returns:
            (remaining,) bool.
        """
        if layer == self.estimated.shape[1]:
            return torch.ones(len(rows), dtype=torch.bool)
        query = ExitQuery(at_rows(self.steps, rows), layer, rows, uncertainties)
        exiting = self._answer(query) if len(self.policies) > 1 else self.policies[0].leaves(query)
        return exiting if self.ties is None else all_tied(exiting, at_rows(self.ties, rows))

    def _answer(self, query: ExitQuery) -> Tensor:
        """Ask several policies, each about its rows."""
        exiting = torch.zeros(len(query), dtype=torch.bool)
        for k, policy in enumerate(self.policies):
            asked = (self.policy_of_row[query.rows] == k).nonzero().squeeze(1)
            if len(asked):
                part = ExitQuery(query.step[asked], query.layer, query.rows[asked], query.uncertainty[asked])
                exiting[asked] = policy.leaves(part)
        return exiting


def at_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return the values, (batch, ...), of some rows in ascending order; without a copy if they are all."""
    return values if len(rows) == len(values) else values[rows]
