"""The configuration of a comparison of tuned plans, a typed JSON file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from adadiff.comparison.plans.methods import METHODS, FullModel
from adadiff.tuning.config import JUDGED_BY, SEARCHED_BY, SEED, TuneConfig
from adadiff.tuning.goal import TuningGoal
from adadiff.utils.errors import InputError, lookup


@dataclass(frozen=True)
class PlansConfig:
    """The configuration of a comparison in which every method is tuned by the same search.

    Args:
        model: The trained model: a folder, or the name of a packaged model; or a stock diffusers pipeline.
        reference: Real images to compare the samples with.
        reference_split: Split of the reference; by default train, or the only one available.
        image_column: Column of the real images.
        features: Feature networks that the searches go by; class agreement goes by the first.
        judges: Feature networks that no search goes by, which choose among a method's plans.
        methods: Names of the methods (docs/comparison.md); by default all that the model can be sampled by. The full
            model is always one.
        floors: Least class agreements, in [0, 1): one search of every method for each; 0 for none.
        most_compute: Most FLOPs of a plan over those of the model's default steps and guidance with all layers.
        targets: Computes at which the methods are compared, each at most `most_compute`.
        trials: Trials of each search.
        images: Images of a trial in each round, growing.
        points: Plans of each search that are measured on fresh images, at most.
        confirm: Number of fresh images.
        batch_size: Images per batch.
        dtype: Precision of the model.
        seed: Seed of the noise and of the proposals.
        steps: Default number of steps, which compute is relative to; by default the model's own.
        guidance_scale: Default guidance scale; by default the model's own.
        scheduler: Default scheduler; by default the model's own.
        prompts: File with a prompt in each line, for a model that takes text.
        class_index: Indices of the classes to sample in turn; by default all classes of the model.
        argument: Other arguments of a stock pipeline's call, each as name=value.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: str
    reference: str
    reference_split: str | None = None
    image_column: str = "image"
    features: tuple[str, ...] = SEARCHED_BY
    judges: tuple[str, ...] = JUDGED_BY
    methods: tuple[str, ...] = ()
    floors: tuple[float, ...] = (0.0, 0.65, 0.7)
    most_compute: float = 0.6
    targets: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    trials: int = 40
    images: tuple[int, ...] = (250, 1000)
    points: int = 6
    confirm: int = 2000
    batch_size: int = 50
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = SEED
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    prompts: str | None = None
    class_index: tuple[int, ...] = ()
    argument: tuple[str, ...] = ()

    @property
    def compared(self) -> tuple[str, ...]:
        """The names of the methods in order: the full model, whose best guidance the others begin with, comes first."""
        return (FullModel.name, *(name for name in self.methods or METHODS if name != FullModel.name))

    def check(self) -> None:
        """Raise InputError if a value is out of range, or a method is unknown."""
        for name in self.methods:
            lookup(name, METHODS, "method")
        if not all(0 < target <= self.most_compute for target in self.targets) or not self.targets:
            raise InputError(
                f"targets is {self.targets}: each must be above 0 and at most most_compute, {self.most_compute}"
            )
        if not self.floors:
            raise InputError("floors is empty: give 0 for no floor")
        for name in ("trials", "points", "confirm", "batch_size", "steps", "guidance_scale"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}: it must be at least 0")
        for floor in self.floors:
            self.search(floor)

    def search(self, floor: float) -> TuneConfig:
        """Return the settings of the searches under a floor of class agreement.

        Raises:
            InputError: If a value is out of range.
        """
        goal = TuningGoal(compute=self.most_compute, agreement=floor or None)
        settings = (self.trials, self.images, self.confirm, self.batch_size, self.seed)
        return TuneConfig(goal, self.features, self.judges, *settings)
