"""Exits and FLOPs of an image as its policy plans them, known before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    spent = []
    for (rules, exits), layer_read in zip(_planned(policy, len(parts.layers), guided, tied), read, strict=True):
        if rules.estimated.any():
            raise InputError(
                f"the exits of {policy.name()} depend on the samples, so that its compute is only known by sampling"
            )
        heads = rules.measured.clone()  # (rows, N)
        if layer_read:
            heads[:, layer_read - 1] = True
        spent.append(int(parts.until_exit(exits, rules.estimated, heads).sum()))
    return tuple(spent)


def planned_layers(policy: ExitPolicy, depth: int, guided: Sequence[bool], tied: bool = True) -> tuple[int, ...]:
    """Predict the layers that an image runs at each evaluation, as if it were never certain enough for a threshold.

    Args:
        policy: The exit policy.
        depth: Number of layers N of the model.
        guided: For each evaluation whether it is guided, and so runs an unconditional row too.
        tied: Whether both rows of a guided evaluation exit together.

    Returns:
        For each evaluation a number in 0..N, that of the deeper row: exact for schedules, the most that can be for
        thresholds.

    Examples:
        >>> from adadiff.policies import CorrectedScheduleExit, ThresholdExit
        >>> planned_layers(CorrectedScheduleExit((9, 0, 9, 2)), depth=9, guided=[False] * 4)
        (9, 0, 9, 2)
        >>> planned_layers(CorrectedScheduleExit((9, 0, 9, 2)), depth=9, guided=[False, True, True, True])
        (9, 9, 9, 2)
        >>> planned_layers(ThresholdExit(0.1), depth=9, guided=[True, True])
        (9, 9)
    """
    return tuple(int(exits.max()) for _, exits in _planned(policy, depth, guided, tied))


def _planned(
    policy: ExitPolicy, depth: int, guided: Sequence[bool], tied: bool
) -> Iterator[tuple[RowRules, torch.Tensor]]:
    """Yield the rules of an image's rows at each evaluation, and the layers after which they exit, (rows,)."""
    corrected = torch.zeros(1, dtype=torch.bool)  # (rows,): the conditional row, then the unconditional one
    for step, both in enumerate(guided):
        rows = torch.arange(2 if both else 1)
        corrected = torch.cat([corrected, corrected.new_zeros(1)])[: len(rows)]  # a row that is new has no corrections
        ties = torch.zeros_like(rows) if tied and both else None
        rules = RowRules.of(policy, torch.full_like(rows, step), depth, corrected, ties, return_uncertainties=False)
        exits = _exit_layers(rules, depth)
        yield rules, exits
        corrected = corrected | ((exits == depth) & (rules.carried | rules.measured.any(1)))


def _exit_layers(rules: RowRules, depth: int) -> torch.Tensor:
    exits = torch.zeros(len(rules.steps), dtype=torch.int64)
    remaining = (~rules.skipped).nonzero().squeeze(1)
    for layer in range(1, depth + 1):
        exiting = rules.exits(layer, remaining, torch.full((len(remaining), layer), torch.nan))
        exits[remaining[exiting]] = layer
        remaining = remaining[~exiting]
    return exits
