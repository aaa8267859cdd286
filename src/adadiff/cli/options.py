"""Options that several commands take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from adadiff.utils.files import model_folder
from adadiff.utils.ranges import Count, CountOrZero, Fraction, GuidanceScale, Seed

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
