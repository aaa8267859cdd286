"""The commands for stock diffusers pipelines: calibrate, sample and demo, of a folder or a name on the Hub."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.logging import disable_progress_bar, set_verbosity_error

from adadiff.calibration import Goal
from adadiff.calibration.metric import Metric
from adadiff.calibration.stock import STEPS, StockSampling, calibrate
from adadiff.cli.options import Dtype, FitOptions, SampleOptions
from adadiff.cli.shared import chosen_prompts, device_of, store_calibration, with_chosen_steps
from adadiff.comparison.demo import Comparison, timed_comparison
from adadiff.policies import ExitPolicy, FixedExit, NeverExit, ThresholdExit
from adadiff.policies.stored import EXIT_POLICY
from adadiff.sampling.schedulers import scheduler_like, stored_scheduler
from adadiff.stock import StockPolicy, StockSampler, StockTrace, enable, trace
from adadiff.stock.adapting.adaptation import ADAPTATION
from adadiff.stock.exits import checked_exits
from adadiff.stock.families import HAS_UNET
from adadiff.stock.folder import StockSummary, as_images, sample_stock_to_folder
from adadiff.stock.stored import call_defaults, weights_fingerprint
from adadiff.stock.switch import depth_of, transformers_of, trying
from adadiff.utils.errors import InputError, one_line
from adadiff.utils.files import read_json
from adadiff.utils.fingerprints import settings_of
from adadiff.utils.hub import require_on_hub

OWN_OPTIONS = (
    "budget",
    "tau_per",
    "min_layer",
    "patience",
    "last_patient_layer",
    "guidance_interval",
    "internal_guidance",
    "tied_exits",
    "cluster",
)


def load_stock_pipeline(
    model: Path, dtype: Dtype, device: str, scheduler: str | None = None, stored: StockPolicy | None = None
) -> Any:
    """Load a stock pipeline, with the named scheduler if one is given, or else the one of the stored policy, if any."""
    place = device_of(device)
    disable_progress_bar()
    set_verbosity_error()  # it warns of its own types
    if model.is_dir():
        _require_transformer(read_json(model / "model_index.json"))
    else:
        require_on_hub(str(model), "model_index.json")
    try:
        pipe = DiffusionPipeline.from_pretrained(str(model)).to(place)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise InputError(f"{model} cannot be loaded as a pipeline: {one_line(error)}") from error
    transformers_of(pipe)  # raises for U-Nets, of pipelines on the Hub too
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, getattr(torch, dtype))
    if scheduler is not None:
        pipe.scheduler = scheduler_like(scheduler, pipe.scheduler)
    elif stored is not None:
        pipe.scheduler = _calibrated_scheduler(stored, pipe.scheduler)
    return pipe


def _require_transformer(index: Mapping[str, Any]) -> None:
    """Raise InputError if a pipeline has a U-Net by its model_index.json: before its weights are loaded."""
    if "unet" in index and not any(name.startswith("transformer") for name in index):
        raise InputError(f"{index.get('_class_name')} {HAS_UNET}")


def _calibrated_scheduler(stored: StockPolicy, own: SchedulerMixin) -> SchedulerMixin:
    """Return the scheduler that the policy was calibrated for: the pipeline's own, if it is that one."""
    name, settings = stored.calibrated_for.scheduler, stored.calibrated_for.scheduler_settings
    is_own = (type(own).__name__, settings_of(own)) == (name, settings)
    return own if is_own else stored_scheduler(name, settings)


def calibrate_stock(
    model: Path,
    goal: Goal,
    out: Path,
    options: FitOptions,
    metric: Metric | None,
    samples: int,
    batch_size: int,
    seed: int,
    reference_steps: int | None,
    periodic: bool,
    refine: bool,
) -> None:
    """Calibrate a stock pipeline; for the arguments see `calibrate_command`."""
    pipe, conditions, arguments = to_sample(model, options)
    if reference_steps is not None:
        sampler = StockSampler(pipe, conditions, seed, arguments)
        goal, arguments[STEPS] = _with_chosen_steps(sampler, goal, reference_steps, batch_size, refine)
    found = calibrate(
        pipe,
        conditions,
        compute=goal.compute,
        error=goal.error,
        speedup=goal.speedup,
        confidence=goal.confidence,
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        metric=metric,
        keep=out / ".calibration",
        periodic=periodic,
        refine=refine,
        **arguments,
    )
    store_calibration(found, out)


def _with_chosen_steps(
    sampler: StockSampler, goal: Goal, reference_steps: int, batch_size: int, refine: bool
) -> tuple[Goal, int]:
    """Choose the number of steps of a stock pipeline; return the same budget at that number."""
    pipe = sampler.pipe
    if STEPS not in call_defaults(pipe):
        raise InputError(f"{type(pipe).__name__} takes no {STEPS} to be chosen: leave --reference-steps out")
    sampling = StockSampling(sampler, checked_exits(None, depth_of(pipe)), None, "latent")
    with trying(pipe):
        return with_chosen_steps(sampling, goal, reference_steps, batch_size, refine)


def to_sample(
    model: Path, options: FitOptions, stored: StockPolicy | None = None
) -> tuple[Any, list[str] | list[int], dict[str, Any]]:
    """Return a stock pipeline, its conditions and the arguments of its calls, to fit something to it.

    Args:
        model: Folder of the pipeline, or its name on the Hub.
        options: How it is sampled.
        stored: A policy whose scheduler and arguments are used where the options name none.
    """
    texts = chosen_prompts((), options.prompts)
    arguments = _own_arguments(stored) | call_arguments(options.argument, options.steps, options.guidance_scale)
    pipe = load_stock_pipeline(model, options.dtype, options.device, options.scheduler, stored)
    return pipe, stock_conditions(pipe, texts, (), options.class_index, "--prompts with a file of them"), arguments


def sample_stock(model: Path, out: Path, options: SampleOptions) -> StockSummary:
    """Sample a stock pipeline into a folder; for the arguments see `sample_command`."""
    defaults = SampleOptions()
    for name in OWN_OPTIONS:
        if getattr(options, name) != getattr(defaults, name):
            raise InputError(f"--{name.replace('_', '-')} is for models of adadiff's own, and {model} is none")
    texts = chosen_prompts(options.prompt, options.prompts)
    adaptation = _adaptation(model, options)
    stored = stored_policy(model, options.policy)
    arguments = _own_arguments(stored) | call_arguments(options.argument, options.steps, options.guidance_scale)
    if options.negative_prompt:
        arguments["negative_prompt"] = options.negative_prompt
    pipe = load_stock_pipeline(model, options.dtype, options.device, options.scheduler, stored)
    policy = _policy(model, options, stored)
    conditions = stock_conditions(pipe, texts, options.classes, options.class_index)
    sampler = StockSampler(pipe, conditions, options.seed, arguments)
    enable(pipe, policy, adaptation=None if adaptation is None else adaptation.parent)
    request = {
        "pipeline": type(pipe).__name__,
        "weights": weights_fingerprint(transformers_of(pipe)),
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": settings_of(pipe.scheduler),
        "policy": (policy.policy if isinstance(policy, StockPolicy) else policy).describe(),
        "adaptation": None if adaptation is None else hashlib.sha256(adaptation.read_bytes()).hexdigest(),
        "seed": options.seed,
        "conditions": conditions,
        "arguments": arguments,
        "dtype": options.dtype,
    }
    return sample_stock_to_folder(sampler, out, options.n, options.batch_size, request)


def compare_stock(
    model: Path,
    n: int,
    steps: int | None,
    scheduler: str | None,
    policy: str | None,
    guidance_scale: float | None,
    prompt: Sequence[str],
    argument: Sequence[str],
    seed: int,
    repeats: int = 3,
) -> Comparison:
    """Sample the same noise with all layers and with the stored policy; for the arguments see `demo_command`."""
    stored = stored_policy(model, policy)
    pipe = load_stock_pipeline(model, "float32", "cpu", scheduler, stored)
    if stored is None:
        how, folder = ("make one with", model) if model.is_dir() else ("download it to a folder, and run", "FOLDER")
        raise InputError(f"{model} holds no {EXIT_POLICY}: {how} adadiff calibrate {folder} --compute 0.55")
    arguments = _own_arguments(stored) | call_arguments(argument, steps, guidance_scale)
    sampler = StockSampler(pipe, stock_conditions(pipe, prompt, (), (), "--prompt"), seed, arguments)

    def sample(rule: ExitPolicy | StockPolicy) -> tuple[torch.Tensor, StockTrace]:
        enable(pipe, rule)
        return as_images(sampler(range(n), "pt")), trace(pipe)

    return timed_comparison({"full": lambda: sample(NeverExit()), "adaptive": lambda: sample(stored)}, repeats)


def stored_policy(model: Path, name: str | None = None) -> StockPolicy | None:
    """Return the stored policy of that folder or name, or else the one in the model's folder, if there is one."""
    if name is not None:
        return StockPolicy.from_pretrained(name)
    return StockPolicy.load(model) if (model / EXIT_POLICY).is_file() else None


def _policy(model: Path, options: SampleOptions, stored: StockPolicy | None) -> ExitPolicy | StockPolicy:
    """Return the policy that the options choose, or else the stored one."""
    if options.tau == (0.0,):
        return NeverExit()
    if options.tau:
        return ThresholdExit(options.tau[0] if len(options.tau) == 1 else options.tau)
    if options.exit_layer is not None:
        return FixedExit(options.exit_layer)
    if stored is None:
        raise InputError(
            f"{model} holds no {EXIT_POLICY}: make one with adadiff calibrate {model} --compute 0.55, name another by "
            f"--policy, or run all layers with --tau 0"
        )
    return stored


def _adaptation(model: Path, options: SampleOptions) -> Path | None:
    """Return the file of the exit heads and estimators that a threshold needs; None for policies that need none."""
    if options.tau in ((), (0.0,)):
        return None
    path = Path(options.adaptation or model) / ADAPTATION
    if not path.is_file():
        raise InputError(
            f"--tau decides by uncertainties, and {path.parent} holds no {ADAPTATION}: make one with adadiff adapt "
            f"{model}, or give --tau 0"
        )
    return path


def _own_arguments(stored: StockPolicy | None) -> dict[str, Any]:
    """Return the arguments of the calls that the stored policy was calibrated for, by whatever rule samples exit."""
    return {} if stored is None else dict(stored.calibrated_for.arguments)


def call_arguments(words: Sequence[str], steps: int | None, guidance_scale: float | None) -> dict[str, Any]:
    """Return the arguments of the pipeline's calls: `name=value` each, with the value in JSON or else a text."""
    arguments: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--argument {word}: write name=value, as max_sequence_length=77")
        try:
            arguments[name] = json.loads(value)
        except json.JSONDecodeError:
            arguments[name] = value
    given = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    return arguments | {name: value for name, value in given.items() if value is not None}


def stock_conditions(
    pipe: Any,
    prompts: Sequence[str],
    classes: Sequence[str],
    class_index: Sequence[int],
    options_of_prompts: str = "--prompt, or --prompts with a file of them",
) -> list[str] | list[int]:
    """Return the prompts or the classes to sample in turn; by default all classes that the pipeline names.

    Args:
        pipe: The pipeline.
        prompts: Prompts, for a pipeline that takes text.
        classes: Names of classes, for a pipeline that takes classes.
        class_index: Indices of classes, in place of their names.
        options_of_prompts: The options by which the command takes prompts.

    Raises:
        InputError: If the pipeline takes others than what is given, or needs what is not given.
    """
    if "class_labels" in inspect.signature(type(pipe).__call__).parameters:
        if prompts:
            raise InputError(f"{type(pipe).__name__} takes classes and no prompts: leave the prompts out")
        labels: dict[str, int] = getattr(pipe, "labels", {})
        for name in classes:
            if name not in labels:
                raise InputError(
                    f"there is no class {name!r}: the pipeline names {', '.join(sorted(labels)) or 'none'}"
                )
        chosen = [labels[name] for name in classes] or list(class_index) or sorted(set(labels.values()))
        if not chosen:
            raise InputError("the pipeline does not name its classes: give --class-index")
        known = set(labels.values()) or range(pipe.transformer.config.get("num_embeds_ada_norm") or 0)
        for index in chosen if known else ():
            if index not in known:
                raise InputError(f"there is no class {index}: the pipeline has classes {min(known)} to {max(known)}")
        return chosen
    if classes or class_index:
        raise InputError(f"{type(pipe).__name__} takes prompts and no classes: give {options_of_prompts}")
    if not prompts:
        raise InputError(f"{type(pipe).__name__} takes prompts: give {options_of_prompts}")
    return list(prompts)
