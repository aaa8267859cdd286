"""The configuration of a comparison, a typed JSON file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from adadiff.comparison.plans.config import PlansConfig
from adadiff.training import TrainConfig
from adadiff.training.presets import PRESETS
from adadiff.utils.errors import InputError, lookup

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class FineTuning:
    """The fine-tuning of every method's network from the backbone."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    steps: int = 1000
    """Number of optimizer steps, the same for all networks."""
    batch_size: int = 16
    """Number of images per optimizer step."""
    lr: float = 1e-3
    """Learning rate at the end of the warm-up."""
    warmup_steps: int = 100
    """Number of optimizer steps over which the learning rate rises linearly from 0."""


@dataclass(frozen=True)
class CompareConfig:
    """The configuration of a comparison.

    Args:
        backbone: The trained model that all networks start from: a folder, or the name of a packaged model.
        preset: The training preset of the backbone, for its data, sizes and forward process.
        data: Source of the training images, instead of the preset's.
        image_column: Column of the training images, instead of the preset's.
        reference: Real images that no network was trained on, to compare the samples with.
        reference_split: Split of the reference; by default train, or the only one available.
        features: Feature network for the metrics, as `adadiff evaluate` takes it.
        fine_tuning: The fine-tuning of every network.
        images: Number of samples per cell.
        headline_images: Number of samples of the cells at `headline_compute`, and of the full model.
        steps: Number of sampling steps of the full model and of all methods except fewer steps.
        scheduler: The scheduler, as `adadiff sample` takes it.
        guidance_scale: Scale of classifier-free guidance; 1 means no guidance.
        methods: Names of the methods (docs/baselines.md); by default all.
        compute: Fractions of the full model's FLOPs at which the methods are compared, in (0, 1).
        headline_compute: The compute fraction for which the report names a winner, one of `compute`.
        smaller_depths: Depths of the smaller models.
        shallow_depth: Depth of DuoDiff's shallow network.
        pruned: Fractions of the FLOPs that pruning keeps, in (0, 1).
        synergy_steps: Numbers of steps in the grid of steps and thresholds.
        synergy_compute: Compute fractions that the thresholds of both grids are set to; the first is 1, for no exits.
            Empty for no grids.
        batch_size: Number of images per sampling batch.
        dtype: Precision of sampling.
        seed: Seed of the noise, the same for all methods.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    backbone: str
    preset: str
    reference: str
    reference_split: str | None = None
    data: str | None = None
    image_column: str | None = None
    features: str = "small"
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    images: int = 2000
    headline_images: int = 10_000
    steps: int = 50
    scheduler: str = "ddim"
    guidance_scale: float = 1.0
    methods: tuple[str, ...] = ()
    compute: tuple[float, ...] = (0.3, 0.45, 0.55, 0.7, 0.85)
    headline_compute: float = 0.55
    smaller_depths: tuple[int, ...] = (5,)
    shallow_depth: int = 3
    pruned: tuple[float, ...] = (0.8, 0.6)
    synergy_steps: tuple[int, ...] = (10, 20, 25, 50, 100)
    synergy_compute: tuple[float, ...] = (1.0, 0.7, 0.55)
    batch_size: int = 100
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def check(self) -> None:
        """Raise InputError if a value is out of range."""
        lookup(self.preset, PRESETS, "preset")
        for name in ("compute", "pruned"):
            if not all(0 < fraction < 1 for fraction in getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}: the fractions must be between 0 and 1")
        if self.headline_compute not in self.compute:
            raise InputError(f"headline_compute is {self.headline_compute}: it must be one of compute, {self.compute}")
        if self.synergy_compute and self.synergy_compute[0] != 1:
            raise InputError(f"synergy_compute is {self.synergy_compute}: the first fraction must be 1, for no exits")
        for name in ("images", "headline_images", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")

    def train_config(self, out: Path, start: Path, **changes: Any) -> TrainConfig:
        """Return the training configuration of a network that starts from a model folder."""
        preset = PRESETS[self.preset].train
        tuning = self.fine_tuning
        return replace(
            preset,
            out=out,
            init_from=start,
            data=replace(
                preset.data,
                source=self.data or preset.data.source,
                image_column=self.image_column or preset.data.image_column,
            ),
            optimizer=replace(preset.optimizer, lr=tuning.lr, warmup_steps=tuning.warmup_steps),
            steps=tuning.steps,
            batch_size=tuning.batch_size,
            sample_every=0,
            **changes,
        )


def load_config(name: str) -> CompareConfig | PlansConfig:
    """Load a comparison's configuration from a JSON file, or a packaged one by its name.

    One that names a `model` compares tuned plans of it; any other names a `backbone` to train networks from.

    Raises:
        InputError: If it does not exist, or is not a valid configuration.
    """
    packaged = {path.stem: path for path in CONFIGS.glob("*.json")}
    path = Path(name)
    if not path.is_file():
        path = lookup(name, packaged, "comparison or file")
    text = path.read_bytes()
    try:
        config = _adapter_for(text).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(f"{path}: {f'{place}: ' if place else ''}{message}") from error
    config.check()
    return config


def _adapter_for(text: bytes) -> TypeAdapter[CompareConfig] | TypeAdapter[PlansConfig]:
    try:
        names_model = "model" in json.loads(text)
    except (ValueError, TypeError):  # said in better words when it is validated
        names_model = False
    return TypeAdapter(PlansConfig) if names_model else TypeAdapter(CompareConfig)
