"""What plans are searched for: a model with its default plan, which knows what a plan costs and samples by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from adadiff.calibration.sampling import Sampling
from adadiff.policies.stored import CalibrationContext
from adadiff.sampling import SamplingPlan
from adadiff.sampling.folder import Batch
from adadiff.tuning.space import Space


class Tunable(ABC):
    """A model that plans are searched for, whatever runs it.

    Args:
        default: Its default plan with all layers, which compute is relative to.
        classes: Classes that its images show in turn, by name where they have one; empty if it has none.
        prompts: Prompts of its images, in turn; empty if it takes none.

    Attributes:
        is_own: Whether it is a model of adadiff's own, which can run with a baseline, and not a stock pipeline.
    """

    is_own: ClassVar[bool] = True

    def __init__(self, default: SamplingPlan, classes: tuple[str | int, ...], prompts: tuple[str, ...]) -> None:
        self.default, self.classes, self.prompts = default, classes, prompts

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of layers N."""

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of its images."""

    @property
    @abstractmethod
    def prediction_flops(self) -> float:
        """FLOPs of one prediction with all layers, in the same units."""

    @abstractmethod
    def flops(self, plan: SamplingPlan) -> float:
        """Return the FLOPs of an image by a plan, in units of `unit_flops`.

        Raises:
            InputError: If they depend on the samples.
        """

    @property
    def unit_flops(self) -> float:
        """FLOPs in one unit of `flops` and `prediction_flops`."""
        return 1.0

    @abstractmethod
    def space(self) -> Space:
        """Return what a search may choose."""

    @abstractmethod
    def sampled(self, plan: SamplingPlan, seed: int, batches: Iterator[Sequence[int]]) -> Iterator[Batch]:
        """Sample batches of images by a plan, and yield them in any order.

        Args:
            plan: The plan.
            seed: Seed of the noise; image k depends on it and on k alone.
            batches: The indices of the images of each batch.

        Yields:
            The indices of a batch, and each image as the content of a PNG file, with its FLOPs as PNG text.

        Raises:
            NonFiniteImagesError: If an image is NaN or infinite.
        """

    @abstractmethod
    def sampling(self, plan: SamplingPlan, seed: int) -> Sampling:
        """Return what records the exits at a plan's settings, and samples with policies."""

    @abstractmethod
    def context(self, plan: SamplingPlan) -> CalibrationContext:
        """Return what a plan is stored with: the model, and the plan without its policy."""

    @abstractmethod
    def describe(self, seed: int) -> dict[str, Any]:
        """Describe, as plain values, everything that images by the default plan depend on."""

    def kept(self) -> AbstractContextManager[None]:
        """Return a context that leaves the model as it was."""
        return nullcontext()
