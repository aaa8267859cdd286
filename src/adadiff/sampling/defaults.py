"""How a model is meant to be sampled, kept in its folder; what a user says comes first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from adadiff.utils.errors import InputError
from adadiff.utils.files import read_json, write_json
from adadiff.utils.ranges import Count, Fraction, GuidanceScale, check_ranges

SAMPLING = "sampling.json"


@dataclass(frozen=True)
class SamplingDefaults:
    """How to sample the model where nothing else is said."""

    scheduler: str = "ddim"
    """ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral."""
    steps: Count = 50
    """Sampling steps."""
    tau: Fraction = 0.0
    """Exit threshold in [0, 1]; 0 runs the full model."""
    min_layer: Count = 1
    """No sample leaves before this layer."""
    guidance_scale: GuidanceScale = 1.0
    """Strength of classifier-free guidance; 1 means none."""

    def changed(self, **choices: Any) -> Self:
        """These with a user's choices in place of their own; None chooses nothing."""
        return replace(self, **{name: value for name, value in choices.items() if value is not None})

    def save(self, folder: Path) -> None:
        """Write them into a model folder."""
        write_json(folder / SAMPLING, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a model folder's sampling.json, or return the defaults of this class if there is none.

        Raises:
            InputError: If the file is not what `save` writes.
        """
        path = folder / SAMPLING
        if not path.is_file():
            return cls()
        try:
            return check_ranges(cls(**read_json(path)))
        except (TypeError, InputError) as error:
            raise InputError(f"{path} does not hold sampling defaults: {error}; correct it, or delete it") from error
