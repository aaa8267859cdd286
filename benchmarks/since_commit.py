"""Time of `adaptive_depth.py`'s calls now against an earlier commit, one process each, taking turns.

    python benchmarks/since_commit.py HEAD~20

Both processes stay alive and are asked for one call at a time, so that both see the same machine load. Medians of the
seconds and of the ratios of neighbouring calls are printed, not asserted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
CASES = {  # batch, and the layers that samples exit after in turn; none is the full model
    "full model, batch 8": (8, ()),
    "all exits looked at, none taken, batch 1": (1, (13,)),
    "all exits looked at, none taken, batch 8": (8, (13,)),
    "all leave at layer 3, batch 8": (8, (3,)),
    "leaving spread over 1..13, batch 32": (32, tuple(1 + k * 13 // 32 for k in range(32))),
}
WORKER = """
import sys, time, torch
from adaptive_depth import UVIT_S2, AskedExit, make_call
from adadiff import AdaptiveModel
torch.manual_seed(0)
model = AdaptiveModel(sample_size=32, in_channels=3, backbone_config=UVIT_S2).eval()
calls = {{}}
for name, (batch, layers) in {cases}.items():
    calls[name] = make_call(model, batch, AskedExit(layers) if layers else None)
for call in calls.values():
    call()
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    calls[line.strip()]()
    print(time.perf_counter() - start, flush=True)
"""


class Worker:
    """A process that runs the calls of one tree's code when asked."""

    def __init__(self, tree: Path) -> None:
        path = os.pathsep.join([str(tree / "src"), str(tree / "benchmarks")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER.format(cases=CASES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._read()

    def seconds(self, case: str) -> float:
        """Run a case once and return its seconds."""
        assert self.process.stdin is not None
        print(case, file=self.process.stdin, flush=True)
        return float(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a process ended early: its message is above")
        return line

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def compare(commit: str, repeats: int) -> Table:
    """Time every case at the commit and now."""
    table = Table("call", "before, s", "now, s", "now / before", title=f"since {commit}")
    with tempfile.TemporaryDirectory() as folder:
        before_tree = Path(folder, "before")
        git = ["git", "-C", str(REPOSITORY), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(before_tree), commit], check=True)
        try:
            before, now = Worker(before_tree), Worker(REPOSITORY)
            for case, (batch, _) in CASES.items():
                pairs = [(before.seconds(case), now.seconds(case)) for _ in range(max(repeats, 64 // batch))]
                seconds = [statistics.median(times) for times in zip(*pairs, strict=True)]
                ratio = statistics.median(after / earlier for earlier, after in pairs)
                table.add_row(case, f"{seconds[0]:.4f}", f"{seconds[1]:.4f}", f"{ratio:.3f}")
            for worker in (before, now):
                worker.stop()
        finally:
            subprocess.run([*git, "remove", "--force", str(before_tree)], check=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    Console(width=120).print(compare(options.commit, options.repeats))


if __name__ == "__main__":
    main()
