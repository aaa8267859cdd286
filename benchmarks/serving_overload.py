"""A service under ten times the load that it can bear: what accepted requests, refused ones and health checks see.

First the capacity is measured, by as many clients as there are slots, each with two images, one after the other; then,
in the same way, the seconds of an image in a full engine, while a process of its own sends ten times as many requests
for a class that there is not, since they take their share of the machine. Then that process sends requests for images
at this rate, whether or not earlier ones were answered, while /health is asked twenty times a second. Last come bursts
of requests of ten images, four times what --max-wait allows for, all at once: what Retry-After says is compared with
the seconds until no image waits any more. Asked are: no 5xx; 95 of 100 accepted requests within --max-wait and the
seconds of one image in a full engine; /health within 50 ms in 99 of 100 cases; Retry-After right within a factor of
two. The issue's size: --seconds 60.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from typing import Any

import httpx2
import numpy as np
from rich.console import Console
from rich.table import Table
from serving_process import Service, serving

BURSTS = 8
NO_CLASS = 10**6
HEALTH = 0.05  # seconds from one health check to the next
PATH = "/v1/images/generations"

Answer = tuple[int, float, float | None]
"""Status, seconds, and the seconds of Retry-After, if there was one."""


async def ask(client: httpx2.AsyncClient, label: int, images: int = 1) -> Answer:
    """Send a request for images of a class, and return its answer."""
    start = time.perf_counter()
    try:
        answer = await client.post(PATH, json={"class_label": label, "n": images})
    except httpx2.HTTPError:
        return 0, time.perf_counter() - start, None
    after = answer.headers.get("retry-after")
    return answer.status_code, time.perf_counter() - start, None if after is None else float(after)


def connections(address: str) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=1000)
    return httpx2.AsyncClient(base_url=address, timeout=300, limits=limits)


async def capacity(address: str, clients: int) -> tuple[float, float]:
    """Return the images a second of a full engine, and the 95th percentile of an image's seconds in it."""
    start, latencies = time.perf_counter(), list[float]()
    async with connections(address) as client:

        async def one(label: int) -> None:
            for number in range(2):
                status, took, _ = await ask(client, label)
                assert status == 200, status
                latencies.extend([took] * number)  # the first one met an engine that was being filled

        await asyncio.gather(*(one(k % 10) for k in range(clients)))
    return 2 * clients / (time.perf_counter() - start), float(np.quantile(latencies, 0.95))


async def open_loop(address: str, rate: float, seconds: float, labels: Sequence[int]) -> list[Answer]:
    """Send requests for these classes in turn at a rate, without waiting for answers, and return all answers."""
    start, tasks = time.perf_counter(), list[asyncio.Task[Answer]]()
    async with connections(address) as client:
        while (now := time.perf_counter() - start) < seconds:
            while len(tasks) < rate * now:
                tasks.append(asyncio.create_task(ask(client, labels[len(tasks) % len(labels)])))
            await asyncio.sleep(0.005)
        return list(await asyncio.gather(*tasks))


def flood(results: Connection, *arguments: Any) -> None:
    """Send all answers of `open_loop`."""
    results.send(asyncio.run(open_loop(*arguments)))


@contextmanager
def flooding(*arguments: Any) -> Iterator[Connection]:
    """Send requests from a process of their own, as `open_loop` does; yields where its answers come from."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=flood, args=(theirs, *arguments))
    process.start()
    time.sleep(3.0)  # so that it has begun
    try:
        yield ours
    finally:
        process.kill()
        process.join()


async def burst(address: str, requests: int) -> tuple[float, float]:
    """Send requests of ten images at once; returns the first Retry-After, and the seconds until no image waited."""
    async with connections(address) as client:
        tasks = [asyncio.create_task(ask(client, k % 10, images=10)) for k in range(requests)]
        for answer in asyncio.as_completed(tasks):
            _, _, said = await answer
            if said is not None:
                break
        else:
            raise SystemExit("no request of a burst was refused")
        start = time.perf_counter()
        while not re.search(r"^adadiff_images_waiting\S* 0\.0$", (await client.get("/metrics")).text, re.MULTILINE):
            await asyncio.sleep(0.05)
        waited = time.perf_counter() - start
        await asyncio.gather(*tasks)
    return said, waited


def health_checks(address: str, seconds: float) -> list[float]:
    """Ask /health at fixed moments; returns the seconds that each answer took."""
    host, took = address.removeprefix("http://"), list[float]()
    connection, end = HTTPConnection(host, timeout=60), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        assert json.loads(answer.read())["status"] == "ok"
        took.append(time.perf_counter() - start)
        time.sleep(max(0.0, HEALTH - took[-1]))
    return took


def measure(service: Service, slots: int, factor: float, seconds: float, max_wait: float) -> Table:
    """Measure the capacity, then flood the service; returns what was seen."""
    rate, _ = asyncio.run(capacity(service.address, slots))
    idle = health_checks(service.address, 3.0)
    with flooding(service.address, factor * rate, 600.0, [NO_CLASS]):
        _, one_image = asyncio.run(capacity(service.address, slots))
    with flooding(service.address, factor * rate, seconds, range(10)) as results:
        health = health_checks(service.address, seconds - 1)
        answers: list[Answer] = results.recv()
    counts = Counter(status for status, _, _ in answers)
    accepted = [took for status, took, _ in answers if status == 200]
    refused = [took for status, took, _ in answers if status == 429]
    table = Table("", "measured", "asked", title=f"{factor:g} times {rate:.1f} images/s for {seconds:g} s")
    table.add_row("answers by status", ", ".join(f"{code}: {n}" for code, n in sorted(counts.items())), "200 and 429")
    table.add_row("accepted, 95th percentile", f"{np.quantile(accepted, 0.95):.2f} s", f"{max_wait + one_image:.2f} s")
    table.add_row("refused, 95th percentile", f"{1000 * np.quantile(refused, 0.95):.0f} ms", "")
    for name, seen in (("/health", health), ("/health when idle", idle)):
        half, most = (1000 * np.quantile(seen, level) for level in (0.5, 0.99))
        table.add_row(f"{name}, median and 99th", f"{half:.1f}, {most:.1f} ms", "50 ms" if name == "/health" else "")
    requests = math.ceil((slots + 4 * rate * max_wait) / 10)
    bursts = [asyncio.run(burst(service.address, requests)) for _ in range(BURSTS)]
    within = sum(waited / 2 <= said <= max(2 * waited, 1) for said, waited in bursts)
    pairs = ", ".join(f"{said:.0f} ({waited:.1f})" for said, waited in bursts)
    table.add_row("Retry-After (in fact), s", pairs, f"within a factor of two: {within} of {BURSTS}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar10-class-xs")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--max-wait", type=float, default=5.0)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--isolate", action="store_true", help="the engine in a process of its own")
    options = parser.parse_args()
    arguments = ["--max-wait", str(options.max_wait), "--slots", str(options.slots)]
    with serving(options.model, *arguments, *(["--isolate"] if options.isolate else [])) as service:
        table = measure(service, options.slots, options.factor, options.seconds, options.max_wait)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
