"""Exits and FLOPs of policies that ignore the samples, known before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adadiff.policies import ExitPolicy
from adadiff.runtime.flops import PartFlops
from adadiff.runtime.rules import RowRules
from adadiff.utils.errors import InputError


def planned_flops(
    policy: ExitPolicy, parts: PartFlops, guided: Sequence[bool], tied: bool, read: Sequence[int]
) -> tuple[int, ...]:
    """Predict the FLOPs of one image at each evaluation of the model, exactly.

    Args:
        policy: A policy that reads no uncertainty.
        parts: FLOPs of the model's parts.
        guided: For each evaluation whether it is guided, and so runs an unconditional row too.
        tied: Whether both rows of a guided evaluation exit together.
        read: For each evaluation the layer that internal guidance reads a prediction off, or 0.

    Raises:
        InputError: If the policy's exits depend on the samples.
    """
    depth, spent = len(parts.layers), []
    corrected = torch.zeros(1, dtype=torch.bool)  # (rows,): the conditional row, then the unconditional one
    for step, both in enumerate(guided):
        rows = torch.arange(2 if both else 1)
        corrected = torch.cat([corrected, corrected.new_zeros(1)])[: len(rows)]  # a row that is new has no corrections
        ties = torch.zeros_like(rows) if tied and both else None
        rules = RowRules.of(policy, torch.full_like(rows, step), depth, corrected, ties, return_uncertainties=False)
        if rules.estimated.any():
            raise InputError(
                f"the exits of {policy.name()} depend on the samples, so that its compute is only known by sampling"
            )
        exits = _exit_layers(rules, depth)
        heads = rules.measured.clone()  # (rows, N)
        if read[step]:
            heads[:, read[step] - 1] = True
        spent.append(int(parts.until_exit(exits, rules.estimated, heads).sum()))
        corrected = corrected | ((exits == depth) & (rules.carried | rules.measured.any(1)))
    return tuple(spent)


def _exit_layers(rules: RowRules, depth: int) -> torch.Tensor:
    exits = torch.zeros(len(rules.steps), dtype=torch.int64)
    remaining = (~rules.skipped).nonzero().squeeze(1)
    for layer in range(1, depth + 1):
        exiting = rules.exits(layer, remaining, torch.full((len(remaining), layer), torch.nan))
        exits[remaining[exiting]] = layer
        remaining = remaining[~exiting]
    return exits
