"""Exit policies: when does a sample leave? What all of them have in common.

A policy looks at the mean uncertainties of the samples still there and says which of them leave. It keeps nothing
between calls, so that one object serves any number of samples, steps and threads. A new rule is one class, anywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

from adadiff.errors import InputError
from adadiff.ranges import as_float

POLICIES: dict[str, type[ExitPolicy]] = {}
"""Every policy class by the name it is stored under; subclasses of `ExitPolicy` enter themselves."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class ExitQuery:
    """What a policy may look at after a layer.

    Args:
        step: Sampling step, counted from 0.
        layer: The layer just run, 1..N-1 (after layer N everybody leaves unasked).
        samples: Which of the batch's samples are still there, (remaining,) int64, on the CPU.
        uncertainty: Their mean uncertainties after layers 1..layer, (remaining, layer) float32 in [0, 1], on the CPU;
            NaN after layers where no estimator ran.
    """

    step: int
    layer: int
    samples: Tensor
    uncertainty: Tensor


class ExitPolicy(ABC):
    """Decides when samples leave.

    A subclass is a frozen dataclass of plain values. It registers itself when its module is imported, and is then
    stored, loaded, stretched and checked like the policies of this package.

    Example:
        >>> @dataclass(frozen=True)
        ... class FallingThreshold(ExitPolicy):
        ...     tau: float
        ...     rate: float
        ...
        ...     def leaves(self, query: ExitQuery) -> Tensor:
        ...         return query.uncertainty[:, -1] < self.tau * self.rate**query.step
        ...
        ...     def reads_uncertainty(self, step: int, layer: int) -> bool:
        ...         return True
        >>> FallingThreshold(0.1, 0.98).describe()["tau"]
        0.1
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        POLICIES[cls.name()] = cls

    @classmethod
    def name(cls) -> str:
        """The name that the policy is stored under: of a class outside this package, with its module."""
        own = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        return cls.__qualname__ if own else f"{cls.__module__}:{cls.__qualname__}"

    @abstractmethod
    def leaves(self, query: ExitQuery) -> Tensor:
        """Decide which of the remaining samples leave after this layer: (remaining,) bool."""

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        """Say whether the policy wants the uncertainty after this layer at this step; others are not estimated."""
        return False

    def corrected_layers(self, step: int, depth: int) -> tuple[int, ...]:
        """Name the layers whose predictions are read off at this step for samples that run all `depth` layers.

        What the later layers add to these predictions corrects exits there at later steps (`corrections.py`).
        """
        return ()

    def without_corrections(self, step: int, depth: int) -> ExitPolicy:
        """Return what takes the policy's place at a step before which the corrections of its exits were lost."""
        return self

    def check(self, depth: int, num_steps: int) -> None:  # noqa: B027 - most policies fit any model
        """Raise InputError where the policy does not fit a model of so many layers or so many sampling steps."""

    def stretched(self, num_steps: int) -> ExitPolicy:
        """Return the policy for another number of sampling steps: at each, the rule at the same relative position."""
        return self

    def table(self, num_steps: int, depth: int) -> Tensor | None:
        """Return the rule as thresholds on the mean uncertainty, where it is one.

        Returns:
            (num_steps, depth - 1) float32 in [0, 1]: a sample leaves at the first layer where its uncertainty, in
            [0, 1), is below the threshold; 0 never leaves and 1 always does. None for rules that count layers or look
            at the rest of the batch.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """Return the policy's name and settings as plain values.

        Raises:
            InputError: If the class is no dataclass, so that its settings are unknown.
        """
        if not is_dataclass(self):
            raise InputError(f"the policy {self.name()} is no dataclass: decorate it with @dataclass(frozen=True)")
        return {"policy": self.name(), **asdict(self)}


def stretched_rows(rows: tuple[Row, ...], num_steps: int) -> tuple[Row, ...]:
    """Return one row for each of `num_steps` steps: the one at the same relative position."""
    return tuple(rows[int((step + 0.5) / num_steps * len(rows))] for step in range(num_steps))


def checked_tau(tau: float) -> float:
    """Return a threshold as a float; raise InputError where it is not in [0, 1]."""
    number = as_float(tau, "tau")
    if not 0 <= number <= 1:
        raise InputError(f"tau is {tau}: an uncertainty, and so a threshold, is between 0 and 1")
    return number


def check_layer(name: str, layer: int, depth: int) -> None:
    """Raise InputError where the layer is not one of 1 to `depth`."""
    if not 1 <= layer <= depth:
        raise InputError(f"{name} is {layer}: the model's layers are numbered 1 to {depth}")
