"""Random generators that depend only on a seed and a position, not on batch sizes, processes or earlier draws."""

from __future__ import annotations

import numpy as np
import torch


def generator_for(seed: int, position: int) -> torch.Generator:
    """Return the CPU generator of the sample at `position` for `seed`; both are >= 0."""
    state = np.random.SeedSequence((seed, position)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
