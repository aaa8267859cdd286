"""Figures for Prometheus: the engine's state whenever it is asked for, and the responses as they are sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from adadiff.serving.requests import EngineState, Finished

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
FRACTIONS = tuple(k / 10 for k in range(1, 11))
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


class ServiceMetrics:
    """All figures of one service, in a registry of its own.

    Args:
        state: Returns the engine's state.
        depth: Layers of the full model.
    """

    def __init__(self, state: Callable[[], EngineState], depth: int) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(state, depth))
        self._responses = Counter(
            "adadiff_responses", "Responses of the API, by HTTP status; 499 for clients that left.", ["code"],
            registry=self.registry,
        )  # fmt: skip
        self._request_seconds = Histogram(
            "adadiff_request_seconds", "Seconds from a request for images to the end of its response.", ["code"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._image_seconds = Histogram(
            "adadiff_image_seconds", "Seconds from a request to each finished image.", ["plan"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._image_compute = Histogram(
            "adadiff_image_compute_fraction", "FLOPs of each image over those of the full model.", ["plan"],
            buckets=FRACTIONS, registry=self.registry,
        )  # fmt: skip

    def response(self, status: int, seconds: float | None) -> None:
        """Count a response; `seconds` is its duration if it was for images."""
        self._responses.labels(str(status)).inc()
        if seconds is not None:
            self._request_seconds.labels(str(status)).observe(seconds)

    def image(self, plan: str | float, image: Finished, full_flops: int) -> None:
        """Count a finished image; `full_flops` are those of the full model's."""
        self._image_seconds.labels(str(plan)).observe(image.seconds)
        self._image_compute.labels(str(plan)).observe(image.flops / full_flops)

    def page(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)


class EngineCollector:
    """Reads the engine's state at each scrape.

    Args:
        state: Returns the engine's state.
        depth: Layers of the full model.
    """

    def __init__(self, state: Callable[[], EngineState], depth: int) -> None:
        self._state, self._depth = state, depth

    def collect(self) -> Iterator[Metric]:
        """Yield the figures; the prometheus client calls this."""
        state = self._state()
        gauges = {
            "adadiff_up": ("1 while the engine's thread lives.", int(state.alive)),
            "adadiff_images_waiting": ("Images that wait for a slot.", state.waiting),
            "adadiff_slots": ("Slots.", state.slots),
            "adadiff_slots_busy": ("Slots with a sample in them.", len(state.running)),
            "adadiff_batch_rows": (
                "Rows of the last call; a guided image has two.",
                state.rows_of_last_tick,
            ),
            "adadiff_seconds_since_tick": ("Seconds since the last call of the model.", state.seconds_since_tick),
            "adadiff_images_per_second": ("Images finished per second, lately.", state.images_per_second),
            "adadiff_layer_fraction": (
                "Layers run over those of the full model, since the start.",
                state.layers_run / state.layers_full if state.layers_full else 1.0,
            ),
        }
        counters = {
            "adadiff_ticks": ("Calls of the model.", state.ticks),
            "adadiff_rows": (
                "Rows of all calls; a guided image has two.",
                state.layers_full // self._depth,
            ),
            "adadiff_images": ("Finished images.", state.images_done),
            "adadiff_layers_run": ("Layers run, over all samples and steps.", state.layers_run),
            "adadiff_layers_full": ("Layers that the full model would have run.", state.layers_full),
            "adadiff_rejected": ("Requests turned away because the wait would be too long.", state.rejected),
            "adadiff_engine_restarts": ("How often the engine's process was started again.", state.restarts),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value=value)
        yield batch_sizes(state.batches)


def batch_sizes(batches: Mapping[tuple[int, int], int]) -> HistogramMetricFamily:
    """Return the rows of all calls as histograms, one for each number of layers that the deepest row has run.

    Args:
        batches: Number of calls by layers and rows.
    """
    text = "Rows of each call of the model, by the layers of its deepest row; a guided image has two."
    family = HistogramMetricFamily("adadiff_call_rows", text, labels=["layers"])
    for layers in sorted({layers for layers, _ in batches}):
        calls = {rows: count for (depth, rows), count in batches.items() if depth == layers}
        bounds = [*((f"{float(bound)}", bound) for bound in ROWS), ("+Inf", math.inf)]
        buckets = [(name, sum(count for rows, count in calls.items() if rows <= most)) for name, most in bounds]
        family.add_metric([str(layers)], buckets, sum(rows * count for rows, count in calls.items()))
    return family
