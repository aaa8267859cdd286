"""A service killed at random moments goes on with its jobs to the same bytes, and makes nothing twice.

The suite kills twice, `make crash` 20 times: ADADIFF_CRASHES says how often.
"""

from __future__ import annotations

import base64
import multiprocessing
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from adadiff.cli import main
from tests.serving.conftest import eventually, generate

CRASHES = int(os.environ.get("ADADIFF_CRASHES", "2"))
IMAGES = 12 + 10 * CRASHES
ADDRESS = re.compile(r"is served at (http://127\.0\.0\.1:\d+) ")

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["adadiff.cli.commands", "adadiff.cli.shared", "adadiff.serving.app"])


def serve(model: Path, jobs: Path, log: Path) -> None:
    """Run the command in this process on one thread, its output in a file."""
    import torch

    torch.set_num_threads(1)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    main(["serve", str(model), "--port", "0", "--slots", "4", "--width", "2", "--jobs", str(jobs)])


@contextmanager
def service(model: Path, jobs: Path, log: Path) -> Iterator[httpx2.Client]:
    """Start a service; kill it at the end of the block."""
    log.unlink(missing_ok=True)
    process = forkserver.Process(target=serve, args=(model, jobs, log))
    process.start()
    try:
        eventually(lambda: log.exists() and ADDRESS.search(log.read_text()), 60)
        with httpx2.Client(base_url=ADDRESS.search(log.read_text())[1], timeout=60) as client:
            yield client
    finally:
        process.kill()
        process.join()


def wait_for(client: httpx2.Client, name: str, done: int) -> None:
    eventually(lambda: client.get(f"/v1/jobs/{name}").json()["done"] >= done, 60)


def test_a_job_survives_kills(model_folder, tmp_path):
    source, jobs, log = random.Random(0), tmp_path / "jobs", tmp_path / "log"
    written: dict[Path, int] = {}
    name = None
    for crash in range(CRASHES):
        with service(model_folder, jobs, log) as client:
            if name is None:
                body = {"n": IMAGES, "seed": 30, "num_inference_steps": 50}
                name = client.post("/v1/jobs", json=body).json()["id"]
            goal = min(len(written) + 1 + source.randrange(8), IMAGES - 1)
            wait_for(client, name, goal)
            time.sleep(source.uniform(0, 0.02))
        files = {path: path.stat().st_mtime_ns for path in (jobs / name).glob("0*.png")}
        assert goal <= len(files) < IMAGES, f"kill {crash} came too late"
        assert written.items() <= files.items()
        written = files
    with service(model_folder, jobs, log) as client:
        wait_for(client, name, IMAGES)
        plain = []
        for first in range(0, IMAGES, 4):
            answer = generate(client, class_label=None, n=4, seed=30 + first, num_inference_steps=50)
            plain += [base64.b64decode(image["b64_json"]) for image in answer.json()["data"]]
    files = {path: path.stat().st_mtime_ns for path in (jobs / name).glob("0*.png")}
    assert written.items() <= files.items()
    assert [path.read_bytes() for path in sorted(files)] == plain
    assert len(set(plain)) == IMAGES
