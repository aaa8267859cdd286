"""A service in a process of its own, as `adadiff serve` starts it: what the benchmarks of its robustness share."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

ADDRESS = re.compile(r"is served at (http://127\.0\.0\.1:\d+) ")
PATIENCE = 120.0


@dataclass(frozen=True)
class Service:
    """A running service.

    Args:
        process: The process of `adadiff serve`.
        address: Where it takes requests.
    """

    process: subprocess.Popen[str]
    address: str

    def client(self, timeout: float = PATIENCE) -> httpx2.Client:
        return httpx2.Client(base_url=self.address, timeout=timeout)


@contextmanager
def serving(*arguments: str) -> Iterator[Service]:
    """Start `adadiff serve` with the arguments on a free port, and kill it at the end of the block."""
    command = [sys.executable, "-u", "-m", "adadiff", "serve", *arguments, "--port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True)
        try:
            assert process.stdout is not None
            found = ADDRESS.search(process.stdout.readline())
            assert found, log.read_text()
            yield Service(process, found[1])
        finally:
            process.kill()
            process.wait()
