"""`adadiff calibrate`: find an exit policy for a goal and store it with the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from adadiff.calibration.goal import SEED, Goal
from adadiff.cli.options import FitOptions
from adadiff.utils.errors import InputError, imported
from adadiff.utils.files import is_stock, model_folder
from adadiff.utils.ranges import Count, Seed, checked

if TYPE_CHECKING:
    from adadiff.calibration.metric import Metric


@checked
def calibrate_command(
    model: Positional[Path],
    compute: tuple[float, ...] = (),
    error: float | None = None,
    speedup: float | None = None,
    confidence: float = 0.95,
    metric: str | None = None,
    samples: Count | None = None,
    batch_size: Count | None = None,
    seed: Seed = SEED,
    reference_steps: Count | None = None,
    periodic: bool = False,
    refine: bool = True,
    *,
    options: Annotated[FitOptions, arg(name="")],
) -> None:
    """Find the exit policy for a compute budget, an error bound or a speedup, and store it with the model.

    Samples with the full model and with policies of several kinds, prints the error of each, and writes the best one's
    exit_policy.json and calibration.png into the model's folder, where `adadiff sample` finds it, or into that of
    --out, for `sample --policy`. After an interruption the same command continues. No images are needed. The error is
    the mean squared difference from the full model's images over their variance.

    Args:
        model: Model folder, as `adadiff train` makes it, or with --out the name of a packaged model; or a stock
            diffusers pipeline: its folder, or with --out its name on the Hugging Face Hub.
        compute: Fraction of the full model's FLOPs to spend, in (0, 1); the least error at that compute is found.
            Several, for a model of adadiff's own, give a policy for each: the first is the model's default, and the
            service offers all.
        error: Bound on the mean error, in (0, 1); the least compute that keeps it is found.
        speedup: Speed relative to the full model on this machine, above 1; the least error at that speed is found.
        confidence: Confidence of the bound on the error, in (0, 1).
        metric: Error function, as package.module:name; it maps two batches of images in [0, 1], the full model's and
            those with early exits, (batch, channels, height, width), to errors, (batch,) in [0, 1].
        samples: Number of samples to calibrate on; as many fresh ones check the result. By default 192, or 16 for a
            stock pipeline.
        batch_size: Images per batch; by default 32, or 8 for a stock pipeline.
        seed: Seed of the noise, at least 0.
        reference_steps: With --compute, choose the number of steps too: the one at which the budget comes nearest to
            all layers at this many steps. The budget is of the FLOPs at the default number.
        periodic: Choose a corrected schedule that is full at every k-th step: samples of one meet at full steps in a
            service. The error of the best schedule of any form is printed beside its own.
        refine: Fit a corrected schedule to its own images, for a compute budget or a speedup: less error, and a longer
            calibration, which samples once more for each weight.
        options: How the model is sampled, and where the policy is stored.
    """
    from adadiff.cli.shared import require_free, require_own_folder
    from adadiff.policies.stored import EXIT_POLICY, other_policies

    budgets: tuple[float | None, ...] = tuple(dict.fromkeys(compute)) or (None,)
    goals, folder = [Goal(each, error, speedup, confidence) for each in budgets], model_folder(model)
    if reference_steps is not None and len(compute) != 1:
        raise InputError("--reference-steps goes with --compute, one budget: leave it out")
    require_own_folder(model, options, "policy")
    place = options.out or model
    require_free(place, [EXIT_POLICY, *other_policies(place)], options)
    judged_by, how = None if metric is None else imported(metric), (seed, reference_steps, periodic, refine)
    if is_stock(folder):
        from adadiff.cli.stock import calibrate_stock

        if len(goals) > 1:
            raise InputError("a stock pipeline's folder holds one policy: give one budget as --compute")
        calibrate_stock(folder, goals[0], place, options, judged_by, samples or 16, batch_size or 8, *how)
        return
    if options.argument:
        raise InputError("--argument is for stock pipelines: leave it out")
    _calibrate_own(folder, goals, place, options, judged_by, samples or 192, batch_size or 32, *how)


def _calibrate_own(
    model: Path,
    goals: list[Goal],
    place: Path,
    options: FitOptions,
    metric: Metric | None,
    samples: int,
    batch_size: int,
    seed: int,
    reference_steps: int | None,
    periodic: bool,
    refine: bool,
) -> None:
    """Calibrate a model of our own; for the arguments see `calibrate_command`."""
    from adadiff.calibration.adaptive import AdaptiveSampling
    from adadiff.calibration.run import calibrate_each
    from adadiff.cli.shared import chosen_prompts, load_pipeline, store_calibration, with_chosen_steps
    from adadiff.policies import NeverExit
    from adadiff.sampling import Conditions
    from adadiff.sampling.settings import FolderSettings, resolve

    texts = chosen_prompts((), options.prompts)
    own = FolderSettings.load(model, policy=False)  # an earlier policy may be damaged, or for other weights
    scheduler = options.scheduler or own.scheduler
    pipeline = load_pipeline(model, options.dtype, options.device, scheduler, own_settings=False)
    chosen = resolve(own, pipeline.scheduler, options.steps, options.guidance_scale, policy=NeverExit())
    classes = options.class_index or pipeline.transformer.class_indices
    conditions, steps = Conditions(classes, texts, guidance=chosen.guidance), chosen.steps
    if reference_steps is not None:
        sampling = AdaptiveSampling(pipeline, steps, conditions, seed)
        goal, steps = with_chosen_steps(sampling, goals[0], reference_steps, batch_size, refine)
        goals = [goal]
    found = calibrate_each(
        pipeline,
        goals,
        steps,
        conditions,
        samples,
        metric,
        seed=seed,
        batch_size=batch_size,
        keep=place / ".calibration",
        periodic=periodic,
        refine=refine,
    )
    store_calibration(found[0], place, *found[1:])
