"""Images of the serving engine under random traffic against the same images sampled alone.

Requests of 1 to 4 images come at random moments, with different numbers of steps, schedulers and guidance scales; some
are cancelled. Half of them follow the model's own policy stretched to their steps, which should be a schedule, and half
an uncertainty threshold, whose decisions rounding can change. Printed are the largest difference of a pixel, in steps
of 1/255, and the share of exit layers that are equal.
"""

from __future__ import annotations

import argparse
import queue
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table

from adadiff import AdaDiffPipeline, ThresholdExit
from adadiff.sampling import Conditions, SamplingPlan, sample_seeded
from adadiff.serving.engine import Engine
from adadiff.serving.requests import Event, Finished, ImageRequest

STEPS = (6, 10, 14, 20)
SCHEDULERS = ("ddim", "dpm-solver++", "euler", "unipc")


def random_request(pipeline: AdaDiffPipeline, source: random.Random, kind: str, tau: float) -> ImageRequest:
    """Draw a request."""
    own, steps = pipeline.sampling_settings(), source.choice(STEPS)
    policy = own.policy.stretched(steps) if kind == "own policy" else ThresholdExit(tau, min_layer=2)
    scale = source.choice([1.5, 3.0, 6.0]) if own.guidance.scale > 1 else 1.0
    plan = SamplingPlan(steps, policy, replace(own.guidance, scale=scale), source.choice(SCHEDULERS))
    seeds = tuple(source.randrange(2**32) for _ in range(source.randint(1, 4)))
    classes = pipeline.transformer.class_indices
    return ImageRequest(seeds, plan, class_label=source.choice(classes) if classes else None)


def served(engine: Engine, requests: list[ImageRequest], source: random.Random) -> list[tuple[ImageRequest, Finished]]:
    """Submit requests at random moments, cancel copies of some of them, and wait for the images of all."""
    events: queue.SimpleQueue[tuple[ImageRequest, Event]] = queue.SimpleQueue()

    def collector(request: ImageRequest) -> Callable[[Event], None]:
        return lambda event: events.put((request, event))

    for request in requests:
        engine.submit(request, collector(request))
        if source.random() < 0.2:
            cancelled = engine.submit(request, lambda event: None)
            time.sleep(source.random() / 10)
            engine.cancel(cancelled)
        time.sleep(source.random() / 10)
    images = []
    for _ in range(sum(len(request.seeds) for request in requests)):
        request, event = events.get()
        assert isinstance(event, Finished), event
        images.append((request, event))
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar10-class-xs")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--tau", type=float, default=0.26)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pipeline, source = AdaDiffPipeline.from_pretrained(options.model), random.Random(options.seed)
    kind_of: dict[int, str] = {}
    requests: list[ImageRequest] = []
    while sum(len(request.seeds) for request in requests) < options.images:
        kind = ("own policy", "threshold")[len(requests) % 2]
        requests.append(random_request(pipeline, source, kind, options.tau))
        kind_of[id(requests[-1])] = kind
    engine = Engine(pipeline, max_wait=1e6)
    engine.start()
    images = served(engine, requests, source)
    engine.stop(drain=0)

    worst, equal, exits, count = (defaultdict[str, float](float) for _ in range(4))
    for request, image in images:
        plan, kind = request.plan, kind_of[id(request)]
        conditions = Conditions(() if request.class_label is None else (request.class_label,), guidance=plan.guidance)
        seed = request.seeds[image.image]
        alone = sample_seeded(pipeline.with_plan(plan), [0], plan.steps, plan.policy, seed, conditions)
        deepest = torch.maximum(alone.trace.exit_layers, alone.trace.unconditional_exit_layers)[:, 0]
        worst[kind] = max(worst[kind], 255 * float((image.pixels - alone.images[0]).abs().max()))
        equal[kind] += int((torch.tensor(image.exit_layers) == deepest).sum())
        exits[kind] += len(deepest)
        count[kind] += 1
    table = Table(
        "", "images", "largest difference, 1/255", "equal exit layers", title=f"{options.model}, served or alone"
    )
    for kind in count:
        table.add_row(kind, f"{count[kind]:.0f}", f"{worst[kind]:.3f}", f"{equal[kind] / exits[kind]:.2%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
