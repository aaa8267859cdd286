"""Images from scikit-learn's digits, parquet files, folders and the hub, all through `datasets`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import datasets
import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from tyro.conf import arg

from adadiff.errors import InputError

DIGITS = "digits"


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are prepared."""

    source: Annotated[str, arg(aliases=["--data"])] = DIGITS
    """"digits" (built in), a parquet file, a folder of images (flat, or one folder a class), or a hub name."""
    split: str = "train"
    """Which split of the source."""
    size: int = 32
    """Side of the square images, in pixels: resized to cover it, then cropped at the centre."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB."""
    flip: bool = True
    """Mirror every other training image, at random."""
    on_error: Literal["stop", "skip"] = "stop"
    """An unreadable image stops with its name, or all are looked at first and the unreadable ones left out."""
    image_column: str = "image"
    """Column of the images."""
    label_column: str | None = "label"
    """Column of the class labels, if there is one."""
    caption_column: str | None = "text"
    """Column of the captions, if there is one."""


class LabelledData(Dataset[dict[str, Any]]):
    """Items with class labels and captions, where the table has such columns.

    Args:
        config: Where the table is from, and its columns.
        table: One row an item.

    Attributes:
        class_names: Names of the classes, or None.
        shape: Channels, height and width of what the model denoises.
        vae: What latents were made with, or None where the items are images.
        skipped: Names of the unreadable images left out.
    """

    shape: tuple[int, int, int]
    vae: AutoencoderKL | None = None

    def __init__(self, config: DataConfig, table: datasets.Dataset) -> None:
        self.config, self._table = config, table
        self._labels = config.label_column if config.label_column in table.column_names else None
        self._captions = config.caption_column if config.caption_column in table.column_names else None
        label_feature = table.features[self._labels] if self._labels else None
        self.class_names: list[str] | None = getattr(label_feature, "names", None)
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self._table)

    def check(self) -> None:
        """Raise InputError at the first item that is no good, as far as can be told quickly."""

    def labels(self) -> list[int]:
        """All items' labels; InputError where there is no such column."""
        return self._column(self._labels, "label")

    def captions(self) -> list[str]:
        """All items' captions; InputError where there is no such column."""
        return self._column(self._captions, "caption")

    def _column(self, column: str | None, kind: str) -> list[Any]:
        if column is None:
            wanted = getattr(self.config, f"{kind}_column")
            raise InputError(
                f"{self.config.source} has no {kind} column {wanted!r}: set --data.{kind}-column to one of "
                f"{', '.join(self._table.column_names)}"
            )
        return self._table[column][:]

    @property
    def condition_features(self) -> datasets.Features:
        """The types of `label` and `caption`, where there are such columns."""
        columns = {"label": self._labels, "caption": self._captions}
        return datasets.Features({name: self._table.features[column] for name, column in columns.items() if column})

    def _label_and_caption(self, row: dict[str, Any]) -> dict[str, Any]:
        columns = {"label": self._labels, "caption": self._captions}
        return {name: row[column] for name, column in columns.items() if column}


class ImageData(LabelledData):
    """Images in [-1, 1], with their labels and captions where the source has them.

    Item k is a dict: `image` (channels, size, size) float32, and where there are, `label` (int) and `caption` (str).

    Args:
        config: What to load.
        smallest_side: Images with a shorter side than this, in pixels, are an error.

    Raises:
        InputError: If the source is missing, empty or has no such column; when read, if an image is unreadable.
    """

    def __init__(self, config: DataConfig, smallest_side: int = 1) -> None:
        table = _load_table(config)
        if config.image_column not in table.column_names:
            raise InputError(
                f"{config.source} has no column {config.image_column!r}: set --data.image-column to one of "
                f"{', '.join(table.column_names)}"
            )
        if len(table) == 0:
            raise InputError(f"{config.source} holds no images")
        super().__init__(config, table.cast_column(config.image_column, datasets.Image(decode=False)))
        self.smallest_side = smallest_side
        self.shape = (config.channels, config.size, config.size)
        if config.on_error == "skip":
            self._leave_out_unreadable()

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._table[index]
        with self._open(row, index) as image:
            return {"image": self._prepare(image), **self._label_and_caption(row)}

    def check(self) -> None:
        """Look at every image's header; raise InputError at the first that is unreadable or too small."""
        for index in tqdm(range(len(self)), desc="checking images", leave=False):
            with self._open(self._table[index], index):
                pass

    def is_grey(self) -> bool:
        """Whether the first image has no colours."""
        with self._open(self._table[0], 0) as image:
            return image.mode in ("1", "L", "LA", "I", "F", "I;16")

    def contents(self) -> Iterator[bytes]:
        """Every image's file, as it is stored."""
        for row in self._table:
            encoded = row[self.config.image_column]
            yield encoded["bytes"] or Path(encoded["path"]).read_bytes()

    def _name(self, row: dict[str, Any], index: int) -> str:
        return row[self.config.image_column]["path"] or f"{self.config.source}, image {index}"

    @contextmanager
    def _open(self, row: dict[str, Any], index: int) -> Iterator[Image.Image]:
        encoded = row[self.config.image_column]
        try:
            with Image.open(io.BytesIO(encoded["bytes"]) if encoded["bytes"] else encoded["path"]) as image:
                if min(image.size) < self.smallest_side:
                    raise InputError(
                        f"the image {self._name(row, index)} is {image.width}x{image.height}, smaller than a patch of "
                        f"{self.smallest_side}: leave it out, or choose a smaller --model.patch-size"
                    )
                yield image
        except InputError:
            raise
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
            raise InputError(
                f"cannot read the image {self._name(row, index)}: mend it, or leave it out with --data.on-error skip"
            ) from error

    def _prepare(self, image: Image.Image) -> Tensor:
        side, channels = self.config.size, self.config.channels
        picture = _flatten(ImageOps.exif_transpose(image), channels)
        fitted = ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(fitted, dtype=np.float32)).reshape(side, side, channels)
        return pixels.permute(2, 0, 1) / 127.5 - 1

    def _leave_out_unreadable(self) -> None:
        readable = []
        for index in tqdm(range(len(self)), desc="checking images", leave=False):
            try:
                self[index]
                readable.append(index)
            except InputError:
                self.skipped.append(self._name(self._table[index], index))
        if not readable:
            raise InputError(f"{self.config.source} holds no readable image")
        self._table = self._table.select(readable)


def _flatten(image: Image.Image, channels: int) -> Image.Image:
    """The image in grey or RGB, transparent parts on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def _load_table(config: DataConfig) -> datasets.Dataset:
    path = Path(config.source)
    if config.source == DIGITS:
        return _load_digits(config.split)
    if path.suffix == ".parquet" or path.exists():
        return _load_local(path, config)
    if path.is_absolute() or config.source.startswith("."):
        raise InputError(
            f"there is no file or folder {path}: set --data.source to the folder or parquet file of images"
        )
    try:
        return datasets.load_dataset(config.source, split=config.split)
    except Exception as error:  # the hub's client raises many kinds
        raise InputError(
            f"{config.source!r} is neither digits, nor a folder or parquet file here, nor a data set that can be "
            f"fetched from the hub ({type(error).__name__})"
        ) from error


def _load_local(path: Path, config: DataConfig) -> datasets.Dataset:
    if not path.exists():
        raise InputError(f"there is no file {path}: set --data.source to the folder or parquet file of images")
    parquet = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    try:
        if parquet:
            return datasets.load_dataset("parquet", data_files=[str(file) for file in parquet], split="train")
        if not any(file.is_file() for file in path.rglob("*")):
            raise InputError(f"the folder {path} is empty: put the images there, flat or one folder a class")
        return datasets.load_dataset("imagefolder", data_dir=str(path), split=config.split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be loaded as a data set of images: {reason}") from error


def _load_digits(split: str) -> datasets.Dataset:
    """scikit-learn's 1,797 digits, 8x8 grey: four fifths of each class to train, the rest to test."""
    digits = load_digits()
    train, test = train_test_split(np.arange(len(digits.images)), test_size=0.2, stratify=digits.target, random_state=0)
    chosen = {"train": train, "test": test}.get(split)
    if chosen is None:
        raise InputError(f"digits have no split {split!r}: choose train or test")
    pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(name) for name in digits.target_names])}
    )
    return datasets.Dataset.from_dict({"image": images, "label": digits.target[chosen]}, features=features)
