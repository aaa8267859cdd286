"""`adadiff demo`: the same noise in full and adaptively."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.table import Table
from tyro.conf import arg

from adadiff.cli.options import ModelFolder
from adadiff.cli.output import console
from adadiff.utils.errors import lookup
from adadiff.utils.files import PRETRAINED
from adadiff.utils.ranges import Count, Fraction, GuidanceScale, Seed, checked


@dataclass(frozen=True)
class DemoTask:
    """What the demo shows of a model that comes with the package: its folder, how many images, and of what."""

    model: str
    n: int
    prompts: tuple[str, ...] = ()


DEMO_TASKS = {
    "digits": DemoTask("digits", 64),
    "class": DemoTask("cifar10-class-xs", 20),
    "text": DemoTask("emoji-text-xs", 12, ("red apple", "grinning face", "rocket", "snowman")),
}


@checked
def demo_command(
    out: Path = Path("demo"),
    task: str = "digits",
    model: ModelFolder | None = None,
    n: Annotated[Count | None, arg(aliases=["-n"])] = None,
    steps: Count | None = None,
    scheduler: str | None = None,
    tau: Fraction | None = None,
    min_layer: Count | None = None,
    guidance_scale: GuidanceScale | None = None,
    prompt: tuple[str, ...] = (),
    seed: Seed = 0,
) -> None:
    """Sample the same noise with the full model and adaptively: one table, one picture.

    Steps, scheduler, guidance scale and when samples leave are the model's own where nothing is given.

    Args:
        out: Folder for the picture, demo.png.
        task: Which of the models that come with the package: digits, class for CIFAR-10, or text for emoji.
        model: Another model folder, or the name of a packaged model.
        n: Number of images; by default as many as suit the task.
        steps: Sampling steps.
        scheduler: ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral.
        tau: Exit threshold in [0, 1].
        min_layer: No sample leaves before this layer.
        guidance_scale: Strength of classifier-free guidance; 1 means none.
        prompt: Texts for a model that takes text, in turns; by default some that suit the task.
        seed: Of the noise.
    """
    from adadiff.cli.shared import load_pipeline
    from adadiff.comparison.demo import compare, comparison_rows, draw_comparison, require_own_folder
    from adadiff.sampling import Conditions, Guidance

    require_own_folder(out, own={"demo.png"})
    shown = lookup(task, DEMO_TASKS, "task")
    folder, n = model or PRETRAINED / shown.model, shown.n if n is None else n
    pipeline = load_pipeline(folder, "float32", "cpu", scheduler)
    chosen = pipeline.sampling_settings(steps, guidance_scale, tau, min_layer=min_layer)
    texts = prompt or (shown.prompts if model is None else ())
    conditions = Conditions(pipeline.transformer.class_indices, texts, guidance=Guidance(chosen.guidance_scale))
    comparison = compare(pipeline, chosen.policy, n, chosen.steps, seed, conditions)

    table = Table(
        "", "layers", "compute", "seconds", "speedup", "difference", title=f"{n} images, {chosen.steps} steps"
    )
    for row in comparison_rows(comparison):
        table.add_row(*row)
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    draw_comparison(comparison, out / "demo.png")
    console.print(f"the picture is {out / 'demo.png'}")
