"""Images, with labels and captions where there are any, as batches."""

from adadiff.data.images import DataConfig, ImageData

__all__ = ["DataConfig", "ImageData"]
