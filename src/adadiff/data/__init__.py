"""Images, or latents of them, with labels and captions where there are any, as batches."""

from __future__ import annotations

from pathlib import Path

import datasets

from adadiff.data.images import ConditionName, ImageData, LabelledData
from adadiff.data.latents import DESCRIPTION, LatentData, encode_to_folder, load_vae
from adadiff.data.sources import DataConfig

__all__ = [
    "DataConfig",
    "ImageData",
    "LabelledData",
    "LatentData",
    "cache_folder",
    "encode_to_folder",
    "load_vae",
    "open_data",
]


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
