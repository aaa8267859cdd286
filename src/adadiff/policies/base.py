"""The base class of exit policies, and the registry that makes a user's own class storable.

After each layer a policy reads the mean uncertainties of the rows still in the batch and decides which of them
exit. Policies are stateless, so one object serves any number of batches, steps and threads. A new rule is one
subclass of `ExitPolicy`, in any module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

from adadiff.utils.errors import InputError
from adadiff.utils.modules import stored_name
from adadiff.utils.ranges import as_float

POLICIES: dict[str, type[ExitPolicy]] = {}
"""All policy classes, keyed by the name they are stored under; subclasses of `ExitPolicy` register themselves."""

LINE = (1.0, 1.0, 0.0)
"""Weights of value, slope and curvature that carry a correction on along a straight line."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class ExitQuery:
    """The input of an exit decision: the layer, and the rows of the batch that have not exited, each at its own step.

    Args:
        step: Sampling step of each row, counted from 0, (remaining,) int64, on the CPU.
        layer: The layer just run, 1..N-1 (after layer N every row exits, and no policy is asked).
        rows: Positions of the rows in the batch, (remaining,) int64, on the CPU.
        uncertainty: Their mean uncertainties after layers 1..layer, (remaining, layer) float32 in [0, 1], on the CPU;
            NaN after layers where no estimator ran.
    """

    step: Tensor
    layer: int
    rows: Tensor
    uncertainty: Tensor

    def __len__(self) -> int:
        return len(self.rows)


class ExitPolicy(ABC):
    """Decides after which layer each sample exits.

    A subclass is a frozen dataclass of plain values. It registers itself when its module is imported; from then on it
    is stored, loaded, stretched and checked like the policies of this package.

    Examples:
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
        """Return the name that the policy is stored under: the class name, after its module if that is not ours."""
        return stored_name(cls, own=cls.__qualname__)

    @abstractmethod
    def leaves(self, query: ExitQuery) -> Tensor:
        """Decide which of the remaining rows exit after this layer.

        Returns:
            (remaining,) bool, on the CPU: True where the row exits.
        """

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        """Return whether the policy reads the uncertainty after this layer at this step; if not, no estimator runs."""
        return False

    def skips(self, step: int) -> bool:
        """Return whether the network does not run at this step: samples exit after layer 0.

        Their prediction is the correction of layer 0 alone: the last full predictions, extrapolated. A policy that
        skips steps names 0 in `corrected_layers` at the full steps before.
        """
        return False

    def extrapolation_at(self, step: int) -> tuple[float, float, float]:
        """Return the weights of value, slope and curvature by which corrections are carried on to this step.

        (1, 1, 0) is a line through the last two measurements, (1, 1, 1) a parabola through the last three
        (`runtime/extrapolation.py`).
        """
        return LINE

    def corrected_layers(self, step: int, depth: int) -> tuple[int, ...]:
        """Return the layers whose corrections are measured at this step, on samples that run all `depth` layers.

        The correction of layer i is the final prediction minus the prediction read off after layer i. It is added to
        predictions of samples that exit after layer i at later steps (`runtime/corrections.py`). Layer 0 predicts
        nothing, so that its correction is the final prediction itself.
        """
        return ()

    def without_corrections(self, step: int, depth: int) -> ExitPolicy:
        """Return the policy for a row of which no correction has been measured when it gets to this step.

        So it is with the unconditional half where guidance begins later than the sampling.
        """
        return self

    def check(self, depth: int, num_steps: int) -> None:  # noqa: B027 - most policies fit any model
        """Raise InputError if the policy does not fit a model of `depth` layers or sampling with `num_steps` steps."""

    @property
    def num_steps(self) -> int | None:
        """Number of sampling steps that the policy has rules for; None if it fits any number."""
        return None

    def stretched(self, num_steps: int) -> ExitPolicy:
        """Return the policy for another number of sampling steps.

        Each new step follows the rule of the old step at the same relative position.
        """
        return self

    def table(self, num_steps: int, depth: int) -> Tensor | None:
        """Return the policy as a table of thresholds on the mean uncertainty, if it can be written as one.

        Returns:
            (num_steps, depth - 1) float32 in [0, 1]: a sample exits after the first layer where its uncertainty, in
            [0, 1), is below the threshold; 0 never exits and 1 always does. None for rules that count layers or depend
            on the rest of the batch.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """Return the policy's name and settings as plain values.

        Raises:
            InputError: If the class is not a dataclass, so that its settings are unknown.
        """
        if not is_dataclass(self):
            raise InputError(f"the policy {self.name()} is not a dataclass: decorate it with @dataclass(frozen=True)")
        return {"policy": self.name(), **asdict(self)}


def stretched_rows(rows: tuple[Row, ...], num_steps: int) -> tuple[Row, ...]:
    """Return one row for each of `num_steps` steps, taken from the same relative position among `rows`."""
    return tuple(rows[int((step + 0.5) / num_steps * len(rows))] for step in range(num_steps))


def checked_tau(tau: float) -> float:
    """Return the threshold as a float; raise InputError if it is not in [0, 1]."""
    number = as_float(tau, "tau")
    if not 0 <= number <= 1:
        raise InputError(f"tau is {tau}: an uncertainty, and so a threshold, is between 0 and 1")
    return number


def check_layer(name: str, layer: int, depth: int) -> None:
    """Raise InputError if the layer is not in 1..depth."""
    if not 1 <= layer <= depth:
        raise InputError(f"{name} is {layer}: the model's layers are numbered 1 to {depth}")
