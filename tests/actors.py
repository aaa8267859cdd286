"""What tests of work on a Ray cluster share: its processes, killed or counted, and what actors sampled."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

WORKER = "ray::Worker"
"""Title of the processes that sample batches."""


def ray_processes(title: str = "ray::") -> list[psutil.Process]:
    """The processes of Ray that this one has started, by the beginning of their title."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill(title: str) -> int:
    """Kill -9 all actors of that title, and return their number."""
    processes = ray_processes(title)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    return len(processes)


def content(folder: Path) -> dict[str, Any]:
    """Pixels and notes of every image, but for the seconds."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("0*.png")):
        with Image.open(path) as image:
            notes = {name: value for name, value in image.info.items() if name != "seconds"}
            found[path.name] = (np.array(image).tobytes(), notes)
    return found
