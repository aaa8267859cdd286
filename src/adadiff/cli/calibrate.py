"""`adadiff calibrate`: an exit policy for a goal, kept with the model."""

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
    """Find when samples shall leave, for a budget, a bound on the error or a speedup, and keep it with the model.

    Samples with the full model and with policies of several kinds, prints what each costs in error, and writes the best
    one's exit_policy.json and calibration.png into the model's folder; `adadiff sample` takes it from there. After an
    interruption the same command goes on. No images are needed. The error is the mean squared difference from the full
    model's images over their variance.

    Args:
        model: Model folder, as `adadiff train` makes it; to calibrate a packaged model, copy it by `adadiff export`.
        compute: Spend this fraction of the full model's FLOPs, at the best quality.
        error: Spend as little as possible with the error below this, with the given confidence.
        speedup: Be so many times as fast as the full model on this machine, at the best quality.
        confidence: Of the bound on the error.
        steps: Sampling steps; by default the model's own.
        scheduler: ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral; by default the model's own.
        guidance_scale: Strength of classifier-free guidance; by default the model's own.
        prompts: File of texts, one a line, for a model that takes text; one with classes takes all of them.
        metric: package.module:name of a function that gives the errors, from the full and the adaptive images, (batch,
            channels, height, width) in [0, 1], to (batch,) in [0, 1].
        samples: How many to calibrate on, and as many fresh ones to check.
        batch_size: Images sampled at once.
        seed: Of the noise.
        dtype: Arithmetic of the model.
        device: cpu, cuda, ..., or auto: cuda where there is one.
        replace: Take the place of an earlier exit_policy.json.
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
            f"{model} comes with the package, where nothing is written: make a copy of your own with adadiff export "
            f"{model} FOLDER, and calibrate that"
        )
    if (model / EXIT_POLICY).exists() and not replace:
        raise InputError(f"{model} holds an {EXIT_POLICY} already: add --replace, or move it away")
    own = FolderSettings.load(model, policy=False)  # the earlier one may be damaged, or of other weights
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
    console.print(f"the policy is in {calibration.save(model)}, the plot in {model / 'calibration.png'}")
