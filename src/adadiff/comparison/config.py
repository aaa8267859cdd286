"""What is compared, in one typed file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from adadiff.errors import InputError, lookup
from adadiff.presets import PRESETS
from adadiff.training import TrainConfig

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class FineTuning:
    """How every method's network is trained on from the backbone."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    steps: int = 1000
    """Optimizer steps, the same for all."""
    batch_size: int = 16
    """Images per step."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0."""


@dataclass(frozen=True)
class CompareConfig:
    """A comparison.

    Args:
        backbone: The trained model that all networks start from: a folder, or one that comes with the package.
        preset: The training preset it was made with: its data, sizes and forward process.
        data: In place of the preset's data, where images to train on are.
        image_column: In place of the preset's, their column.
        reference: Real images that no network was trained on, to compare the samples with.
        reference_split: Which split of them; by default train, or the only one there is.
        features: Network to judge by, as `adadiff evaluate` takes it.
        fine_tuning: Of every network.
        images: Samples a cell.
        headline_images: Samples of the cells at `headline_compute`, and of the full model.
        steps: Sampling steps of all methods but fewer steps.
        scheduler: As `adadiff sample` takes it.
        guidance_scale: 1 means none.
        methods: Names of the methods (docs/rivals.md); by default all.
        compute: Fractions of the full model's FLOPs at which the methods are compared, in (0, 1).
        headline_compute: The one for which the report names a winner.
        smaller_depths: Depths of the smaller models.
        shallow_depth: Depth of DuoDiff's shallow network.
        pruned: Fractions of the FLOPs that pruning leaves, in (0, 1).
        synergy_steps: Steps of the grid of steps and thresholds.
        synergy_compute: Fractions at which its thresholds are set, first 1, for the full depth; none for no grids.
        batch_size: Images sampled at once.
        dtype: Arithmetic of the samplings.
        seed: Of the noise, the same for all methods.
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
        """Raise InputError where a value is out of range."""
        lookup(self.preset, PRESETS, "preset")
        for name in ("compute", "pruned"):
            if not all(0 < fraction < 1 for fraction in getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}: the fractions must be between 0 and 1")
        if self.headline_compute not in self.compute:
            raise InputError(f"headline_compute is {self.headline_compute}: it must be one of compute, {self.compute}")
        if self.synergy_compute and self.synergy_compute[0] != 1:
            raise InputError(f"synergy_compute is {self.synergy_compute}: its first row must be 1, without exits")
        for name in ("images", "headline_images", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")

    def train_config(self, out: Path, start: Path, **changes: Any) -> TrainConfig:
        """The training of a network that starts from a model folder."""
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


def load_config(name: str) -> CompareConfig:
    """A comparison by the name of one that comes with the package, or its JSON file.

    Raises:
        InputError: If there is none, or it does not hold what a comparison needs.
    """
    known = {path.stem: path for path in CONFIGS.glob("*.json")}
    path = Path(name)
    if not path.is_file():
        path = lookup(name, known, "comparison, nor a file,")
    try:
        config = TypeAdapter(CompareConfig).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"][0].lower() + first["msg"][1:]
        raise InputError(f"{path}: {f'{place}: ' if place else ''}{message}") from error
    config.check()
    return config
