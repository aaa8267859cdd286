"""Witnesses of a model's images: real images read once, and their features by several networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from adadiff.data import DataConfig
from adadiff.evaluation.evaluate import ClipScorer, judge_for
from adadiff.tuning.measure import Witness


def witnesses_for(
    model: Path, data: DataConfig, names: Sequence[str], clip: str | None, device: torch.device
) -> tuple[dict[str, Witness], ClipScorer | None]:
    """Load feature networks and compute their features of the real images, or take those that are stored.

    Args:
        model: Model folder, whose size and channels the real images are converted to.
        data: The real images.
        names: Names of the networks, as `adadiff evaluate` takes them.
        clip: Name of a CLIP model, for a model that takes text.
        device: Device that the networks run on.

    Returns:
        The witnesses by name, in order, and the CLIP scorer if one is named.

    Raises:
        InputError: If the data or a network is missing, or the images do not fit the model or are too few.
    """
    judges = {name: judge_for(model, data, name, clip if name == names[0] else None, device) for name in names}
    return {name: Witness(judge.network, judge.reference) for name, judge in judges.items()}, judges[names[0]].clip
