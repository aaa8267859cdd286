"""Conversion between the authors' released checkpoints and model folders."""

from adadiff.conversion.folder import convert_to_file, convert_to_folder
from adadiff.conversion.uvit import ReleasedSizes, from_released, read_released, to_released

__all__ = [
    "ReleasedSizes",
    "convert_to_file",
    "convert_to_folder",
    "from_released",
    "read_released",
    "to_released",
]
