"""Open the images, or their latents, that a configuration names."""

from __future__ import annotations

from pathlib import Path

import datasets

from adadiff.data.config import DataConfig
from adadiff.data.images import ConditionName, ImageData, LabelledData
from adadiff.data.latents import DESCRIPTION, LatentData


def cache_folder() -> Path:
    """Return the folder that caches features which take long to compute."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "adadiff"


def open_data(config: DataConfig, smallest_side: int = 1, condition: ConditionName | None = None) -> LabelledData:
    """Open a data source: as latents if it is a folder that `encode_to_folder` wrote, else as images.

    Args:
        config: The source and how to prepare its images.
        smallest_side: An image with a side shorter than this, in pixels, is an error.
        condition: The condition that a model needs with each image, as `ImageData` takes it.

    Raises:
        InputError: If the source is missing, empty or damaged, or lacks what the condition needs.
    """
    if (Path(config.source) / DESCRIPTION).is_file():
        return LatentData(config, condition)
    return ImageData(config, smallest_side, condition)
