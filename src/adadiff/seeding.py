"""Randomness that depends on a seed and a position alone, never on batch sizes, processes or what came before."""

from __future__ import annotations

import numpy as np
import torch


def generator_for(seed: int, position: int) -> torch.Generator:
    """The CPU generator of the `position`-th sample under `seed`, both >= 0."""
    state = np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
