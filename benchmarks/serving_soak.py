"""Memory of a service under steady traffic: what it holds must not grow with the requests that it has served.

Clients ask for images one after the other, plain and streamed, at changing guidance scales, and some leave early; now
and then a scrape of the metrics. The resident memory of the service and its child processes is read every few seconds,
and the growth is that of the median of the last tenth over that of the second tenth, as caches fill at the beginning.
Asked are less than 20 MB in --minutes 60. Linux only, as it reads /proc.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
from rich.console import Console
from rich.progress import track
from serving_process import Service, serving

PATH = "/v1/images/generations"
MOST = 20.0  # MB
OWN = ("Pss_Anon:", "Pss_Shmem:")
EVERY = 2.0  # seconds between two readings


def descendants(process: int) -> list[int]:
    """Return a process and all that it has started."""
    children = [
        int(child)
        for task in Path(f"/proc/{process}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [process, *(each for child in children for each in descendants(child))]


def megabytes(process: int) -> float:
    """Return the memory that a process and its children hold of their own, pages that they share counted once.

    Pages of files, such as libraries, are left out: a share of them is counted, which grows as other programs end.
    """
    kilobytes = 0
    for each in descendants(process):
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            kilobytes += int(line.split()[1]) if line.startswith(OWN) else 0
    return kilobytes / 1000


def traffic(service: Service, number: int, over: threading.Event, counts: list[int]) -> None:
    """Ask for images until it is over."""
    source = random.Random(number)
    with service.client() as client:
        labels = client.get("/v1/models").json()["data"][0]["class_indices"]
        while not over.is_set():
            body = {"n": source.randint(1, 3), "num_inference_steps": 10}
            body |= {"class_label": source.choice(labels)} if labels else {}
            kinds = ["plain", "stream", "leave", "metrics", "bad", *(["scale"] if labels else [])]
            kind = source.choice(kinds)
            if kind == "metrics":
                client.get("/metrics").raise_for_status()
            elif kind == "leave":
                leave_early(client, body)
            else:
                changes = {"stream": {"stream": True, "partial_images": 2}, "bad": {"n": 99}}
                scale = {"guidance_scale": 1 + source.random()}
                answer = client.post(PATH, json=body | (scale if kind == "scale" else changes.get(kind, {})))
                assert answer.status_code < 500, answer.text
                counts[number] += answer.status_code == 200


def leave_early(client: httpx2.Client, body: dict[str, int]) -> None:
    """Close the connection of a stream before its images are there."""
    with client.stream("POST", PATH, json={**body, "stream": True, "num_inference_steps": 100}) as answer:
        assert answer.status_code in (200, 400, 429), answer.status_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--isolate", action="store_true", help="the engine in a process of its own")
    options = parser.parse_args()
    over, counts, readings = threading.Event(), [0] * options.clients, list[float]()
    with serving(options.model, *(["--isolate"] if options.isolate else [])) as service:
        clients = [
            threading.Thread(target=traffic, args=(service, number, over, counts)) for number in range(options.clients)
        ]
        for client in clients:
            client.start()
        for _ in track(range(int(60 * options.minutes / EVERY)), "", console=Console(stderr=True)):
            time.sleep(EVERY)
            readings.append(megabytes(service.process.pid))
        over.set()
        for client in clients:
            client.join()
    tenths = [float(np.median(part)) for part in np.array_split(readings, 10)]
    first, last = tenths[1], tenths[-1]
    Console(width=120).print(
        f"{options.model}{', isolated' if options.isolate else ''}: {sum(counts)} requests answered in "
        f"{options.minutes:g} min, {first:.0f} MB, then {last:.0f} MB: {last - first:.1f} MB more (at most {MOST:g}); "
        f"by tenths of the time: {', '.join(f'{each:.0f}' for each in tenths)} MB"
    )
    sys.exit(0 if sum(counts) and last - first <= MOST else 1)


if __name__ == "__main__":
    main()
