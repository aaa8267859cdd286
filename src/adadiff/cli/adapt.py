"""`adadiff adapt`: fit exit heads and uncertainty estimators to a stock pipeline, and store them with it."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from adadiff.cli.options import Dtype, ModelFolder
from adadiff.cli.output import console
from adadiff.utils.errors import InputError
from adadiff.utils.files import is_stock
from adadiff.utils.ranges import Count, CountOrZero, GuidanceScale, Seed, checked


@checked
def adapt_command(
    model: Positional[ModelFolder],
    out: Path | None = None,
    steps: Count | None = None,
    scheduler: str | None = None,
    guidance_scale: GuidanceScale | None = None,
    prompts: Path | None = None,
    class_index: tuple[CountOrZero, ...] = (),
    argument: tuple[str, ...] = (),
    samples: Count = 32,
    batch_size: Count = 8,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: str = "auto",
    replace: bool = False,
) -> None:
    """Fit exit heads and uncertainty estimators to a stock diffusers pipeline, and store them with it.

    Samples with all layers; no images are needed and the model's weights stay as they are. Afterwards `adadiff sample`
    takes thresholds for the pipeline (--tau), by which each sample exits by itself.

    Args:
        model: Folder of the pipeline, or its name on the Hugging Face Hub.
        out: Folder for adaptation.safetensors; by default the model's.
        steps: Number of sampling steps; by default the pipeline's own.
        scheduler: Scheduler: ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral; by default the pipeline's own.
        guidance_scale: Scale of classifier-free guidance; by default the pipeline's own.
        prompts: Text file with one prompt per line, for a pipeline that takes text.
        class_index: Indices of the classes to sample in turn; by default all that the pipeline names.
        argument: Other arguments of the pipeline's call, as max_sequence_length=77.
        samples: Number of samples to fit the heads on; as many fresh ones for the estimators.
        batch_size: Images per batch.
        seed: Seed of the noise, at least 0.
        dtype: Precision of the model.
        device: Device: cpu, cuda, ..., or auto for cuda if available.
        replace: Replace an earlier adaptation.safetensors.
    """
    from adadiff.cli.shared import chosen_prompts
    from adadiff.cli.stock import call_arguments, load_stock_pipeline, stock_conditions
    from adadiff.stock import adapt
    from adadiff.stock.adaptation import ADAPTATION
    from adadiff.utils.files import PRETRAINED

    if not is_stock(model):
        raise InputError(f"{model} is a model of adadiff's own, which has exit heads and estimators already")
    if out is None and (not model.is_dir() or PRETRAINED in model.parents):
        raise InputError(f"{model} is no folder of yours: say where the adaptation goes, with --out FOLDER")
    folder = out or model
    if (folder / ADAPTATION).exists() and not replace:
        raise InputError(f"{folder} already holds an {ADAPTATION}: add --replace, or move it away")
    pipe = load_stock_pipeline(model, dtype, device, scheduler)
    conditions = stock_conditions(pipe, chosen_prompts((), prompts), (), class_index)
    arguments = call_arguments(argument, steps, guidance_scale)
    adaptation = adapt(pipe, conditions, samples=samples, batch_size=batch_size, seed=seed, **arguments)
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"the exit heads and estimators are in {adaptation.save(folder)}")
