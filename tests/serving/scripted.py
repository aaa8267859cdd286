"""An engine that keeps the contract of `adadiff.serving.engine` without a model: images are drawn from their seeds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from adadiff.serving.costs import Batching
from adadiff.serving.requests import (
    EngineState,
    Event,
    Failed,
    Finished,
    ImageRequest,
    Overloaded,
    Preview,
    Restarting,
    Running,
    Stopped,
    Ticket,
)
from adadiff.utils.seeding import generator_for
from tests.conftest import make_model

FULL_FLOPS = 50 * make_model(num_classes=4, null_class=3).part_flops.full  # of `class_pipeline`, in 50 steps
SECONDS = 0.25


def drawn(seed: int, shape: tuple[int, ...]) -> Tensor:
    """The image of a seed."""
    return torch.rand(shape, generator=generator_for(seed, 0))


def exits(request: ImageRequest, depth: int) -> tuple[int, ...]:
    """All layers and one layer in turn; all layers for a plan without exits."""
    full = type(request.plan.policy).__name__ == "NeverExit"
    return tuple(depth if full or step % 2 == 0 else 1 for step in range(request.plan.steps))


@dataclass
class ScriptedEngine:
    """Runs a request on a thread of its own as soon as `gate` is open."""

    shape: tuple[int, ...] = (1, 8, 8)
    depth: int = 5
    slots: int = 4
    waiting: int = 2
    batching: Batching = field(default_factory=lambda: Batching("mixed", width=4))
    gate: threading.Event = field(default_factory=threading.Event)
    overloaded: float | None = None
    restarting: float | None = None
    stopped: bool = False
    dead: bool = False
    failure: str | None = None
    cause: Literal["image", "stopped"] = "image"
    stalled: float = 0.0
    tickets: list[Ticket] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    cancelled: list[int] = field(default_factory=list)
    drained: list[float] = field(default_factory=list)
    rejected: int = 0

    def __post_init__(self) -> None:
        self.gate.set()
        self._lock = threading.Lock()

    def require_room(self) -> None:
        if self.restarting is not None:
            raise Restarting(self.restarting)
        if self.stopped or self.dead:
            raise Stopped
        if self.overloaded is not None:
            self.rejected += 1
            raise Overloaded(self.overloaded)

    def submit(self, request: ImageRequest, listener: Callable[[Event], None]) -> Ticket:
        self.require_room()
        ticket = Ticket(len(self.tickets), request)
        self.tickets.append(ticket)
        self.open.add(ticket.number)
        threading.Thread(target=self._run, args=(ticket, listener), daemon=True).start()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket.number in self.open:
                self.open.remove(ticket.number)
                self.cancelled.append(ticket.number)

    def stop(self, drain: float) -> None:
        self.stopped = True
        self.drained.append(drain)
        until = time.monotonic() + drain
        while self.open and time.monotonic() < until:
            time.sleep(0.01)

    def _run(self, ticket: Ticket, listener: Callable[[Event], None]) -> None:
        for event in self._events(ticket.request):
            self.gate.wait(10)
            with self._lock:
                if ticket.number not in self.open:
                    return
                listener(event)
        with self._lock:
            self.open.discard(ticket.number)

    def _events(self, request: ImageRequest) -> list[Event]:
        events: list[Event] = []
        layers, steps = exits(request, self.depth), request.plan.steps
        flops = FULL_FLOPS * sum(layers) // (self.depth * len(layers))
        for preview in range(request.previews):
            for image in range(len(request.seeds)):
                step = steps * (preview + 1) // (request.previews + 1)
                events.append(Preview(image, step, steps, drawn(request.seeds[image], self.shape) / 2))
        for image in reversed(range(len(request.seeds))):  # in another order than that of the request
            seed = request.seeds[image]
            if self.failure is not None:
                events.append(Failed(image, self.failure, "stopped" if self.stopped else self.cause))
            else:
                events.append(Finished(image, drawn(seed, self.shape), layers, flops, FULL_FLOPS, SECONDS))
        return events

    @property
    def state(self) -> EngineState:
        with self._lock:
            running = tuple(Running(number, 0, 1, 4, 3, ran=True) for number in sorted(self.open))
        return EngineState(
            alive=not self.dead,
            ready=not (self.stopped or self.dead or self.restarting is not None),
            ticks=7,
            seconds_since_tick=self.stalled,
            waiting=self.waiting,
            slots=self.slots,
            running=running,
            rows_of_last_tick=3,
            images_done=11,
            layers_run=30,
            layers_full=50,
            images_per_second=5.5,
            rejected=self.rejected,
            batches={(5, 3): 2, (5, 1): 1, (1, 7): 4},
            restarting=self.restarting is not None,
        )
