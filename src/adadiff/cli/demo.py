"""`adadiff demo`: sample the same noise with the full model and with early exits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.table import Table
from tyro.conf import arg

from adadiff.cli.options import ModelFolder
from adadiff.cli.output import console
from adadiff.utils.errors import InputError, lookup
from adadiff.utils.files import PRETRAINED, is_stock
from adadiff.utils.ranges import Count, Fraction, GuidanceScale, Seed, checked

if TYPE_CHECKING:
    from adadiff.sampling import AdaptivePipeline, SamplingPlan
    from adadiff.sampling.settings import ResolvedPlan


@dataclass(frozen=True)
class DemoTask:
    """A demonstration with a packaged model: its folder, the number of images, and the prompts."""

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
    policy: str | None = None,
    tau: Fraction | None = None,
    min_layer: Count | None = None,
    guidance_scale: GuidanceScale | None = None,
    prompt: tuple[str, ...] = (),
    argument: tuple[str, ...] = (),
    seed: Seed = 0,
) -> None:
    """Sample the same noise with the full model and with early exits; print a table and draw a picture.

    Steps, scheduler, guidance scale and exit policy default to the model's own. A plan of `adadiff tune` is compared
    with the model's default sampling, and with all layers at the guidance that suits them best.

    Args:
        out: Folder for the picture, demo.png.
        task: Packaged model to sample: digits, class (CIFAR-10 by class) or text (emoji from their names).
        model: Model folder, name of a packaged model, or a stock diffusers pipeline with a stored policy, in place of
            the task's.
        n: Number of images; by default 64 digits, 20 of class, 12 of text.
        steps: Number of sampling steps; by default the model's own.
        scheduler: Scheduler: ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral; by default the model's own.
        policy: Folder of the policy, as `calibrate --out` or `tune --out` made it, or for a stock pipeline a name on
            the Hugging Face Hub; by default the model's own.
        tau: Exit threshold on the mean uncertainty, in [0, 1]; by default the model's own policy.
        min_layer: First layer after which a sample may exit, counted from 1; by default the model's own.
        guidance_scale: Scale of classifier-free guidance; 1 means no guidance. By default the model's own.
        prompt: Prompts, assigned to the images in turn, for a model that takes text; by default the task's.
        argument: For a stock pipeline, other arguments of its call, as max_sequence_length=77.
        seed: Seed of the noise, at least 0.
    """
    from adadiff.cli.shared import load_pipeline
    from adadiff.comparison.demo import compare, comparison_rows, draw_comparison, require_own_folder
    from adadiff.sampling import Conditions

    require_own_folder(out, own={"demo.png"})
    chosen_task = lookup(task, DEMO_TASKS, "task")
    folder, n = model or PRETRAINED / chosen_task.model, chosen_task.n if n is None else n
    if is_stock(folder):
        from adadiff.cli.stock import compare_stock

        if tau is not None or min_layer is not None:
            raise InputError(f"--tau and --min-layer are for models of adadiff's own, and {folder} is none")
        comparison = compare_stock(folder, n, steps, scheduler, policy, guidance_scale, prompt, argument, seed)
    else:
        pipeline = load_pipeline(folder, "float32", "cpu", scheduler, policy=policy)
        chosen = pipeline.sampling_settings(steps, guidance_scale, tau, min_layer=min_layer)
        texts = prompt or (chosen_task.prompts if model is None else ())
        conditions = Conditions(pipeline.transformer.class_indices, texts)
        comparison = compare(pipeline, _plans(pipeline, chosen), n, seed, conditions)

    table = Table("", "steps", "layers", "compute", "seconds", "speedup", "difference", title=f"{n} images")
    for row in comparison_rows(comparison):
        table.add_row(*row)
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    draw_comparison(comparison, out / "demo.png")
    console.print(f"the picture is {out / 'demo.png'}")


def _plans(pipeline: AdaptivePipeline, chosen: ResolvedPlan) -> dict[str, SamplingPlan]:
    """Return the plans to compare by their names: of a tuned plan, those that `adadiff tune` measured beside it."""
    from adadiff.sampling import SamplingPlan
    from adadiff.sampling.plan import plan_from

    plan = SamplingPlan(chosen.steps, chosen.policy, chosen.guidance, chosen.scheduler, chosen.spacing)
    stored = pipeline.own_settings.stored
    if stored is None or plan != stored.plan or "full_model_at_its_best" not in stored.found:
        return {"full": plan.without_exits, "adaptive": plan}
    beside = {"full": "default", "best full": "full_model_at_its_best"}
    return {name: plan_from(stored.found[entry]["plan"]) for name, entry in beside.items()} | {"tuned": plan}
