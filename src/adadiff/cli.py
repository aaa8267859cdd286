"""The command line: each command checks its input and calls one function of the library."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from diffusers import ConfigMixin
from diffusers.utils.logging import disable_progress_bar
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

import adadiff
from adadiff import AdaDiffPipeline, InputError
from adadiff.calibration import Goal, calibrate, calibration_table, draw_calibration
from adadiff.calibration.run import SEED
from adadiff.comparison import compare as compare_methods
from adadiff.comparison import load_config, winner_in_words, write_report
from adadiff.conversion import convert_to_file, convert_to_folder
from adadiff.data import DataConfig, ImageData, encode_to_folder, load_vae
from adadiff.errors import imported, lookup
from adadiff.evaluation.demo import compare, comparison_rows, draw_comparison, require_own_folder
from adadiff.evaluation.evaluate import METRICS, evaluate_folder, evaluation_table, judge_for
from adadiff.evaluation.footprint import footprint
from adadiff.exits import ExitPolicy, FixedExit, NeverExit, PatienceExit, ThresholdExit
from adadiff.files import MODELS, model_folder, read_text, require_empty_folder
from adadiff.policies.stored import EXIT_POLICY
from adadiff.presets import PRESETS
from adadiff.processes import process_state
from adadiff.ranges import Count, CountOrZero, Fraction, GuidanceScale, Positive, Seed, checked
from adadiff.sampling import Conditions, Guidance
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.sampling.folder import FolderSummary, sample_to_folder
from adadiff.sampling.settings import FolderSettings, resolve
from adadiff.training import Diverged, Interrupted, TrainConfig, train

Dtype = Literal["float32", "bfloat16", "float16"]
ModelFolder = Annotated[
    Path,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="MODEL",
        instance_from_str=lambda words: model_folder(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    ),
]
"""A model folder as an option: its path, or the name of a packaged model."""
TrainingPreset = tyro.extras.subcommand_type_from_defaults(
    {name: preset.train for name, preset in PRESETS.items()},
    {name: preset.description for name, preset in PRESETS.items()},
)

app = tyro.extras.SubcommandApp()
console = Console(soft_wrap=True)


# ---------------------------------------------------------------------------------------------------------------------
# Commands


@app.command(name="train")
def train_command(config: Annotated[TrainingPreset, arg(name="")]) -> None:  # type: ignore[valid-type]
    """Train a model from a preset: `adadiff train digits`, `adadiff train images --data.source FOLDER`.

    Any field of the preset can be changed by its option. The resolved configuration is saved as train.json beside the
    model. Ctrl-C saves a checkpoint and stops; --resume goes on. Several processes or GPUs: `torchrun
    --nproc_per_node 2 -m adadiff train ...`.
    """
    chosen: TrainConfig = config
    try:
        train(chosen)
    except Interrupted as interruption:
        console.print(f"{interruption}; to go on, run the same command with --resume")
        sys.exit(130)
    if process_state().is_main_process:
        console.print(f"the model is in {chosen.out}; to sample: adadiff sample {chosen.out} --out samples")


@app.command(name="info")
def info_command(preset: Positional[str]) -> None:
    """Print what a preset's model and training will need: parameters, FLOPs, memory.

    Args:
        preset: Name of a preset, as `adadiff train` takes it.
    """
    chosen = lookup(preset, PRESETS, "preset")
    needs = footprint(chosen)
    train = chosen.train
    table = Table("", "", title=f"{preset}: {chosen.description}", show_header=False)
    table.add_row("parameters", f"{needs.parameters / 1e6:.1f}M, and {needs.exit_parameters / 1e6:.2f}M of the exits")
    table.add_row("layers", f"{train.model.depth} of width {train.model.width}")
    table.add_row("compute", f"{needs.flops / 1e9:.2f} GFLOP per image and step, all layers run, without guidance")
    table.add_row("weights", f"{_bytes(needs.weights)} in float32, half of it in bfloat16")
    table.add_row("memory to sample", f"the weights and {_bytes(needs.sampling_per_image)} an image in float32")
    table.add_row(
        "memory to train",
        f"{_bytes(needs.training_states)} on each device, and {_bytes(needs.training_per_image)} an image there",
    )
    table.add_row("training", f"{train.steps:,} steps of {train.batch_size} images")
    sampling = train.sampling
    guidance = f"guidance scale {sampling.guidance_scale:g}"
    table.add_row("sampling", f"{sampling.scheduler}, {sampling.steps} steps, tau {sampling.tau:g}, {guidance}")
    console.print(table)


@app.command(name="encode")
@checked
def encode_command(
    out: Positional[Path],
    vae: str,
    data: DataConfig,
    scaling_factor: Positive | None = None,
    batch_size: Count = 16,
    dtype: Dtype = "float32",
    device: str = "auto",
) -> None:
    """Turn images into latents of an autoencoder, kept in a folder that trainings take as --data.source.

    The same command run again goes on where it stopped. With --data.flip every image is encoded a second time,
    mirrored.

    Args:
        out: Folder for the latents.
        vae: An AutoencoderKL of diffusers, by its name on the hub or its folder.
        data: The images.
        scaling_factor: What latents are multiplied with before the diffusion; by default what the autoencoder says.
        batch_size: Images encoded at once.
        dtype: Arithmetic of the autoencoder.
        device: cpu, cuda, ..., or auto: cuda where there is one.
    """
    place = _device(device)
    images = ImageData(data)
    _print_description(images)
    autoencoder = load_vae(vae)
    torch.nn.Module.to(autoencoder, place, getattr(torch, dtype))  # without the warnings of diffusers' own `to`
    if scaling_factor is not None:
        autoencoder.register_to_config(scaling_factor=scaling_factor)
    number = encode_to_folder(images, autoencoder, out, batch_size)
    console.print(f"{number} latents in {out}; to train on them: --data.source {out}")


@dataclass(frozen=True)
class SampleOptions:
    """What images to sample, and how."""

    n: Annotated[Count, arg(aliases=["-n"])] = 16
    """Number of images."""
    steps: Count | None = None
    """Sampling steps."""
    scheduler: str | None = None
    """ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral."""
    tau: tuple[Fraction, ...] = ()
    """Exit threshold in [0, 1], larger is faster and rougher; or one per step (see --tau-per)."""
    tau_per: Literal["step", "layer"] = "step"
    """What several thresholds run over."""
    min_layer: Count | None = None
    """No sample leaves before this layer."""
    patience: Count = 1
    """Leave when this many layers have passed the threshold."""
    last_patient_layer: Count | None = None
    """After this layer, one that passes is enough."""
    exit_layer: Count | None = None
    """Leave after this layer, always, in place of a threshold."""
    classes: Annotated[tuple[str, ...], arg(name="class")] = ()
    """Classes by name, image k taking the k-th, in turns; without it, all of the model's."""
    class_index: tuple[CountOrZero, ...] = ()
    """Classes by index, counted from 0, in place of --class."""
    prompt: tuple[str, ...] = ()
    """Texts, image k taking the k-th, in turns."""
    prompts: Path | None = None
    """File of texts, one a line, in place of --prompt."""
    negative_prompt: str = ""
    """Text that guidance leads away from."""
    guidance_scale: GuidanceScale | None = None
    """Strength of classifier-free guidance; 1 means none."""
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Which steps are guided, as two fractions of all the steps."""
    tied_exits: bool = True
    """Whether the guided and the unguided prediction of an image leave at the same layer."""
    seed: Seed = 0
    """Of the noise."""
    batch_size: Count = 64
    """Images sampled at once."""
    dtype: Dtype = "float32"
    """Arithmetic of the model."""
    device: str = "auto"
    """cpu, cuda, ..., or auto: cuda where there is one."""

    def into(self, model: Path, out: Path) -> FolderSummary:
        """Sample into a folder; what is not chosen here is the model's own."""
        if self.classes and self.class_index:
            raise InputError("give either --class or --class-index, not both")
        prompts = _prompts(self.prompt, self.prompts)
        pipeline = _load(model, self.dtype, self.device, self.scheduler)
        policy = self._policy(pipeline.own_settings.sampling)
        chosen = pipeline.sampling_settings(self.steps, self.guidance_scale, policy=policy)
        guidance = Guidance(chosen.guidance_scale, self.guidance_interval, self.tied_exits)
        classes = self.classes or self.class_index or pipeline.transformer.class_indices
        conditions = Conditions(classes, prompts, self.negative_prompt, guidance)
        return sample_to_folder(
            pipeline, out, self.n, chosen.steps, chosen.policy, self.seed, conditions, self.batch_size
        )

    def _policy(self, own: SamplingDefaults) -> ExitPolicy | None:
        """The policy that is chosen here; None leaves it to the model."""
        if self.exit_layer is not None:
            if self.tau:
                raise InputError("give either --tau or --exit-layer, not both")
            return FixedExit(self.exit_layer)
        if not self.tau and self.min_layer is None and self.patience == 1:
            return None
        own, tau = own.changed(min_layer=self.min_layer), self.tau or (own.tau,)
        if tau == (0.0,):
            return NeverExit()
        if self.patience != 1:
            if len(tau) > 1:
                raise InputError("--patience takes one --tau, not several")
            return PatienceExit(tau[0], self.patience, own.min_layer, self.last_patient_layer)
        return ThresholdExit(tau[0] if len(tau) == 1 else tau, per=self.tau_per, min_layer=own.min_layer)


@app.command(name="sample")
@checked
def sample_command(model: Positional[ModelFolder], out: Path, options: Annotated[SampleOptions, arg(name="")]) -> None:
    """Sample images into a folder: PNG files, a grid, the trace as JSON, and the heat map of the exits.

    Image k depends on the seed and k alone, not on the batch size. The same command run again goes on where it
    stopped. Steps, scheduler, guidance scale and when samples leave are the model's own where nothing is given: those
    of its exit_policy.json, as `adadiff calibrate` makes it, or of its sampling.json. --tau 0 runs the full model.
    Several processes: `torchrun --nproc_per_node 2 -m adadiff sample ...`.

    Args:
        model: Model folder, as `adadiff train` makes it, or the name of a packaged model.
        out: Folder for the images.
        options: What images to sample, and how.
    """
    summary = options.into(model, out)
    if process_state().is_main_process:
        totals = summary.totals
        console.print(
            f"{options.n} images in {out} ({summary.images_per_second:.2f} images/s); layers run "
            f"{totals.layer_fraction:.1%}, compute {totals.compute_fraction:.1%} of the full model's"
        )


@app.command(name="evaluate")
@checked
def evaluate_command(
    model: Positional[ModelFolder],
    out: Path,
    data: DataConfig,
    options: Annotated[SampleOptions, arg(name="")] = SampleOptions(n=10_000),
    features: str = "small",
    clip: str | None = None,
) -> None:
    """Sample images as `adadiff sample` does, and compare them with real ones: metrics.json, and a table.

    Fréchet distance, kernel distance (KID), precision and recall; for classes, how often the feature network sees the
    one asked for; for texts, the CLIP score. The same command run again goes on where it stopped. Several processes:
    `torchrun --nproc_per_node 2 -m adadiff evaluate ...`.

    Args:
        model: Model folder, as `adadiff train` makes it, or the name of a packaged model.
        out: Folder for the images and metrics.json.
        data: Real images, brought to the size and channels of the model's.
        options: What images to sample, and how.
        features: small, inception, a folder or TorchScript file of a network, or package.module:name.
        clip: A CLIP model of transformers, by its name on the hub or its folder, for models that take text.
    """
    with process_state().main_process_first():
        judge = judge_for(model, data, features, clip, _device(options.device))
    if process_state().is_main_process:
        _print_description(judge.real)
    judge.require_enough(options.n)
    summary = options.into(model, out)
    if process_state().is_main_process:
        evaluation = evaluate_folder(out, summary, judge)
        console.print(evaluation_table(evaluation))
        console.print(f"the figures are in {out / METRICS}")


@app.command(name="calibrate")
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
    goal = Goal(compute, error, speedup, confidence)
    if model_folder(model) != model:
        raise InputError(
            f"{model} comes with the package, where nothing is written: make a copy of your own with adadiff export "
            f"{model} FOLDER, and calibrate that"
        )
    if (model / EXIT_POLICY).exists() and not replace:
        raise InputError(f"{model} holds an {EXIT_POLICY} already: add --replace, or move it away")
    own = FolderSettings.load(model, policy=False)  # the earlier one may be damaged, or of other weights
    pipeline = _load(model, dtype, device, scheduler or own.scheduler, own_settings=False)
    chosen = resolve(own, pipeline.scheduler, steps, guidance_scale, policy=NeverExit())
    texts = _prompts((), prompts)
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


@app.command(name="compare")
def compare_command(config: Positional[str], out: Path, so_far: bool = False) -> None:
    """Compare our exits with their rivals: train what is missing, evaluate everything, write the report.

    The folder gets index.html (all in one page), results.json and results.csv. The same command run again goes on where
    it stopped; run several times at once, the processes share the work.

    Args:
        config: The comparison: digits, digits-policies, cifar10, cifar10-policies, cifar10-guided-policies, or a JSON
            file like theirs.
        out: Folder for the report.
        so_far: Train and fill nothing: write the report of the cells that are there.
    """
    chosen = load_config(config)
    try:
        results = compare_methods(chosen, out, so_far)
    except Interrupted as interruption:
        console.print(f"{interruption}; the same command goes on")
        sys.exit(130)
    write_report(results, out)
    console.print(winner_in_words(results))
    console.print(f"the report is {out / 'index.html'}")


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


@app.command(name="demo")
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
    require_own_folder(out, own={"demo.png"})
    shown = lookup(task, DEMO_TASKS, "task")
    folder, n = model or MODELS / shown.model, shown.n if n is None else n
    pipeline = _load(folder, "float32", "cpu", scheduler)
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


@app.command(name="export")
def export_command(run: Positional[ModelFolder], out: Positional[Path], dtype: Dtype = "float16") -> None:
    """Copy a model without its checkpoints, its weights stored in the given precision, to share it.

    Args:
        run: Model folder, as `adadiff train` makes it, or the name of a packaged model.
        out: New folder.
        dtype: Precision of the stored weights; they are float32 again when loaded.
    """
    require_empty_folder(out)
    pipeline = _load(run, dtype, "cpu", own_settings=False)
    for part in (pipeline, pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        if isinstance(part, ConfigMixin):
            part.register_to_config(_name_or_path="")  # where it was loaded from concerns nobody else
    pipeline.save_pretrained(out)
    SamplingDefaults.load(run).save(out)
    console.print(f"the model is in {out}")


@app.command(name="convert")
@checked
def convert_command(
    source: Positional[Path],
    out: Positional[Path],
    to: Literal["adadiff", "uvit"] = "adadiff",
    preset: str | None = None,
    num_heads: Count | None = None,
    vae: str | None = None,
    scaling_factor: Positive | None = None,
    text_encoder: str | None = None,
    context_length: Count | None = None,
) -> None:
    """Turn a .pth file of the U-ViT or AdaDiff release into a model folder; with --to uvit a folder into such a file.

    Nothing in the file is executed. AdaDiff's estimators predict certainty; here tau is one minus their threshold.

    Args:
        source: The .pth file; with --to uvit the model folder, or the name of a packaged model.
        out: The new model folder; with --to uvit the new file.
        to: Direction.
        preset: The preset that the file belongs to, for its heads, time and sampling.
        num_heads: Attention heads, in place of a preset.
        vae: For a model of latents: the AutoencoderKL that decodes them, by its name on the hub or its folder.
        scaling_factor: What latents are multiplied with before the diffusion; by default what the autoencoder says.
        text_encoder: For a model that takes text: a text model of transformers, by its name on the hub or its folder.
        context_length: For a model that takes text: how many text features it takes, where it is not CLIP's 77.
    """
    if to == "uvit":
        complete = convert_to_file(source, out)
        left_out = "" if complete else ", without its estimators: the format has no place for their kind"
        console.print(f"the weights are in {out}{left_out}")
        return
    sizes = convert_to_folder(source, out, preset, num_heads, vae, scaling_factor, text_encoder, context_length)
    console.print(f"the model is in {out}: {sizes.depth} layers of width {sizes.width}")
    if not sizes.estimators:
        console.print(f"it has no exits yet; to train them: adadiff train PRESET --init-from {out}")


# ---------------------------------------------------------------------------------------------------------------------
# What the commands share


def _prompts(given: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """The prompts that were given, or a file's."""
    if file is None:
        return given
    if given:
        raise InputError("give either --prompt or --prompts, not both")
    lines = tuple(line.strip() for line in read_text(file).splitlines() if line.strip())
    if not lines:
        raise InputError(f"{file} holds no prompts: write one a line")
    return lines


def _print_description(images: ImageData) -> None:
    for line in images.describe():
        console.print(line, markup=False, highlight=False)


def _load(
    folder: Path, dtype: Dtype, device: str, scheduler: str | None = None, own_settings: bool = True
) -> AdaDiffPipeline:
    """A model folder's pipeline, with another scheduler over the same forward process where one is named."""
    place = _device(device)
    disable_progress_bar()
    named = {} if scheduler is None else {"scheduler": scheduler}
    pipeline = AdaDiffPipeline.from_pretrained(folder, own_settings, **named).to(place)
    for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        if part is not None:
            # diffusers' own `to` warns of parts to keep in float32 for any dtype, even where there are none.
            torch.nn.Module.to(part, getattr(torch, dtype))
    return pipeline


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device(process_state().device)
    try:
        place = torch.device(name)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"there is no device {name!r} here: choose cpu, or cuda where there is one") from error
    return place


# ---------------------------------------------------------------------------------------------------------------------
# Entry


def _print_warnings() -> None:
    """Print what the library warns of on stderr, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("adadiff: %(message)s"))
    logging.getLogger("adadiff").handlers = [handler]


def _require_options_once(words: Sequence[str]) -> None:
    """Raise InputError where an option is repeated, of which the parser would silently take the last."""
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    for option in options:
        if options.count(option) > 1:
            raise InputError(f"{option} is given {options.count(option)} times: give it once, with all its values")


def main(arguments: Sequence[str] | None = None) -> None:
    """The `adadiff` command.

    Exits with 0 if all went well, 2 for bad input, 130 if interrupted, 1 for anything else.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words == ["--version"]:
        print(f"adadiff {adadiff.__version__}")
        return
    _print_warnings()
    try:
        if len(words) > 1 and words[0] == "train" and not words[1].startswith("-"):
            lookup(words[1], PRESETS, "preset")
        _require_options_once(words)
        app.cli(prog="adadiff", description=adadiff.__doc__, args=words or ["--help"])
    except BrokenPipeError:
        os._exit(0)
    except (InputError, OSError) as error:
        if debug:
            raise
        print(f"adadiff: {error}", file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        print(f"adadiff: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("adadiff: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        reason = " ".join(str(error).split())
        print(
            f"adadiff: {type(error).__name__}: {reason} (run it again with --debug for the traceback)", file=sys.stderr
        )
        sys.exit(1)
