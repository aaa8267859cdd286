"""What a search is for: a budget of compute, and floors that the images must reach."""

from __future__ import annotations

from dataclasses import dataclass

from adadiff.utils.errors import InputError


@dataclass(frozen=True)
class TuningGoal:
    """A budget, or none, and floors: at most one of `compute`, `gflops` and `seconds`.

    Args:
        compute: FLOPs of an image over those of the default plan with all layers, above 0.
        gflops: Billions of FLOPs of an image, above 0.
        seconds: Seconds that an image takes on this machine, in a batch, above 0.
        agreement: Least share of images that the first network assigns to the requested class, in [0, 1].
        precision: Least precision by the first network, in [0, 1].
        recall: Least recall by the first network, in [0, 1].
        clip_score: Least CLIP score of prompts, in [0, 100].

    Raises:
        InputError: If there are several budgets, or a value is out of range.

    Examples:
        >>> TuningGoal(compute=0.45, agreement=0.68).floors
        {'agreement': 0.68}
    """

    compute: float | None = None
    gflops: float | None = None
    seconds: float | None = None
    agreement: float | None = None
    precision: float | None = None
    recall: float | None = None
    clip_score: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.budget.items():
            if not value > 0:
                raise InputError(f"the budget {name} is {value}: it must be above 0")
        if len(self.budget) > 1:
            raise InputError(f"give at most one budget: {' or '.join(self.budget)}")
        for name, value in self.floors.items():
            most = 100 if name == "clip_score" else 1
            if not 0 <= value <= most:
                raise InputError(f"the floor {name} is {value}: it must be between 0 and {most}")

    @property
    def budget(self) -> dict[str, float]:
        """The budget by its name; empty for the whole front."""
        return self._given("compute", "gflops", "seconds")

    @property
    def floors(self) -> dict[str, float]:
        """The floors that are set, by name."""
        return self._given("agreement", "precision", "recall", "clip_score")

    def _given(self, *names: str) -> dict[str, float]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}
