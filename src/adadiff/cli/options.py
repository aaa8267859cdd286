"""Options shared by several commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from adadiff.utils.files import model_folder
from adadiff.utils.ranges import Count, CountOrZero, Fraction, GuidanceScale, Seed

Dtype = Literal["float32", "bfloat16", "float16"]
LOCAL_CLUSTER = "local"
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

Cluster = Annotated[
    str | None,
    PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="[ADDRESS]",
        instance_from_str=lambda words: words[0] if words else LOCAL_CLUSTER,
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda address: [str(address)],
    ),
]
"""A Ray cluster as an option: its address, `LOCAL_CLUSTER` if none is given, or None without the option."""


@dataclass(frozen=True)
class SampleOptions:
    """Which images to sample, with which settings."""

    n: Annotated[Count, arg(aliases=["-n"])] = 16
    """Number of images."""
    steps: Count | None = None
    """Number of sampling steps; by default the model's own."""
    scheduler: str | None = None
    """Scheduler: ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral; by default the model's own."""
    tau: tuple[Fraction, ...] = ()
    """Exit threshold in [0, 1], or several (see --tau-per): 0 runs all layers, larger is faster and rougher."""
    tau_per: Literal["step", "layer"] = "step"
    """Meaning of several thresholds: one per sampling step, or one per layer."""
    min_layer: Count | None = None
    """First layer after which a sample may exit, counted from 1; by default the model's own."""
    patience: Count = 1
    """Number of layers whose uncertainty must be below tau before a sample exits."""
    last_patient_layer: Count | None = None
    """After this layer, one layer below tau is enough, whatever --patience says."""
    exit_layer: Count | None = None
    """Exit after this layer at every step, in place of a threshold."""
    classes: Annotated[tuple[str, ...], arg(name="class")] = ()
    """Class names, assigned to the images in turn; by default all classes of the model."""
    class_index: tuple[CountOrZero, ...] = ()
    """Class indices, counted from 0, in place of --class."""
    policy: str | None = None
    """Folder of the exit_policy.json to sample by, as `calibrate --out` or `tune --out` made it, or for a stock
    pipeline a name on the Hugging Face Hub; by default the model folder's own."""
    adaptation: Path | None = None
    """For a stock pipeline and --tau, the folder of its adaptation; by default the model folder."""
    argument: tuple[str, ...] = ()
    """For a stock pipeline, other arguments of its call, as max_sequence_length=77."""
    prompt: tuple[str, ...] = ()
    """Prompts, assigned to the images in turn."""
    prompts: Path | None = None
    """Text file with one prompt per line, in place of --prompt."""
    negative_prompt: str = ""
    """Prompt that guidance steers away from."""
    guidance_scale: GuidanceScale | None = None
    """Scale of classifier-free guidance; 1 means no guidance. By default the model's own."""
    budget: Fraction | None = None
    """Sample by the most expensive of the model's plans that takes at most this fraction of the full model's FLOPs, in
    place of its own."""
    guidance_interval: tuple[Fraction, Fraction] | None = None
    """Steps that are guided: start (included) and end (excluded) as fractions of all steps, in [0, 1]. By default the
    model's own, or all."""
    internal_guidance: tuple[Count, float] | None = None
    """Layer and weight of internal guidance: predictions are led away from those read off after that early layer. By
    default the model's own, or none."""
    tied_exits: bool = True
    """With --no-tied-exits, the conditional and the unconditional prediction of an image exit each on its own; else as
    the model's own plan says, or after the same layer."""
    seed: Seed = 0
    """Seed of the noise, at least 0."""
    batch_size: Count = 64
    """Images per batch; it does not change the images."""
    dtype: Dtype = "float32"
    """Precision of the model."""
    device: str = "auto"
    """Device: cpu, cuda, ..., or auto for cuda if available."""
    cluster: Cluster = None
    """Sample on a Ray cluster: HOST:PORT, auto for the one that this machine is part of, or nothing to start one of
    this machine's cores or GPUs. Needs adadiff[cluster]."""


@dataclass(frozen=True)
class FitOptions:
    """How a model is sampled to find something for it, a policy or an adaptation, and where that is stored."""

    steps: Count | None = None
    """Number of sampling steps; by default the model's own."""
    scheduler: str | None = None
    """Scheduler: ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral; by default the model's own."""
    guidance_scale: GuidanceScale | None = None
    """Scale of classifier-free guidance, 1 for none; by default the model's own."""
    prompts: Path | None = None
    """Text file with one prompt per line, for a model that takes text."""
    class_index: tuple[CountOrZero, ...] = ()
    """Indices of the classes to sample in turn; by default all classes of the model."""
    argument: tuple[str, ...] = ()
    """For a stock pipeline, other arguments of its call, as max_sequence_length=77."""
    dtype: Dtype = "float32"
    """Precision of the model."""
    device: str = "auto"
    """Device: cpu, cuda, ..., or auto for cuda if available."""
    out: Path | None = None
    """Folder to store the result in; by default the model's."""
    replace: bool = False
    """Replace an earlier result."""
