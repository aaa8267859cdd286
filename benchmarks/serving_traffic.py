"""Latency under Poisson traffic of short and long requests: the engine against static batching, simulated.

Seconds of calls are measured on this machine (or, with --flat, those of a device on which rows are free), and traffic
is replayed against them: a third of the requests each at 10, 20 and 50 steps, one image each, by the model's own policy
stretched to that number of steps. Static batching takes the oldest request and all others of the same number of steps,
up to the width of a call, to their end. Load is relative to the capacity of full static batches.
"""

from __future__ import annotations

import argparse
import random
from collections import deque
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from adadiff import AdaDiffPipeline
from adadiff.runtime import planned_layers
from adadiff.sampling import AdaptivePipeline
from adadiff.serving.batcher import RULES, Candidate, Rule, choose
from adadiff.serving.costs import CallCosts, Profile, measure_costs

STEPS = (10, 20, 50)


@dataclass(eq=False)
class Request:
    """One image that arrives at some second, and is finished at another."""

    arrival: float
    profile: Profile
    step: int = 0
    waited: int = 0
    finished: float = 0.0

    @property
    def latency(self) -> float:
        return self.finished - self.arrival


def profiles_of(pipeline: AdaptivePipeline) -> list[Profile]:
    """Return what each number of steps asks of the machine, by the model's own plan."""
    plan, depth, profiles = pipeline.sampling_settings(), pipeline.denoiser.depth, []
    for steps in STEPS:
        guided = tuple(plan.guidance.applies(step, steps) for step in range(steps))
        layers = planned_layers(plan.policy.stretched(steps), depth, guided, plan.guidance.tied)
        profiles.append(Profile(layers, guided))
    return profiles


def batch_seconds(costs: CallCosts, profile: Profile, images: int) -> float:
    """Return the seconds of a static batch."""
    return sum(costs.seconds(profile.rows(step) * images) for step in range(len(profile)))


def arrivals(profiles: list[Profile], rate: float, count: int, seed: int) -> list[Request]:
    """Draw requests that arrive at random, `rate` a second on average."""
    source, now, requests = random.Random(seed), 0.0, []
    for _ in range(count):
        now += source.expovariate(rate)
        requests.append(Request(now, source.choice(profiles)))
    return requests


def static_batching(costs: CallCosts, requests: list[Request], width: int) -> None:
    """Serve requests in batches of alike ones."""
    waiting, now = deque(requests), 0.0
    while waiting:
        now = max(now, waiting[0].arrival)
        kind = waiting[0].profile
        batch = [request for request in waiting if request.arrival <= now and request.profile == kind][:width]
        now += batch_seconds(costs, kind, len(batch))
        for request in batch:
            request.finished = now
            waiting.remove(request)


def on_engine(costs: CallCosts, requests: list[Request], depth: int, slots: int, width: int, rule: Rule) -> None:
    """Serve requests as the engine does: each at its own step, by a rule of the batcher."""
    waiting, running, now = deque(requests), list[Request](), 0.0
    while waiting or running:
        if not running:
            now = max(now, waiting[0].arrival)
        while waiting and waiting[0].arrival <= now and len(running) < slots:
            running.append(waiting.popleft())
        candidates = [
            Candidate(k, 2 * request.profile.layers[request.step] > depth, request.waited)
            for k, request in enumerate(running)
        ]
        chosen = [running[place] for place in choose(candidates, width, rule)]
        now += costs.seconds([layers for request in chosen for layers in request.profile.rows(request.step)])
        for request in running:
            request.waited += 1
        for request in chosen:
            request.step, request.waited, request.finished = request.step + 1, 0, now
        running = [request for request in running if request.step < len(request.profile)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar10-class-xs")
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--flat", action="store_true", help="a device on which a layer takes 1 ms for any rows")
    options = parser.parse_args()
    pipeline = AdaDiffPipeline.from_pretrained(options.model)
    profiles, depth, most = profiles_of(pipeline), pipeline.denoiser.depth, 2 * options.width
    costs = CallCosts((1, most), (0.001,) * 2, (0.001,) * 2) if options.flat else measure_costs(pipeline, most)
    seconds = np.mean([batch_seconds(costs, profile, options.width) for profile in profiles]) / options.width
    capacity = 1 / float(seconds)
    table = Table(
        "", "median, s", "95th, s", "95th of 10 steps, s", title=f"{options.load:g} of {capacity:.2f} images/s"
    )
    for name in ("static batching", *RULES):
        requests = arrivals(profiles, options.load * capacity, options.requests, seed=0)
        if name in RULES:
            on_engine(costs, requests, depth, options.slots, options.width, name)
        else:
            static_batching(costs, requests, options.width)
        every = [request.latency for request in requests]
        short = [request.latency for request in requests if len(request.profile) == min(STEPS)]
        figures = (np.median(every), np.quantile(every, 0.95), np.quantile(short, 0.95))
        table.add_row(name if name not in RULES else f"engine, {name}", *(f"{figure:.2f}" for figure in figures))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
