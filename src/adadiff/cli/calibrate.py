"""`adadiff calibrate`: find an exit policy for a goal and store it with the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from adadiff.calibration.goal import SEED, Goal
from adadiff.cli.options import Dtype
from adadiff.utils.errors import InputError, imported
from adadiff.utils.files import is_stock, model_folder
from adadiff.utils.ranges import Count, CountOrZero, GuidanceScale, Seed, checked

if TYPE_CHECKING:
    from adadiff.calibration.metric import Metric


@checked
def calibrate_command(
    model: Positional[Path],
    compute: float | None = None,
    error: float | None = None,
    speedup: float | None = None,
    confidence: float = 0.95,
    steps: Count | None = None,
    scheduler: str | None = None,
    guidance_scale: GuidanceScale | None = None,
    prompts: Path | None = None,
    class_index: tuple[CountOrZero, ...] = (),
    argument: tuple[str, ...] = (),
    metric: str | None = None,
    samples: Count | None = None,
    batch_size: Count | None = None,
    seed: Seed = SEED,
    dtype: Dtype = "float32",
    device: str = "auto",
    out: Path | None = None,
    replace: bool = False,
) -> None:
    """Find the exit policy for a compute budget, an error bound or a speedup, and store it with the model.

    Samples with the full model and with policies of several kinds, prints the error of each, and writes the best one's
    exit_policy.json and calibration.png into the model's folder, where `adadiff sample` finds it. After an interruption
    the same command continues. No images are needed. The error is the mean squared difference from the full model's
    images over their variance.

    Args:
        model: Model folder, as `adadiff train` makes it (to calibrate a packaged model, copy it by `adadiff export`),
            or a stock diffusers pipeline: its folder, or its name on the Hugging Face Hub.
        compute: Fraction of the full model's FLOPs to spend, in (0, 1); the least error at that compute is found.
        error: Bound on the mean error, in (0, 1); the least compute that keeps it is found.
        speedup: Speed relative to the full model on this machine, above 1; the least error at that speed is found.
        confidence: Confidence of the bound on the error, in (0, 1).
        steps: Number of sampling steps; by default the model's own.
        scheduler: Scheduler: ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral; by default the model's own.
        guidance_scale: Scale of classifier-free guidance, 1 for none; by default the model's own.
        prompts: Text file with one prompt per line, for a model that takes text.
        class_index: Indices of the classes to sample in turn; by default all classes of the model.
        argument: For a stock pipeline, other arguments of its call, as max_sequence_length=77.
        metric: Error function, as package.module:name; it maps two batches of images in [0, 1], the full model's and
            those with early exits, (batch, channels, height, width), to errors, (batch,) in [0, 1].
        samples: Number of samples to calibrate on; as many fresh ones check the result. By default 192, or 16 for a
            stock pipeline.
        batch_size: Images per batch; by default 32, or 8 for a stock pipeline.
        seed: Seed of the noise, at least 0.
        dtype: Precision of the model.
        device: Device: cpu, cuda, ..., or auto for cuda if available.
        out: For a stock pipeline, the folder for the policy; by default the model's.
        replace: Replace an earlier exit_policy.json.
    """
    from adadiff.policies.stored import EXIT_POLICY

    goal, folder = Goal(compute, error, speedup, confidence), model_folder(model)
    if ((out or model) / EXIT_POLICY).exists() and not replace:
        raise InputError(f"{out or model} already holds an {EXIT_POLICY}: add --replace, or move it away")
    calling = (steps, scheduler, guidance_scale, prompts, class_index)
    judged_by = None if metric is None else imported(metric)
    if is_stock(folder):
        from adadiff.cli.stock import calibrate_stock

        place = out or model
        if out is None and (folder != model or not model.is_dir()):
            raise InputError(f"{model} is no folder of yours: say where the policy goes, with --out FOLDER")
        sizes = (samples or 16, batch_size or 8)
        calibrate_stock(folder, goal, place, *calling, argument, judged_by, *sizes, seed, dtype, device)
        return
    if out is not None or argument:
        raise InputError("--out and --argument are for stock pipelines; the policy goes into the model's own folder")
    if folder != model:
        raise InputError(
            f"{model} is a packaged model, which is never written to: copy it with adadiff export {model} FOLDER, and "
            f"calibrate the copy"
        )
    _calibrate_own(model, goal, *calling, judged_by, samples or 192, batch_size or 32, seed, dtype, device)


def _calibrate_own(
    model: Path,
    goal: Goal,
    steps: int | None,
    scheduler: str | None,
    guidance_scale: float | None,
    prompts: Path | None,
    class_index: tuple[int, ...],
    metric: Metric | None,
    samples: int,
    batch_size: int,
    seed: int,
    dtype: Dtype,
    device: str,
) -> None:
    """Calibrate a model of our own; for the arguments see `calibrate_command`."""
    from adadiff.calibration import calibrate
    from adadiff.cli.shared import chosen_prompts, load_pipeline, store_calibration
    from adadiff.policies import NeverExit
    from adadiff.sampling import Conditions
    from adadiff.sampling.settings import FolderSettings, resolve

    own = FolderSettings.load(model, policy=False)  # an earlier policy may be damaged, or for other weights
    pipeline = load_pipeline(model, dtype, device, scheduler or own.scheduler, own_settings=False)
    chosen = resolve(own, pipeline.scheduler, steps, guidance_scale, policy=NeverExit())
    classes = class_index or pipeline.transformer.class_indices
    texts = chosen_prompts((), prompts)
    found = calibrate(
        pipeline,
        goal,
        chosen.steps,
        Conditions(classes, texts, guidance=chosen.guidance),
        samples,
        metric,
        seed=seed,
        batch_size=batch_size,
        keep=model / ".calibration",
    )
    store_calibration(found, model)
