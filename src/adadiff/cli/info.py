"""`adadiff info`: print what a preset's training needs."""

from __future__ import annotations

from rich.table import Table
from tyro.conf import Positional

from adadiff.cli.output import console
from adadiff.utils.errors import lookup


def info_command(preset: Positional[str]) -> None:
    """Print the parameters, FLOPs and memory of a preset's model and training, before anything is trained.

    Args:
        preset: Name of a preset, as `adadiff train` takes it.
    """
    from adadiff.training.footprint import footprint
    from adadiff.training.presets import PRESETS

    chosen = lookup(preset, PRESETS, "preset")
    needs = footprint(chosen)
    train = chosen.train
    table = Table("", "", title=f"{preset}: {chosen.description}", show_header=False)
    table.add_row("parameters", f"{needs.parameters / 1e6:.1f}M, plus {needs.exit_parameters / 1e6:.2f}M of the exits")
    table.add_row("layers", f"{train.model.backbone.depth} of width {train.model.backbone.width}")
    table.add_row("compute", f"{needs.flops / 1e9:.2f} GFLOP per image and step, all layers run, without guidance")
    table.add_row("weights", f"{_bytes(needs.weights)} in float32, half of it in bfloat16")
    table.add_row("memory to sample", f"the weights plus {_bytes(needs.sampling_per_image)} per image in float32")
    table.add_row(
        "memory to train",
        f"{_bytes(needs.training_states)} on each device, plus {_bytes(needs.training_per_image)} per image on it",
    )
    table.add_row("training", f"{train.steps:,} steps of {train.batch_size} images")
    sampling = train.sampling
    guidance = f"guidance scale {sampling.guidance_scale:g}"
    table.add_row("sampling", f"{sampling.scheduler}, {sampling.steps} steps, tau {sampling.tau:g}, {guidance}")
    console.print(table)


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
