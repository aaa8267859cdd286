"""What several commands do with a model folder: load it, find its settings, sample it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers.utils.logging import disable_progress_bar

from adadiff import AdaDiffPipeline
from adadiff.cli.options import Dtype, SampleOptions
from adadiff.errors import InputError
from adadiff.files import read_text
from adadiff.policies import ExitPolicy, FixedExit, NeverExit, PatienceExit, ThresholdExit
from adadiff.policies.stored import EXIT_POLICY, StoredPolicy
from adadiff.processes import process_state
from adadiff.sampling import Conditions, Guidance
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.sampling.folder import FolderSummary, sample_to_folder
from adadiff.sampling.schedulers import scheduler_like, times_of


def load_pipeline(folder: Path, dtype: Dtype, device: str, scheduler: str | None = None) -> AdaDiffPipeline:
    """A model folder's pipeline, with another scheduler over the same forward process where one is named."""
    place = device_of(device)
    disable_progress_bar()
    pipeline = AdaDiffPipeline.from_pretrained(folder).to(place)
    if scheduler is not None:
        pipeline.scheduler = scheduler_like(scheduler, pipeline.scheduler)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        if part is not None:
            # diffusers' own `to` warns of parts to keep in float32 for any dtype, even where there are none.
            torch.nn.Module.to(part, getattr(torch, dtype))
    return pipeline


def device_of(name: str) -> torch.device:
    """The device of that name, checked; for auto, the one that this process has."""
    if name == "auto":
        return torch.device(process_state().device)
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"there is no device {name!r} here: choose cpu, or cuda where there is one") from error
    return place


def sample_with_options(model: Path, out: Path, options: SampleOptions) -> FolderSummary:
    """Sample into a folder; what the options leave open is the model's own."""
    if options.classes and options.class_index:
        raise InputError("give either --class or --class-index, not both")
    own, stored = own_settings(model, options.scheduler, options.steps, options.guidance_scale)
    if options.tau or options.exit_layer is not None or options.min_layer is not None or options.patience != 1:
        stored = None
    own = own.changed(min_layer=options.min_layer)
    policy = _chosen_policy(options, own)
    guidance = Guidance(own.guidance_scale, options.guidance_interval, options.tied_exits)
    prompts = chosen_prompts(options.prompt, options.prompts)
    pipeline = load_pipeline(model, options.dtype, options.device, own.scheduler)
    if stored is not None:
        policy = calibrated_policy(stored, own, pipeline)
    classes = options.classes or options.class_index or pipeline.transformer.class_indices
    conditions = Conditions(classes, prompts, options.negative_prompt, guidance)
    return sample_to_folder(pipeline, out, options.n, own.steps, policy, options.seed, conditions, options.batch_size)


def _chosen_policy(options: SampleOptions, own: SamplingDefaults) -> ExitPolicy:
    if options.exit_layer is not None:
        if options.tau:
            raise InputError("give either --tau or --exit-layer, not both")
        return FixedExit(options.exit_layer)
    tau = options.tau or (own.tau,)
    if tau == (0.0,):
        return NeverExit()
    if options.patience != 1:
        if len(tau) > 1:
            raise InputError("--patience takes one --tau, not several")
        return PatienceExit(tau[0], options.patience, own.min_layer, options.last_patient_layer)
    return ThresholdExit(tau[0] if len(tau) == 1 else tau, per=options.tau_per, min_layer=own.min_layer)


def own_settings(
    model: Path, scheduler: str | None, steps: int | None, guidance_scale: float | None
) -> tuple[SamplingDefaults, StoredPolicy | None]:
    """How to sample a model: as the user says, or its calibrated policy asks for, or its sampling.json says."""
    own, stored = SamplingDefaults.load(model), None
    if (model / EXIT_POLICY).is_file():
        stored = StoredPolicy.load(model)
        made_for = stored.calibrated_for
        own = own.changed(scheduler=made_for.scheduler, steps=made_for.steps, guidance_scale=made_for.guidance_scale)
    return own.changed(scheduler=scheduler, steps=steps, guidance_scale=guidance_scale), stored


def calibrated_policy(stored: StoredPolicy, chosen: SamplingDefaults, pipeline: AdaDiffPipeline) -> ExitPolicy:
    """The stored policy for the chosen settings; where it was calibrated for others, a line on stderr says so."""
    differences = stored.differences(chosen.scheduler, chosen.steps, chosen.guidance_scale)
    if differences:
        print(
            f"adadiff: the calibrated exit policy is used with {', '.join(differences)}: its compute and error are not "
            f"known there; to know them, calibrate again",
            file=sys.stderr,
        )
    return stored.for_steps(len(times_of(pipeline.scheduler, chosen.steps)))


def chosen_prompts(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """The prompts that were given, or a file's."""
    if file is None:
        return given
    if given:
        raise InputError("give either --prompt or --prompts, not both")
    lines = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not lines:
        raise InputError(f"{file} holds no prompts: write one a line")
    return lines
