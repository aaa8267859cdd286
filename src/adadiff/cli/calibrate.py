"""`adadiff calibrate`: find an exit policy for a goal and store it with the model."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from adadiff.calibration.goal import SEED, Goal
from adadiff.cli.options import Dtype
from adadiff.cli.output import console
from adadiff.utils.errors import InputError, imported
from adadiff.utils.files import model_folder
from adadiff.utils.ranges import Count, GuidanceScale, Seed, checked


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
    metric: str | None = None,
    samples: Count = 192,
    batch_size: Count = 32,
    seed: Seed = SEED,
    dtype: Dtype = "float32",
    device: str = "auto",
    replace: bool = False,
) -> None:
    """Find the exit policy for a compute budget, an error bound or a speedup, and store it with the model.

    Samples with the full model and with policies of several kinds, prints the error of each, and writes the best one's
    exit_policy.json and calibration.png into the model's folder, where `adadiff sample` finds it. After an interruption
    the same command continues. No images are needed. The error is the mean squared difference from the full model's
    images over their variance.

    Args:
        model: Model folder, as `adadiff train` makes it; to calibrate a packaged model, copy it by `adadiff export`.
        compute: Fraction of the full model's FLOPs to spend, in (0, 1); the least error at that compute is found.
        error: Bound on the mean error, in (0, 1); the least compute that keeps it is found.
        speedup: Speed relative to the full model on this machine, above 1; the least error at that speed is found.
        confidence: Confidence of the bound on the error, in (0, 1).
        steps: Number of sampling steps; by default the model's own.
        scheduler: Scheduler: ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral; by default the model's own.
        guidance_scale: Scale of classifier-free guidance, 1 for none; by default the model's own.
        prompts: Text file with one prompt per line, for a model that takes text; classes are all sampled in turn.
        metric: Error function, as package.module:name; it maps two batches of images in [0, 1], the full model's and
            those with early exits, (batch, channels, height, width), to errors, (batch,) in [0, 1].
        samples: Number of samples to calibrate on; as many fresh ones check the result.
        batch_size: Images per batch.
        seed: Seed of the noise, at least 0.
        dtype: Precision of the model.
        device: Device: cpu, cuda, ..., or auto for cuda if available.
        replace: Replace an earlier exit_policy.json.
    """
    from adadiff.calibration import calibrate, calibration_table, draw_calibration
    from adadiff.cli.shared import chosen_prompts, load_pipeline
    from adadiff.policies import NeverExit
    from adadiff.policies.stored import EXIT_POLICY
    from adadiff.sampling import Conditions, Guidance
    from adadiff.sampling.settings import FolderSettings, resolve

    goal = Goal(compute, error, speedup, confidence)
    if model_folder(model) != model:
        raise InputError(
            f"{model} is a packaged model, which is never written to: copy it with adadiff export {model} FOLDER, and "
            f"calibrate the copy"
        )
    if (model / EXIT_POLICY).exists() and not replace:
        raise InputError(f"{model} already holds an {EXIT_POLICY}: add --replace, or move it away")
    own = FolderSettings.load(model, policy=False)  # an earlier policy may be damaged, or for other weights
    pipeline = load_pipeline(model, dtype, device, scheduler or own.scheduler, own_settings=False)
    chosen = resolve(own, pipeline.scheduler, steps, guidance_scale, policy=NeverExit())
    texts = chosen_prompts((), prompts)
    conditions = Conditions(pipeline.transformer.class_indices, texts, guidance=Guidance(chosen.guidance_scale))
    calibration = calibrate(
        pipeline,
        goal,
        chosen.steps,
        conditions,
        samples,
        None if metric is None else imported(metric),
        seed=seed,
        batch_size=batch_size,
        keep=model / ".calibration",
    )
    console.print(calibration_table(calibration))
    draw_calibration(calibration, model / "calibration.png")
    console.print(f"the policy is in {calibration.save(model)}, its plot in {model / 'calibration.png'}")
