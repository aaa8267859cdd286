"""The time until the package is imported and the command line answers, in fresh processes.

Medians of wall-clock and of user CPU seconds, which other work on the machine changes less; printed, never asserted.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

STARTS = {
    "import adadiff": (["-c", "import adadiff"], 0.3),
    "adadiff --version": (["-m", "adadiff", "--version"], 0.5),
    "adadiff --help": (["-m", "adadiff", "--help"], 1.5),
    "adadiff sample --help": (["-m", "adadiff", "sample", "--help"], 1.5),
}
"""The words after `python`, and the goal in seconds on an idle core."""


def seconds_of(words: list[str]) -> tuple[float, float]:
    """Wall-clock and user CPU seconds of a new Python process."""
    cpu_before, start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    return wall, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - cpu_before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for name, (words, goal) in STARTS.items():
        seconds_of(words)  # fills the caches of files and bytecode
        timed = [seconds_of(words) for _ in range(options.repeats)]
        wall, cpu = (statistics.median(values) for values in zip(*timed, strict=True))
        print(f"{name:22} {wall:.3f} s, {cpu:.3f} s of CPU (goal {goal} s), medians of {options.repeats}")


if __name__ == "__main__":
    main()
