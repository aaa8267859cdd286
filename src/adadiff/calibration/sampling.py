"""What a calibration samples with: a pipeline, its settings and its noise, whatever the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adadiff.calibration.cache import Tensors
from adadiff.policies import ExitPolicy
from adadiff.policies.stored import CalibrationContext
from adadiff.runtime import PartFlops


@dataclass(frozen=True)
class Batch:
    """Samples, and what they cost.

    Args:
        images: The samples, (samples, ...) float32 on the CPU.
        flops: FLOPs spent.
        full_flops: FLOPs of the full model for the same predictions.
    """

    images: Tensor
    flops: float
    full_flops: float


class Sampling(ABC):
    """Samples by number, with any policy: sample k depends on the seed and k alone, not on the batch.

    Exits are counted as the calibration records them, from 1 to the last, which is the full model.
    """

    @property
    @abstractmethod
    def parts(self) -> PartFlops:
        """FLOPs from one recorded exit to the next, and of reading a prediction off; known once a batch is recorded."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Number of evaluations of the model in a trajectory."""

    @abstractmethod
    def with_steps(self, steps: int) -> Sampling:
        """Return the same sampling with another number of steps."""

    @abstractmethod
    def batch(self, policy: ExitPolicy, numbers: Sequence[int]) -> Batch:
        """Sample one batch with a policy of the model."""

    @abstractmethod
    def record(self, numbers: Sequence[int]) -> Tensors:
        """Sample one batch with the full model, and record every exit: the fields of `ExitRecord`."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Describe, as plain values, everything that samples depend on, except for their numbers."""

    @abstractmethod
    def context(self) -> CalibrationContext:
        """Return what a policy calibrated here fits."""

    def coefficients(self) -> Tensor | None:
        """Return what the scheduler makes of an error at each evaluation, (evaluations,); None if it is not known."""
        return None

    def predictions(self, evaluations: int) -> Tensor | None:
        """Return how many predictions each evaluation takes, (evaluations,); None if equally many."""
        return None

    def fewer_steps(self, compute: float) -> Mapping[int, Sampling]:
        """Return the same sampling with fewer steps, by their number: just below and above a fraction of the compute.

        Empty if it is not known how.
        """
        return {}

    def on_model(self, policy: ExitPolicy) -> ExitPolicy:
        """Return the policy of the model for a policy that counts recorded exits."""
        return policy
