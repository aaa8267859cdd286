"""What the transformers of one pipeline share: the policy, and the trajectory in progress with its corrections."""

from __future__ import annotations

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Size, Tensor

from adadiff.policies import ExitPolicy, ScheduleExit
from adadiff.runtime import Corrections, RowMemory
from adadiff.stock.clock import ANOTHER_LOOP, Reading, read_clock
from adadiff.stock.costs import LayerCosts
from adadiff.stock.record import Call, Kind
from adadiff.stock.stored import StockPolicy
from adadiff.utils.errors import InputError
from adadiff.utils.text import counted

logger = logging.getLogger(__name__)

TWO_THREADS = "two threads use one pipeline at once: give each thread a pipeline and transformer of its own"


class Trajectory:
    """One sampling: its steps, and what is remembered of each kind of call until its last step.

    Args:
        timesteps: The scheduler's time steps, (steps,); another tensor of them is another trajectory.
        policy: The exit policy for that number of steps.
    """

    def __init__(self, timesteps: Tensor, policy: ExitPolicy) -> None:
        self.timesteps, self.policy = timesteps, policy
        self.steps, self.step = len(timesteps), -1
        self.thread, self.disputed = threading.get_ident(), False
        self.calls: list[Call] = []
        self.corrections: dict[Kind, Corrections] = {}
        self._layers: dict[int, tuple[int, ...]] = {}
        self._called: Counter[tuple[str, str | None]] = Counter()
        self._seen: set[Kind] = set()
        self._times: dict[tuple[str, str | None, tuple[Size, ...]], float] = {}

    def advance(self, step: int) -> None:
        """Begin or go on with a step.

        Raises:
            InputError: If the trajectory belongs to another thread.
        """
        self.disputed |= threading.get_ident() != self.thread
        if self.disputed:
            raise InputError(TWO_THREADS)
        if step == self.step:
            return
        if self.step >= 0:  # a kind of call that was not made has ended, as guidance does
            self.corrections = {kind: known for kind, known in self.corrections.items() if kind in self._seen}
        self.step = step
        for of_step in (self._called, self._seen, self._times):
            of_step.clear()

    def kind(self, transformer: str, name: str | None, shapes: tuple[Size, ...], time: float) -> Kind:
        """Return which kind of call of this step is made.

        Args:
            transformer: Name of the transformer.
            name: Name that diffusers gave the call, if any.
            shapes: Shapes of the sample.
            time: The time that the transformer is given.

        Raises:
            InputError: If the time has changed, though the scheduler has not taken a step.
        """
        if self._times.setdefault((transformer, name, shapes), time) != time:
            raise InputError(f"the time changes, but the pipeline's scheduler takes no step: {ANOTHER_LOOP}")
        number = self._called[transformer, name]
        self._called[transformer, name] += 1
        label = f"call {number}" if name is None else f"{name} {number}" if number else name
        kind = Kind(transformer, label, shapes)
        self._seen.add(kind)
        return kind

    def corrections_of(self, kind: Kind) -> Corrections:
        """Return what was measured of a kind of call; its memory has one row, the whole call."""
        return self.corrections.setdefault(kind, Corrections(RowMemory(1)))

    @property
    def extrapolation(self) -> Tensor:
        """Weights by which corrections are carried on to this step, (1, 3)."""
        return torch.tensor([self.policy.extrapolation_at(self.step)], device="cpu")

    def decide(self, corrections: Corrections, depth: int) -> tuple[int, tuple[int, ...]]:
        """Return the exit layer of a call at this step, and the layers whose corrections it measures.

        Args:
            corrections: What was measured of this kind of call.
            depth: Number of layers N of the transformer.
        """
        policy, layer = self.policy, self._exit_layers(depth)[self.step]
        if layer < depth and not corrections.known(layer):
            policy = policy.without_corrections(self.step, depth)
            layer = exit_layers(policy, self.steps, depth)[self.step]
        return layer, policy.corrected_layers(self.step, depth) if layer == depth else ()

    def record(self, kind: Kind, call: Call, depth: int) -> None:
        """Record a call that is over, and forget its kind if no later step exits early."""
        self.calls.append(call)
        if min(self._exit_layers(depth)[self.step + 1 :], default=depth) == depth:
            self.corrections.pop(kind, None)

    def forget(self) -> None:
        """Forget all that was measured; calls that follow run all layers where their exits need corrections."""
        self.corrections.clear()

    def _exit_layers(self, depth: int) -> tuple[int, ...]:
        if depth not in self._layers:
            self._layers[depth] = exit_layers(self.policy, self.steps, depth)
        return self._layers[depth]


class PipelineState:
    """The policy of a pipeline and its trajectory in progress, shared by its transformers.

    Args:
        pipe: The pipeline; it is not kept alive.
        policy: The exit policy.
        costs: What calls cost by the layers they run, for each transformer by its name, as far as known.
        stored: The stored policy that the exit policy comes from, if it does.
    """

    def __init__(
        self,
        pipe: Any,
        policy: ExitPolicy,
        costs: Mapping[str, LayerCosts],
        stored: StockPolicy | None = None,
    ) -> None:
        self._pipe, self.policy = weakref.ref(pipe), policy
        self.costs, self.stored = costs, stored
        self.trajectory: Trajectory | None = None
        self._warned: set[object] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy or pickle the policy alone: a copy of a transformer belongs to no pipeline yet."""
        return PipelineState, (set(), self.policy, self.costs)

    @property
    def pipe(self) -> Any:
        """The pipeline; None if it no longer exists."""
        return self._pipe()

    def read(self, timestep: Any) -> tuple[Trajectory, Reading]:
        """Return the trajectory that a call belongs to, at the call's step, and when the call takes place.

        Raises:
            InputError: If the call belongs to another pipeline or thread, or the policy does not fit.
        """
        reading = read_clock(self.pipe, timestep)
        current = self.trajectory
        if current is None or current.timesteps is not reading.timesteps or reading.step < current.step:
            current = self.trajectory = Trajectory(reading.timesteps, self._stretched(len(reading.timesteps)))
        current.advance(reading.step)
        return current, reading

    def check_call(self, trajectory: Trajectory, shape: tuple[int, ...]) -> None:
        """Warn, once, if a call is not what the policy was calibrated for; `shape` is that of a row's prediction."""
        if self.stored is None or trajectory.calls:
            return
        for difference in self.stored.differences_in_call(self.pipe, shape):
            if difference not in self._warned:
                self._warned.add(difference)
                logger.warning("the policy was calibrated for other calls: %s", difference)

    def forget(self) -> None:
        """Forget what was measured in the trajectory in progress."""
        if self.trajectory is not None:
            self.trajectory.forget()

    def _stretched(self, steps: int) -> ExitPolicy:
        policy, own = self.policy, self.policy.num_steps
        if own is None or own == steps:
            return policy
        if steps not in self._warned:
            self._warned.add(steps)
            logger.warning("the schedule has %s, and is stretched to the %d sampled", counted(own, "step"), steps)
        return policy.stretched(steps)


def exit_layers(policy: ExitPolicy, steps: int, depth: int) -> tuple[int, ...]:
    """Return the exit layer at each step, 0..N, of a policy that knows them in advance.

    Args:
        policy: `ScheduleExit`, or a policy whose table of thresholds has only 0 (never) and 1 (always) in it.
        steps: Number of steps.
        depth: Number of layers N.
    """
    if isinstance(policy, ScheduleExit):
        return policy.layers
    table = policy.table(steps, depth)
    assert table is not None  # `enable` takes no other policies
    always = torch.cat([table, torch.ones(steps, 1)], dim=1)  # (steps, depth): the last layer is always an exit
    return tuple((always.argmax(dim=1) + 1).tolist())
