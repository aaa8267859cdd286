"""`adadiff info`: print what a preset's training needs, or the plans that a model's folder holds."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from tyro.conf import Positional

from adadiff.cli.output import console
from adadiff.utils.errors import lookup
from adadiff.utils.files import is_stock, model_folder


def info_command(name: Positional[str], policy: Path | None = None) -> None:
    """Print what a preset's training needs, before anything is trained, and the plans that a model's folder holds.

    Of a preset, the parameters, FLOPs and memory of its model and training. Of a model, what each of its plans takes;
    a name of both, as digits, gives both.

    Args:
        name: Name of a preset, as `adadiff train` takes it; a model folder, or the name of a packaged model.
        policy: Folder of the model's plans, as `calibrate --out` or `tune --out` made it; by default the model's own.
    """
    from adadiff.training.presets import PRESETS

    folder = model_folder(name)
    is_model = policy is not None or ((folder / "model_index.json").is_file() and not is_stock(folder))
    if policy is None and (name in PRESETS or not is_model):
        _print_preset(name)
    if is_model:
        _print_plans(folder, policy)


def _print_plans(folder: Path, policy: Path | None) -> None:
    from adadiff.cli.shared import load_pipeline
    from adadiff.sampling.budgets import Budgets

    budgets = Budgets(load_pipeline(folder, "float32", "cpu", policy=policy))
    title = f"plans of {folder.name}; compute is over the full model's"
    table = Table("compute", "steps", "guidance", "exits", "", title=title)
    for name, pipeline in budgets.plans.items():
        plan, is_full = pipeline.sampling_settings(), pipeline is budgets.full
        note = "the full model" if is_full else "the model's own" if name == budgets.own else ""
        exits = "none" if is_full else type(plan.policy).__name__
        table.add_row(f"{budgets.computes[name]:.1%}", str(plan.steps), plan.guidance.in_words, exits, note)
    console.print(table)


def _print_preset(preset: str) -> None:
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
