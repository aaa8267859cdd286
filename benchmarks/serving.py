"""Throughput of the serving engine under saturation, and its own work per tick.

The same images, by the model's own plan: on the engine with a request for each, in static batches as wide as its calls,
and one at a time. One process, variants timed alternately, medians; results are printed, not asserted. The engine's own
work is what passes between two predictions.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import time
from functools import partial
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from adadiff import AdaDiffPipeline
from adadiff.runtime import Prediction, Session
from adadiff.sampling import SamplingPlan
from adadiff.serving.costs import Batching
from adadiff.serving.engine import Engine
from adadiff.serving.requests import Event, ImageRequest
from adadiff.utils.seeding import generator_for
from adadiff.utils.timing import median_seconds


def on_engine(engine: Engine, plan: SamplingPlan, images: int, classes: int) -> None:
    """Submit a request for each image at once, and wait for all."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    for k in range(images):
        label = k % classes if classes else None
        engine.submit(ImageRequest((k,), plan, class_label=label), events.put)
    for _ in range(images):
        events.get()


def in_batches(pipeline: AdaDiffPipeline, images: int, classes: int, width: int) -> None:
    """Sample the images in static batches."""
    for first in range(0, images, width):
        batch = range(first, min(first + width, images))
        conditions: dict[str, Any] = {"class_labels": [k % classes for k in batch]} if classes else {}
        generators = [generator_for(k, 0) for k in batch]
        pipeline(batch_size=len(batch), generator=generators, output_type="pt", **conditions)


def own_milliseconds(pipeline: AdaDiffPipeline, plan: SamplingPlan, samples: int, classes: int) -> tuple[float, float]:
    """Return the median milliseconds of a tick and of the engine's own work in it, with so many samples in slots."""
    engine = Engine(pipeline, slots=samples, width=samples, max_wait=1e6)
    engine.start()
    engine._running.batching = Batching("mixed", samples)  # all of them in every call
    spans: list[tuple[float, float]] = []  # when each prediction began and ended
    predict = Session.predict

    def timed(*args: Any, **kwargs: Any) -> Prediction:
        start = time.perf_counter()
        prediction = predict(*args, **kwargs)
        spans.append((start, time.perf_counter()))
        return prediction

    with patch.object(Session, "predict", timed):
        on_engine(engine, plan, 3 * samples, classes)
        engine.stop(drain=60)
    ticks = [following[0] - one[0] for one, following in pairwise(spans)]
    own = [following[0] - one[1] for one, following in pairwise(spans)]
    return 1000 * statistics.median(ticks), 1000 * statistics.median(own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar10-class-xs")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    pipeline = AdaDiffPipeline.from_pretrained(options.model)
    pipeline.set_progress_bar_config(disable=True)
    plan, classes = pipeline.sampling_settings(), len(pipeline.transformer.class_indices)
    engine = Engine(pipeline, options.slots, options.width, max_wait=1e6)
    engine.start()
    images = options.images
    variants = {
        "engine": partial(on_engine, engine, plan, images, classes),
        "static batches": partial(in_batches, pipeline, images, classes, options.width),
        "one at a time": partial(in_batches, pipeline, images, classes, 1),
    }
    seconds = median_seconds(variants, options.repeats)
    engine.stop(drain=0)
    table = Table("", "images a second", "engine's, in times this", title=f"{options.model}: {images} images")
    for name, took in seconds.items():
        table.add_row(name, f"{images / took:.2f}", f"{took / seconds['engine']:.2f}")
    samples = min(16, options.slots)
    whole, own = own_milliseconds(pipeline, plan, samples, classes)
    console = Console(width=120)
    console.print(f"{torch.get_num_threads()} threads, medians of {options.repeats}, torch {torch.__version__}")
    console.print(f"{options.slots} slots, {engine.batching}")
    console.print(table)
    console.print(
        f"a tick of {samples} samples: {whole:.1f} ms, of which the engine's own work {own:.2f} ms (at most 4)"
    )


if __name__ == "__main__":
    main()
