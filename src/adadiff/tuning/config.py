"""The settings of a search for plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from adadiff.tuning.goal import TuningGoal
from adadiff.utils.errors import InputError

SEARCHED_BY = ("small", "statistics")
"""Networks that a search goes by, unless others are named."""

JUDGED_BY = ("unlabelled",)
"""Networks that name the winner, unless others are named."""

SEED = 3_000_000
"""Default seed of the noise to search by, another than the defaults of sampling and of calibrating."""


@dataclass(frozen=True)
class TuneConfig:
    """How to search.

    Args:
        goal: Budget and floors.
        features: Networks that the search goes by; class agreement, precision and recall go by the first.
        judges: Networks that name the winner, at least one that the search does not go by.
        trials: Plans tried, and as many settings of the full model.
        images: Images of a trial in each round, growing.
        confirm: Fresh images that the best plans are measured on.
        batch_size: Images per batch.
        seed: Seed of the noise and of the proposals.

    Raises:
        InputError: If a network is named twice, or is both searched by and a judge, there is no judge, or the numbers
            do not grow.
    """

    goal: TuningGoal = field(default_factory=TuningGoal)
    features: tuple[str, ...] = SEARCHED_BY
    judges: tuple[str, ...] = JUDGED_BY
    trials: int = 60
    images: tuple[int, ...] = (250, 1000, 4000)
    confirm: int = 10_000
    batch_size: int = 50
    seed: int = SEED

    def __post_init__(self) -> None:
        both = [name for name in self.judges if name in self.features]
        if both or not self.judges or not self.features:
            named = f"{both[0]} is among both" if both else "there is none of one kind"
            raise InputError(
                f"a search goes by some networks and its winner is named by others, and {named}: set --features and "
                f"--judges to different networks"
            )
        for kind, names in (("features", self.features), ("judges", self.judges)):
            if len(set(names)) < len(names):
                raise InputError(f"the {kind} {', '.join(names)} name a network twice: name each once")
        if not self.images or list(self.images) != sorted(set(self.images)):
            raise InputError(f"the numbers of images are {shown_numbers(self.images)}: they must grow")


def shown_numbers(numbers: Sequence[int]) -> str:
    """Return numbers as text, separated by commas."""
    return ", ".join(map(str, numbers)) or "missing"
