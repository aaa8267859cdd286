"""The isolated engine under kill -9: every accepted request finishes, with the bytes of an engine that never died.

Requests of one to three images come at random; the engine's process is killed in the middle of them, and once all have
finished, the next ones come. An engine in this process makes the same images before. Exits with 1 unless all are there
with equal bytes. Asked are --kills 20; kills of a service with jobs are in tests/serving/test_jobs_crash.py, and `make
crash` runs both.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import signal
import sys
import time
from functools import partial

import numpy as np
from rich.console import Console

from adadiff import AdaDiffPipeline
from adadiff.cli.shared import load_pipeline
from adadiff.serving.engine import Engine
from adadiff.serving.images import image_file
from adadiff.serving.isolation import IsolatedEngine
from adadiff.serving.requests import Event, Failed, Finished, ImageEngine, ImageRequest
from adadiff.utils.files import model_folder

Asked = list[ImageRequest]
Made = dict[tuple[int, int], Finished | Failed]
"""How each image of each request has ended."""


def random_requests(pipeline: AdaDiffPipeline, source: random.Random, count: int) -> Asked:
    """Draw requests by the model's own plan."""
    classes = pipeline.transformer.class_indices
    return [
        ImageRequest(
            tuple(source.randrange(2**32) for _ in range(source.randint(1, 3))),
            pipeline.sampling_settings(),
            source.choice(classes) if classes else None,
        )
        for _ in range(count)
    ]


def made(engine: ImageEngine, requests: Asked, kill_after: float | None = None) -> Made:
    """Run requests to their end; kill the engine's process after some seconds."""
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()

    def publish(number: int, event: Event) -> None:
        events.put((number, event))

    for number, request in enumerate(requests):
        engine.submit(request, partial(publish, number))
    if kill_after is not None and isinstance(engine, IsolatedEngine) and engine.pid is not None:
        time.sleep(kill_after)
        os.kill(engine.pid, signal.SIGKILL)
    ended: Made = {}
    while len(ended) < sum(len(request.seeds) for request in requests):
        number, event = events.get()
        if isinstance(event, Finished | Failed):
            ended[number, event.image] = event
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--requests", type=int, default=8, help="requests on their way at each kill")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    load = partial(load_pipeline, model_folder(options.model), "float32", "cpu")
    pipeline, source = load(), random.Random(options.seed)
    rounds = [random_requests(pipeline, source, options.requests) for _ in range(options.kills)]
    plain = Engine(pipeline, slots=8, width=4, max_wait=1e6)
    plain.start()
    start = time.perf_counter()
    expected = [made(plain, requests) for requests in rounds]
    seconds = (time.perf_counter() - start) / options.kills
    plain.stop(0)

    engine = IsolatedEngine(pipeline, load, slots=8, width=4, max_wait=1e6)
    ended, restarts = list[Made](), list[float]()
    engine.start()
    for requests in rounds:
        start, at = time.perf_counter(), source.uniform(0.1, 0.8) * seconds
        ended.append(made(engine, requests, at))
        restarts.append(time.perf_counter() - start - seconds)
    killed = engine.state.restarts
    engine.stop(0)
    equal = images = 0
    for got, reference in zip(ended, expected, strict=True):
        for place, one in reference.items():
            assert isinstance(one, Finished)
            other = got[place]
            images += 1
            equal += isinstance(other, Finished) and image_file(other.pixels) == image_file(one.pixels)
    count = options.kills * options.requests
    Console(width=120).print(
        f"{options.model}: {killed} kills among {count} requests of {images} images: {equal} with the bytes of an "
        f"engine that never died; a kill costs {np.median(restarts):.1f} s (median; lost work and the restart)"
    )
    sys.exit(0 if equal == images and killed == options.kills else 1)


if __name__ == "__main__":
    main()
