"""`adadiff sample`: sample images into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from adadiff.cli.options import ModelFolder, SampleOptions
from adadiff.cli.output import console
from adadiff.utils.files import is_stock
from adadiff.utils.ranges import checked


@checked
def sample_command(model: Positional[ModelFolder], out: Path, options: Annotated[SampleOptions, arg(name="")]) -> None:
    """Sample images into a folder: PNG files, a grid, the trace as JSON, and the heat map of the exits.

    Image k depends only on the seed and k, not on the batch size. After an interruption the same command continues.
    Steps, scheduler, guidance scale and exit policy default to the model's own: those of its exit_policy.json, which
    `adadiff calibrate` writes, or of its sampling.json. --tau 0 runs the full model. Several processes:
    `torchrun --nproc_per_node 2 -m adadiff sample ...`; many machines: --cluster.

    Args:
        model: Model folder, as `adadiff train` makes it, or the name of a packaged model; or a stock diffusers
            pipeline: its folder, or its name on the Hugging Face Hub.
        out: Folder for the images.
        options: Which images to sample, with which settings.
    """
    if is_stock(model):
        from adadiff.cli.stock import sample_stock

        found = sample_stock(model, out, options)
        layers = "" if found.trace is None else f"; layers run {found.trace.layer_fraction:.1%}"
        console.print(f"{options.n} images in {out} ({options.n / found.seconds:.2f} images/s){layers}")
        return
    from adadiff.cli.shared import sample_with_options
    from adadiff.utils.processes import process_state

    summary, budgets = sample_with_options(model, out, options)
    if process_state().is_main_process:
        totals = summary.totals
        compute = totals.flops / totals.images / budgets.full_flops
        console.print(
            f"{options.n} images in {out} ({summary.images_per_second:.2f} images/s); layers run "
            f"{totals.layer_fraction:.1%} at each step, compute {compute:.1%} of the full model's in "
            f"{budgets.full.sampling_settings().steps} steps"
        )
