"""An engine as a replica of Ray Serve."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adadiff.sampling import AdaptivePipeline
from adadiff.serving.costs import Batching
from adadiff.serving.engine import Engine
from adadiff.serving.requests import EngineState, Event, Failed, ImageRequest, Overloaded, Preview, Running, Stopped
from adadiff.utils.clusters import last_line
from adadiff.utils.errors import InputError

DEPLOYMENT = "engine"
ONGOING = 4
"""Requests at a replica for each of its slots; further ones wait for any replica with room, as many again."""


@dataclass(frozen=True)
class Accepted:
    """A replica has accepted a request.

    Args:
        replica: The replica's name.
        number: Number of the request there.
    """

    replica: str
    number: int


@dataclass(frozen=True)
class Refused:
    """A replica has refused a request, as an engine does with `Overloaded` or `Stopped`.

    Args:
        retry_after: Seconds until the images that wait there now have begun; None if its engine has stopped.
    """

    retry_after: float | None


@dataclass(frozen=True)
class ReplicaState:
    """A replica at one moment.

    Args:
        replica: Its name.
        engine: Its engine.
        batching: How samples run together there.
    """

    replica: str
    engine: EngineState
    batching: Batching


class Replica:
    """Runs image requests on an engine of its own.

    Args:
        load: Loads the model.
        slots: Most samples on their way at a time.
        width: Most samples in one call of the model.
        max_wait: Seconds that a request may have to wait for a slot.
    """

    def __init__(self, load: Callable[[], AdaptivePipeline], slots: int, width: int, max_wait: float) -> None:
        from ray import serve

        self._name = serve.get_replica_context().replica_id.unique_id
        self._engine = Engine(load(), slots, width, max_wait)
        self._engine.start()

    async def generate(self, request: ImageRequest) -> AsyncIterator[Accepted | Refused | Event]:
        """Say whether a request is accepted, and then yield its events.

        Raises:
            Stopped: If the engine fails before the request is over.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def listener(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        try:
            ticket = self._engine.submit(request, listener)
        except (Overloaded, Stopped) as error:
            yield Refused(error.retry_after if isinstance(error, Overloaded) else None)
            return
        try:
            yield Accepted(self._name, ticket.number)
            left = len(request.seeds)
            while left:
                event = await events.get()
                if isinstance(event, Failed) and event.cause != "image":
                    raise Stopped(event.message)
                left -= not isinstance(event, Preview)
                yield event
        finally:
            self._engine.cancel(ticket)

    def state(self) -> ReplicaState:
        """Return the replica at this moment."""
        return ReplicaState(self._name, self._engine.state, self._engine.batching)

    def check_health(self) -> None:
        """Raise if the engine has stopped or stalled; Ray Serve then replaces the replica."""
        state = self._engine.state
        if not state.alive or state.stalled:
            raise InputError("the engine has stopped, or has not called the model for a minute")

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.stop(0)


def deploy(
    load: Callable[[], AdaptivePipeline],
    replicas: int,
    name: str,
    slots: int,
    width: int,
    max_wait: float,
    use_gpus: bool,
) -> Any:
    """Start replicas under Ray Serve, and return the handle that sends requests to them once all run.

    Args:
        load: Loads the model, in each replica.
        replicas: Number of replicas.
        name: Name of the application in Ray Serve; one of that name is replaced.
        slots: Most samples on their way at a time, in each replica.
        width: Most samples in one call of the model.
        max_wait: Seconds that a request may have to wait for a slot.
        use_gpus: Whether replicas have a GPU each if the cluster has GPUs.

    Raises:
        InputError: If the cluster has no room, or a replica cannot start.
    """
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    _end_earlier(name)
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=replicas,
        max_ongoing_requests=ONGOING * slots,
        max_queued_requests=ONGOING * slots * replicas,
        ray_actor_options=_resources(replicas, use_gpus),
        health_check_period_s=5,
        graceful_shutdown_timeout_s=5,
    )(Replica)
    serve.start(proxy_location="Disabled")
    try:
        return serve.run(deployment.bind(load, slots, width, max_wait), name=name, route_prefix=None)
    except RuntimeError as error:
        serve.delete(name, _blocking=False)
        raise InputError(f"the replicas cannot start: {last_line(error)}") from error


def _end_earlier(name: str) -> None:
    """End the replicas that a killed command has left on the cluster, so that the new ones have their cores or GPUs."""
    from ray import serve

    if name in serve.status().applications:
        serve.delete(name)


def _resources(replicas: int, use_gpus: bool) -> dict[str, int]:
    """Return the cores and GPUs of a replica; raise InputError if the cluster does not have them for all."""
    import ray

    free, nodes = ray.available_resources(), sum(node["Alive"] for node in ray.nodes())
    gpus, cores = int(free.get("GPU", 0)), int(free.get("CPU", 0))
    has_gpus = use_gpus and ray.cluster_resources().get("GPU", 0) > 0
    room, each = (min(gpus, cores), "a GPU and a core") if has_gpus else (cores, "a core")
    if room < replicas:
        raise InputError(
            f"the cluster has room for {room} of {replicas} replicas, which take {each} each: choose fewer --replicas, "
            f"or add machines"
        )
    return {"num_cpus": max(1, cores // replicas) if nodes == 1 else 1, "num_gpus": int(has_gpus)}


def as_one(
    now: Sequence[EngineState],
    ever: Sequence[EngineState],
    running: tuple[Running, ...],
    waiting: int,
    alive: bool,
    ready: bool,
    held_back: int,
    restarts: int,
) -> EngineState:
    """Return engines as one.

    Args:
        now: The engines that run now.
        ever: The engines that ever ran, as they were last: they have counted what was done.
        running: The samples in slots, by numbers of requests that are the same for all engines.
        waiting: Images that wait for a slot.
        alive: Whether requests are carried out.
        ready: Whether requests are taken.
        held_back: Requests that no engine had room for.
        restarts: How often an engine was replaced.
    """

    def total(name: str, engines: Sequence[EngineState]) -> Any:
        return sum(getattr(engine, name) for engine in engines)

    return EngineState(
        alive=alive,
        ready=ready,
        ticks=total("ticks", ever),
        seconds_since_tick=min((engine.seconds_since_tick for engine in now), default=0.0),
        waiting=waiting,
        slots=total("slots", now),
        running=running,
        rows_of_last_tick=total("rows_of_last_tick", now),
        images_done=total("images_done", ever),
        layers_run=total("layers_run", ever),
        layers_full=total("layers_full", ever),
        images_per_second=total("images_per_second", now),
        rejected=total("rejected", ever) + held_back,
        batches=sum((Counter(engine.batches) for engine in ever), Counter[tuple[int, int]]()),
        restarts=restarts,
        restarting=alive and not now,
    )
