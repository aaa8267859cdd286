"""Images, or latents of them, with labels and captions where there are any, as batches."""

from pathlib import Path

import datasets

from adadiff.data.images import DataConfig, ImageData, LabelledData
from adadiff.data.latents import DESCRIPTION, LatentData, encode_to_folder, load_vae

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


def open_data(config: DataConfig, smallest_side: int = 1) -> LabelledData:
    """What the source holds: a folder of latents, or images, as in the two classes."""
    if (Path(config.source) / DESCRIPTION).is_file():
        return LatentData(config)
    return ImageData(config, smallest_side)
