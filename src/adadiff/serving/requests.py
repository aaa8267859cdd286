"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from adadiff.sampling import SamplingPlan
from adadiff.serving.costs import Batching

STALLED = 60.0
"""Seconds without a call of the model, with samples waiting for one, after which an engine is unhealthy."""


class Overloaded(RuntimeError):  # noqa: N818 - names the state
    """The work that waits would take longer than a request may wait; try again later.

    Args:
        retry_after: Seconds until the images that wait now have begun.
    """

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"too much work is waiting: try again in {retry_after:.0f} seconds")


class Stopped(RuntimeError):  # noqa: N818 - names the state
    """The engine takes no requests: it has not started, is stopping, or has failed."""


class Restarting(Stopped):
    """The engine has died and is being started again; try again later.

    Args:
        retry_after: Seconds until it is expected to take requests.
    """

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__("the engine is being started again")


@dataclass(frozen=True)
class ImageRequest:
    """Images of one condition, sampled by one plan.

    Args:
        seeds: One seed for each image; its noise is that of image 0 of the seed, as `sample_seeded` draws it.
        plan: Steps, scheduler, guidance and exits.
        class_label: Name or index of the class, where the model takes classes.
        prompt: Text, where the model takes text.
        negative_prompt: What guidance leads away from, in place of the empty prompt.
        previews: Previews of each image to publish, evenly spaced over its steps.
    """

    seeds: tuple[int, ...]
    plan: SamplingPlan
    class_label: int | str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    previews: int = 0


@dataclass(frozen=True)
class Ticket:
    """An accepted request.

    Args:
        number: Tells it from all other requests of the engine.
        request: The request.
    """

    number: int
    request: ImageRequest


@dataclass(frozen=True)
class Preview:
    """The estimate of an image, part of the way.

    Args:
        image: Position of the image in the request.
        step: Steps taken, from 1.
        steps: Steps in all, in evaluations of the model.
        pixels: The denoised estimate, decoded: (channels, height, width) in [0, 1], on the CPU.
    """

    image: int
    step: int
    steps: int
    pixels: Tensor


@dataclass(frozen=True)
class Finished:
    """An image that is done.

    Args:
        image: Position of the image in the request.
        pixels: (channels, height, width) in [0, 1], on the CPU.
        exit_layers: Layers run at each step; of a guided pair, those of the deeper row.
        flops: FLOPs spent.
        full_flops: FLOPs of the full model at the same steps.
        seconds: Seconds since the request was submitted.
    """

    image: int
    pixels: Tensor
    exit_layers: tuple[int, ...]
    flops: int
    full_flops: int
    seconds: float


@dataclass(frozen=True)
class Failed:
    """An image that will not be made.

    Args:
        image: Position of the image in the request.
        message: One line that says why.
        cause: What is to blame: the image itself, the engine, which has failed and takes no more requests, or the end
            of the service, which came first.
    """

    image: int
    message: str
    cause: Literal["image", "engine", "stopped"] = "image"


STOPPED = "the service was stopped before the image was finished: send the request again"
"""The message of images that the end of the service cuts off."""

Event = Preview | Finished | Failed
"""What a listener gets; a request is over once every image has been Finished or Failed."""

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Running:
    """A sample that holds a slot.

    Args:
        request: Number of the request's ticket.
        image: Position of the image in the request.
        step: Steps taken.
        steps: Steps in all, in evaluations of the model.
        depth: Layers run at the last step if it ran in the last tick, else the most that the next step runs.
        ran: Whether it ran in the last tick.
    """

    request: int
    image: int
    step: int
    steps: int
    depth: int
    ran: bool


@dataclass(frozen=True)
class EngineState:
    """The engine at one moment; by default, before its start.

    Args:
        slots: Number of slots.
        alive: Whether its thread runs; False before the start, after a stop and after a failure.
        ready: Whether it takes requests.
        ticks: Calls of the model so far.
        seconds_since_tick: Seconds since its thread last went round; small while it idles, too.
        waiting: Images that wait for a slot.
        running: The samples in slots.
        rows_of_last_tick: Rows of the last call, two for a guided sample.
        images_done: Images finished.
        layers_run: Layers run, over all predictions so far.
        layers_full: Layers that the full model would have run.
        images_per_second: Images finished a second, lately.
        rejected: Requests refused because of overload.
        batches: Calls so far by the layers of their deepest row, and their rows.
        restarts: How often an engine in a process of its own was started again.
        restarting: Whether it is being started again.
    """

    slots: int
    alive: bool = False
    ready: bool = False
    ticks: int = 0
    seconds_since_tick: float = 0.0
    waiting: int = 0
    running: tuple[Running, ...] = ()
    rows_of_last_tick: int = 0
    images_done: int = 0
    layers_run: int = 0
    layers_full: int = 0
    images_per_second: float = 0.0
    rejected: int = 0
    batches: Mapping[tuple[int, int], int] = field(default_factory=dict)
    restarts: int = 0
    restarting: bool = False

    @property
    def stalled(self) -> bool:
        """Whether the model was not called for `STALLED` seconds, although samples wait for it."""
        return bool(self.running or self.waiting) and self.seconds_since_tick > STALLED


class ImageEngine(Protocol):
    """What the service uses of an engine: one in its own process, or one that is isolated from it."""

    @property
    def batching(self) -> Batching:
        """How samples run together."""

    @property
    def state(self) -> EngineState:
        """The engine at this moment; any thread may ask."""

    def start(self) -> None:
        """Start it; raise InputError if the model cannot be served."""

    def require_room(self) -> None:
        """Raise Overloaded or Stopped if a request would be refused now, whatever it asks for."""

    def submit(self, request: ImageRequest, listener: Listener) -> Ticket:
        """Accept a request, or refuse it at once with InputError, Overloaded or Stopped; any thread may call this."""

    def cancel(self, ticket: Ticket) -> None:
        """Give a request up: no events follow; any thread may call this."""

    def stop(self, drain: float) -> None:
        """Take no more requests; accepted ones may finish within `drain` seconds. Return once all have ended."""
