"""Time and memory of early exits against the full model, at U-ViT-S/2 size with random weights.

One process, variants timed alternately, medians; results are printed, not asserted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from adadiff import AdaptiveModel, ExitPolicy, NeverExit
from adadiff.policies import ExitQuery
from adadiff.runtime import Inputs
from adadiff.utils.timing import median_seconds

DEPTH = 13
UVIT_S2 = {"patch_size": 2, "width": 512, "depth": DEPTH, "num_heads": 8}


@dataclass(frozen=True)
class AskedExit(ExitPolicy):
    """Reads every uncertainty, as a threshold does, but exits sample k after layer `layers[k % len(layers)]`."""

    layers: tuple[int, ...]

    def leaves(self, query: ExitQuery) -> Tensor:
        return torch.tensor(self.layers)[query.rows % len(self.layers)] <= query.layer

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return True


def make_call(model: AdaptiveModel, batch: int, policy: ExitPolicy | None) -> Callable[[], Any]:
    inputs = Inputs(torch.randn(batch, 3, 32, 32, dtype=model.dtype), torch.full((batch,), 500))
    steps = torch.zeros(batch, dtype=torch.int64)

    @torch.inference_mode()
    def call() -> Any:
        if policy is None:
            return model.backbone(inputs.sample, inputs.timestep)
        return model.session(batch).predict(inputs, steps, policy)

    return call


def estimator_share(model: AdaptiveModel, batch: int, repeats: int) -> tuple[float, float]:
    """Time layer 1 alone, and its estimator with the mean of the uncertainties, in seconds."""
    sample, timestep = torch.randn(batch, 3, 32, 32, dtype=model.dtype), torch.full((batch,), 500)
    with torch.inference_mode():
        before = model.backbone.embed(sample, timestep)
        after = model.backbone.layer(1, before)
        parts = {
            "layer": lambda: model.backbone.layer(1, before),
            "estimator": lambda: model.uncertainty(1, after, before).mean((1, 2), dtype=torch.float32),
        }
        seconds = median_seconds(parts, repeats)
    return seconds["layer"], seconds["estimator"]


def peak_memory(call: Callable[[], Any]) -> int:
    """Measure the peak resident memory of the process during the call, in KiB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    call()
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    torch.manual_seed(0)
    model = AdaptiveModel(sample_size=32, in_channels=3, backbone_config=UVIT_S2).eval()
    table = Table("what", "batch", "dtype", "full, s", "adaptive, s", "time ratio", "at most", title="adaptive depth")

    def add_row(what: str, batch: int, full: float, adaptive: float, limit: float) -> None:
        dtype = str(model.dtype).removeprefix("torch.")
        ratio = f"{adaptive / full:.3f}"
        table.add_row(what, str(batch), dtype, f"{full:.4f}", f"{adaptive:.4f}", ratio, f"{limit:.3f}")

    def compare(what: str, batch: int, policy: ExitPolicy, limit: float) -> None:
        calls = {"full": make_call(model, batch, None), "adaptive": make_call(model, batch, policy)}
        seconds = median_seconds(calls, max(options.repeats, 64 // batch))
        add_row(what, batch, seconds["full"], seconds["adaptive"], limit)

    for dtype in (torch.float32, torch.bfloat16):
        nn.Module.to(model, dtype)
        for batch in options.batches:
            compare("all exits looked at, none taken", batch, AskedExit((DEPTH,)), 1.03)
            add_row("one layer, and one estimator alone", batch, *estimator_share(model, batch, 50), 0.03)
    nn.Module.to(model, torch.float32)
    for layer in (3, 6, 9):
        compare(f"all leave at layer {layer} of {DEPTH}", 8, AskedExit((layer,)), layer / DEPTH + 0.03)
    spread = tuple(1 + k * DEPTH // 32 for k in range(32))
    fraction = statistics.mean(spread) / DEPTH
    compare(f"leaving spread over 1..{DEPTH} (layer fraction {fraction:.3f})", 32, AskedExit(spread), fraction + 0.06)

    console = Console(width=140)
    console.print(f"{torch.get_num_threads()} threads, medians of {options.repeats}, torch {torch.__version__}")
    console.print(table)

    calls = {"full": make_call(model, 32, NeverExit()), "adaptive": make_call(model, 32, AskedExit(spread))}
    peaks: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(options.repeats):
        for name, call in calls.items():
            peaks[name].append(peak_memory(call))
    full, adaptive = (statistics.median(peaks[name]) / 1024 for name in ("full", "adaptive"))
    console.print(
        f"peak memory, batch 32: full {full:.0f} MiB, adaptive {adaptive:.0f} MiB: {adaptive / full:.3f}x (<= 1.02)"
    )


if __name__ == "__main__":
    main()
