"""Steps shared by several commands: load a model folder, choose a policy, sample into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.utils.logging import disable_progress_bar

from adadiff.cli.options import LOCAL_CLUSTER, Dtype, FitOptions, SampleOptions
from adadiff.cli.output import console
from adadiff.policies import ExitPolicy, FixedExit, NeverExit, PatienceExit, ThresholdExit
from adadiff.policies.stored import save_policies
from adadiff.sampling import AdaptivePipeline, Conditions, Guidance, InternalGuidance, SamplingPlan
from adadiff.sampling.budgets import Budgets
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.sampling.folder import FolderSummary, Spread, one_by_one, sample_to_folder
from adadiff.sampling.settings import FolderSettings, resolve
from adadiff.utils.errors import InputError
from adadiff.utils.files import PRETRAINED, is_stock, model_folder, read_text
from adadiff.utils.processes import process_state

if TYPE_CHECKING:
    from adadiff.calibration import Calibration, Goal
    from adadiff.calibration.sampling import Sampling


def load_pipeline(
    folder: Path,
    dtype: Dtype,
    device: str,
    scheduler: str | None = None,
    own_settings: bool = True,
    policy: str | Path | None = None,
) -> AdaptivePipeline:
    """Load a model folder's pipeline, with the named scheduler and the policies of that folder if they are given."""
    place = device_of(device)
    disable_progress_bar()
    named = {} if scheduler is None else {"scheduler": scheduler}
    pipeline = AdaptivePipeline.from_pretrained(folder, own_settings, policy, **named).to(place)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        if part is not None:
            # diffusers' own `to` warns of parts to keep in float32 for any dtype, even where there are none.
            torch.nn.Module.to(part, getattr(torch, dtype))
    return pipeline


def load_with_default_plan(
    folder: Path, dtype: Dtype, device: str, options: FitOptions | None = None
) -> tuple[AdaptivePipeline, SamplingPlan]:
    """Load a model folder's pipeline without its policy, which is no reference, and its default plan, all layers.

    Args:
        folder: The model folder.
        dtype: Precision of the model.
        device: Its device.
        options: May name another scheduler, number of steps and guidance scale than the model's own.
    """
    from adadiff.tuning import default_plan

    chosen, own = options or FitOptions(), FolderSettings.load(folder, policy=False)
    pipeline = load_pipeline(folder, dtype, device, chosen.scheduler or own.scheduler, own_settings=False)
    plan = resolve(own, pipeline.scheduler, chosen.steps, chosen.guidance_scale, policy=NeverExit())
    return pipeline, default_plan(pipeline, plan)


def device_of(name: str) -> torch.device:
    """Return the device of that name if it exists; for auto, the device of this process."""
    if name == "auto":
        return torch.device(process_state().device)
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise InputError(f"there is no device {name!r}: no CUDA device was found; choose cpu, or auto") from error
        raise InputError(f"there is no device {name!r} on this machine: choose cpu, or cuda if available") from error
    return place


def sample_with_options(model: Path, out: Path, options: SampleOptions) -> tuple[FolderSummary, Budgets]:
    """Sample into a folder by the options, and by the model's own settings for options that are not given.

    Returns:
        The totals, and what compute is relative to.
    """
    if options.classes and options.class_index:
        raise InputError("give either --class or --class-index, not both")
    for name, given in (("argument", options.argument), ("adaptation", options.adaptation)):
        if given:
            raise InputError(f"--{name} is for stock pipelines: leave it out")
    prompts = chosen_prompts(options.prompt, options.prompts)
    device = device_here(options.device, options.cluster)
    pipeline = load_pipeline(model, options.dtype, device, options.scheduler, policy=options.policy)
    budgets = Budgets(pipeline)
    if options.budget is not None:
        if options.scheduler is not None:
            raise InputError("--budget chooses a plan with its scheduler: leave --scheduler out")
        pipeline = budgets.plans[budgets.named(options.budget)]
    policy = _chosen_policy(options, pipeline.own_settings.sampling)
    guidance = _chosen_guidance(options, pipeline.own_settings.guidance)
    chosen = pipeline.sampling_settings(options.steps, policy=policy, guidance=guidance)
    classes = options.classes or options.class_index or pipeline.transformer.class_indices
    conditions = Conditions(classes, prompts, options.negative_prompt, guidance)
    with spread_over(options.cluster, options.device) as spread:
        summary = sample_to_folder(
            pipeline, out, options.n, chosen.steps, chosen.policy, options.seed, conditions, options.batch_size, spread
        )
    return summary, budgets


def device_here(device: str, cluster: str | None) -> str:
    """Return where this process loads a model: on the CPU if it samples on a cluster, whose machines move it to theirs.

    Args:
        device: Device to sample on.
        cluster: The cluster, as the option `--cluster` names it, or None.
    """
    return device if cluster is None else "cpu"


@contextmanager
def spread_over(cluster: str | None, device: str) -> Iterator[Spread]:
    """Connect to a cluster during the block, if one is named, and yield what samples batches, there or here.

    Args:
        cluster: The cluster, as the option `--cluster` names it.
        device: Device of the cluster's actors.
    """
    if cluster is None:
        yield one_by_one
        return
    from adadiff.sampling.cluster import OnActors
    from adadiff.utils.clusters import connected

    with connected(None if cluster == LOCAL_CLUSTER else cluster), OnActors(device) as spread:
        yield spread


def _chosen_guidance(options: SampleOptions, own: Guidance) -> Guidance:
    """Return the guidance that the options choose, and the model's own where they leave it open."""
    chosen: dict[str, Any] = {
        "scale": options.guidance_scale,
        "interval": options.guidance_interval,
        "tied": None if options.tied_exits else False,
    }
    if options.internal_guidance is not None:
        interval = (0.0, 1.0) if own.internal is None else own.internal.interval
        chosen["internal"] = InternalGuidance(*options.internal_guidance, interval)
    return replace(own, **{name: value for name, value in chosen.items() if value is not None})


def _chosen_policy(options: SampleOptions, own: SamplingDefaults) -> ExitPolicy | None:
    """Return the policy that the options choose, or None if they choose none."""
    if options.exit_layer is not None:
        if options.tau:
            raise InputError("give either --tau or --exit-layer, not both")
        return FixedExit(options.exit_layer)
    if not options.tau and options.min_layer is None and options.patience == 1:
        return None
    own, tau = own.changed(min_layer=options.min_layer), options.tau or (own.tau,)
    if tau == (0.0,):
        return NeverExit()
    if options.patience != 1:
        if len(tau) > 1:
            raise InputError(f"--patience takes one threshold, and --tau has {len(tau)}: give one")
        return PatienceExit(tau[0], options.patience, own.min_layer, options.last_patient_layer)
    return ThresholdExit(tau[0] if len(tau) == 1 else tau, per=options.tau_per, min_layer=own.min_layer)


def chosen_prompts(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """Return the prompts given on the command line, or those of a file."""
    if file is None:
        return given
    if given:
        raise InputError("give either --prompt or --prompts, not both")
    lines = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not lines:
        raise InputError(f"{file} holds no prompts: write one per line")
    return lines


def require_own_folder(model: Path, options: FitOptions, what: str) -> None:
    """Raise InputError if a result would go into a model's folder that is not the user's: say where else, with --out.

    Args:
        model: The model's folder or name.
        options: The options.
        what: The result, such as `policy`.
    """
    folder = model_folder(model)
    is_packaged = PRETRAINED.resolve() in folder.resolve().parents
    is_foreign = is_packaged if folder.is_dir() else is_stock(folder)  # else there is none: said later
    if options.out is None and is_foreign:
        raise InputError(f"{model} is no folder of yours: say where the {what} goes, with --out FOLDER")


def require_free(place: Path, names: Sequence[str], options: FitOptions) -> None:
    """Raise InputError if a folder holds an earlier result, by these files' names, that is not to be replaced.

    Or if it is a file, or another model's folder.
    """
    if place.is_file():
        raise InputError(f"{place} is a file: name a folder")
    if options.out is not None and (place / "model_index.json").is_file():
        raise InputError(f"{place} is a model's folder: leave --out out to store with that model, or name another")
    for name in names:
        if (place / name).exists() and not options.replace:
            raise InputError(f"{place} already holds an {name}: add --replace, or move it away")


def with_chosen_steps(
    sampling: Sampling, goal: Goal, reference_steps: int, batch_size: int, refine: bool
) -> tuple[Goal, int]:
    """Choose the number of steps, print what was tried, and return the same budget at that number.

    Args:
        sampling: Samples with the model.
        goal: A budget of compute at the default number of steps.
        reference_steps: Number of steps of the reference.
        batch_size: Samples per batch.
        refine: Whether schedules are fitted to their own images.

    Raises:
        InputError: If a number of steps that needs no exits comes nearest to the reference.
    """
    from adadiff.calibration.report import steps_table
    from adadiff.calibration.steps import choose_steps

    assert goal.compute is not None
    choice = choose_steps(sampling, goal.compute, reference_steps, batch_size, refine)
    console.print(steps_table(choice))
    best = choice.best
    budget = goal.compute * choice.default.steps / best.steps
    if budget >= 1:
        raise InputError(
            f"{best.steps} steps with all layers come nearest to {reference_steps}: no exit policy is needed; set that "
            f"number of steps, or a larger --compute"
        )
    return replace(goal, compute=budget), best.steps


def store_calibration(found: Calibration, folder: Path, *others: Calibration) -> None:
    """Print what a calibration found, for one or several budgets, and write the policies and a plot into a folder."""
    from adadiff.calibration import calibration_table, draw_calibration

    console.print(calibration_table(found, *others))
    folder.mkdir(parents=True, exist_ok=True)
    draw_calibration(found, folder / "calibration.png", *others)
    files = save_policies([each.stored for each in (found, *others)], folder)
    default = f"the policy is in {files[0]}"
    more = f", those for other budgets in {', '.join(file.name for file in files[1:])}" if others else ""
    console.print(f"{default}{more}, the plot in {folder / 'calibration.png'}")
