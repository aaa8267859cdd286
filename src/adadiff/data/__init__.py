"""Data sets of images or latents, with class labels and captions if the source has them."""

from typing import TYPE_CHECKING

from adadiff.data.config import DataConfig
from adadiff.utils.lazy import lazy_names

if TYPE_CHECKING:
    from adadiff.data.images import ImageData, LabelledData
    from adadiff.data.latents import LatentData, encode_to_folder, load_vae
    from adadiff.data.loading import cache_folder, open_data
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "adadiff.data.images": ["ImageData", "LabelledData"],
            "adadiff.data.latents": ["LatentData", "encode_to_folder", "load_vae"],
            "adadiff.data.loading": ["cache_folder", "open_data"],
        },
    )

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
