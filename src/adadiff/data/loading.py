"""Opens what a configuration names: images, or latents of them."""

from __future__ import annotations

from pathlib import Path

import datasets

from adadiff.data.config import DataConfig
from adadiff.data.images import ConditionName, ImageData, LabelledData
from adadiff.data.latents import DESCRIPTION, LatentData


def cache_folder() -> Path:
    """Where features are kept that would take long to compute again."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "adadiff"


def open_data(config: DataConfig, smallest_side: int = 1, condition: ConditionName | None = None) -> LabelledData:
    """What the source holds: latents where it is a folder of them, else images.

    Args:
        config: What to load.
        smallest_side: Images with a shorter side than this, in pixels, are an error.
        condition: What a model needs beside the images, as `ImageData` takes it.
    """
    if (Path(config.source) / DESCRIPTION).is_file():
        return LatentData(config, condition)
    return ImageData(config, smallest_side, condition)
