"""The default sampling settings of a model, stored in its folder; a user's choices override them."""

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
    """The default sampling settings of the model, stored with it."""

    scheduler: str = "ddim"
    """Scheduler: ddpm, ddim, dpm-solver++, unipc, euler or euler-ancestral."""
    steps: Count = 50
    """Number of sampling steps."""
    tau: Fraction = 0.0
    """Exit threshold on the mean uncertainty, in [0, 1]: 0 runs all layers, larger is faster and rougher."""
    min_layer: Count = 1
    """First layer after which a sample may exit, counted from 1."""
    guidance_scale: GuidanceScale = 1.0
    """Scale of classifier-free guidance, at least 1; 1 means no guidance."""

    def changed(self, **choices: Any) -> Self:
        """Return these settings with a user's choices in place of the defaults; a choice of None is ignored."""
        return replace(self, **{name: value for name, value in choices.items() if value is not None})

    def save(self, folder: Path) -> None:
        """Write the settings to a model folder's sampling.json."""
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
