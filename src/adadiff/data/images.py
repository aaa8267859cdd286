"""Data sets of images with labels and captions, from any kind of source."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from adadiff.data import columns, pixels
from adadiff.data.config import DataConfig
from adadiff.data.listing import openable_formats, printable
from adadiff.data.sources import Source, open_source
from adadiff.utils.errors import InputError, one_line
from adadiff.utils.fingerprints import fingerprint

ConditionName = Literal["none", "class", "text"]
CONDITION_KIND: dict[ConditionName, columns.Kind] = {"class": "label", "text": "caption"}
UNREADABLE = "unreadable images"
SHOWN_NAMES, SHOWN_CLASSES = 5, 20


class LabelledData(Dataset[dict[str, Any]]):
    """Base class of data sets: items with class labels and captions, if the table has such columns.

    Args:
        config: The source and the names of its columns.
        source: The table, one row per item.

    Attributes:
        class_names: Names of the classes, or None.
        shape: Channels, height and width of the images or latents that a model denoises.
        vae: The autoencoder that made the latents, or None if the items are images.
        left_out: Names of files and rows that are not used, by reason.
    """

    shape: tuple[int, int, int]
    vae: AutoencoderKL | None = None

    def __init__(self, config: DataConfig, source: Source) -> None:
        self.config, self._source, self._table = config, source, source.table
        names = self._table.column_names
        self._columns: dict[columns.Kind, str | None] = {
            "label": config.label_column if config.label_column in names else None,
            "caption": config.caption_column if config.caption_column in names else None,
        }
        if (label := self._columns["label"]) is not None:
            self._table = columns.encode_string_labels(self._table, label)
        self.class_names: list[str] | None = getattr(self._table.features.get(label), "names", None)
        self._rows: NDArray[np.int64] = np.arange(len(self._table))  # rows of the source in use
        self.left_out = {reason: list(names) for reason, names in source.left_out.items() if names}

    def __len__(self) -> int:
        return len(self._table)

    @property
    def skipped(self) -> list[str]:
        """Names of the unreadable images that were left out."""
        return self.left_out.get(UNREADABLE, [])

    def check(self) -> None:
        """Raise InputError at the first unusable item, as far as a quick check can find one."""

    def labels(self) -> list[int]:
        """Return the labels of all items.

        Raises:
            InputError: If there is no label column, it has another type, or a row has no label.
        """
        return self._complete_column("label")

    def captions(self) -> list[str]:
        """Return the captions of all items.

        Raises:
            InputError: If there is no caption column, it has another type, or a row has no caption.
        """
        return self._complete_column("caption")

    def identity(self) -> dict[str, Any]:
        """Return values that identify the data: the number of items, the class names and a fingerprint.

        The fingerprint covers each file's path under the source, its size and samples of its content (as
        `Source.identity` takes them), captions and labels of metadata files, and which rows were left out. It ignores
        file times, since copying data changes them.
        """
        key = fingerprint([*self._source.identity(), self._rows.tobytes()])
        return {"items": len(self), "classes": self.class_names, "fingerprint": key}

    def describe(self) -> list[str]:
        """Summarise, in one line each, the items and split, the classes with counts, and what was left out."""
        split = "" if self._source.split is None else f", split {self._source.split}"
        lines = [f"{len(self)} {self._noun} of {self._source.name}{split}"]
        if self.class_names is not None:
            assert self._columns["label"] is not None
            counts = columns.count_labels(self._table, self._columns["label"])
            counted = [f"{name} {counts.get(k, 0)}" for k, name in enumerate(self.class_names)]
            lines.append(f"classes ({len(counted)}): {_listed(counted, SHOWN_CLASSES)}")
        for reason, names in self.left_out.items():
            lines.append(f"left out {len(names)} {reason}: {_listed(names, SHOWN_NAMES)}")
        return lines

    @property
    def condition_features(self) -> datasets.Features:
        """The types of the columns `label` and `caption`, if the data have them."""
        return datasets.Features({kind: self._table.features[name] for kind, name in self._columns.items() if name})

    @property
    def _noun(self) -> str:
        return "images"

    def _name(self, index: int) -> str:
        """Return an item's name, for messages."""
        return f"{self._source.name}, row {self._rows[index]}"

    def _label_and_caption(self, row: dict[str, Any]) -> dict[str, Any]:
        return {kind: row[name] for kind, name in self._columns.items() if name}

    def _complete_column(self, kind: columns.Kind) -> list[Any]:
        rows = self._rows_without(kind)
        if len(rows):
            raise self._missing(rows, kind)
        return self._table[self._columns[kind]][:]

    def _require_condition(self, condition: ConditionName | None) -> None:
        """Check the labels or captions that a model needs; rows without one raise InputError or are left out."""
        kind = CONDITION_KIND.get(condition) if condition is not None else None
        if kind is not None:
            self._require(self._rows_without(kind), kind)

    def _rows_without(self, kind: columns.Kind) -> NDArray[np.int64]:
        """Find the rows without label or caption; raise InputError if the column is missing or has another type."""
        column, source = self._columns[kind], self._source
        if column is None:
            if kind == "label" and source.no_labels is not None:
                raise InputError(source.no_labels)
            column_name = getattr(self.config, f"{kind}_column")
            raise InputError(
                f"{source.name} has no {kind} column {column_name!r}: set --data.{kind}-column to one of "
                f"{', '.join(self._table.column_names)}"
            )
        columns.require_condition_type(self._table.features[column], kind, column, source.name)
        return columns.rows_without_condition(self._table, column)

    def _require(self, missing: NDArray[np.int64], kind: str) -> None:
        """Raise InputError for rows that lack a value, or leave them out if `config.on_error` is "skip"."""
        if len(missing) and self.config.on_error == "stop":
            raise self._missing(missing, kind)
        self._leave_out(missing.tolist(), f"rows without {kind}")
        if not len(self):
            raise InputError(
                f"every row of {self._source.name} lacks its {kind}: set --data.{kind}-column to another column"
            )

    def _missing(self, rows: NDArray[np.int64], kind: str) -> InputError:
        return InputError(
            f"{len(rows)} of {len(self)} rows have no {kind}, the first is {self._name(int(rows[0]))}: fill them, or "
            f"leave them out with --data.on-error skip"
        )

    def _leave_out(self, rows: Sequence[int], reason: str) -> None:
        if rows:
            self.left_out.setdefault(reason, []).extend(self._name(row) for row in rows)
            remaining = np.delete(np.arange(len(self)), rows)
            self._table, self._rows = self._table.select(remaining), self._rows[remaining]


def _listed(names: Sequence[str], most: int) -> str:
    return ", ".join(printable(name) for name in names[:most]) + (", ..." if len(names) > most else "")


class ImageData(LabelledData):
    """A data set of images in [-1, 1], with labels and captions if the source has them.

    Item k is a dict: `image` (channels, size, size) float32, and if the source has them, `label` (int) and `caption`
    (str).

    Args:
        config: The source and how to prepare its images.
        smallest_side: An image with a side shorter than this, in pixels, is an error.
        condition: The condition that a model needs with each image: rows without their class or text are an error, or
            left out. None to take what the source has, unchecked until `labels` or `captions` is called.

    Raises:
        InputError: If the source is missing or empty, or has no such column; on reading an item, if its image is
            unreadable.

    Examples:
        >>> from adadiff.data import DataConfig
        >>> images = ImageData(DataConfig(source="digits", size=16, channels=1))
        >>> len(images), images[0]["image"].shape
        (1437, torch.Size([1, 16, 16]))
        >>> images.class_names[images[0]["label"]]
        '3'
    """

    def __init__(self, config: DataConfig, smallest_side: int = 1, condition: ConditionName | None = None) -> None:
        source = open_source(config, captions=condition in (None, "text"))
        columns.require_image_column(source.table, config.image_column, source.name)
        if len(source.table) == 0:
            raise InputError(f"{source.name} holds no images: set --data.source to another source")
        super().__init__(config, source)
        self._table = self._table.cast_column(config.image_column, datasets.Image(decode=False))
        self.smallest_side = smallest_side
        self.shape = (config.channels, config.size, config.size)
        self._require(columns.rows_without_image(self._table, config.image_column), "image")
        self._require_condition(condition)
        if config.on_error == "skip":
            self._leave_out_unreadable()

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._table[index]
        with self._open(row, index) as image:
            return {"image": self._prepare(image), **self._label_and_caption(row)}

    def check(self) -> None:
        """Read every image's header; raise InputError at the first image that is unreadable or too small."""
        for index in tqdm(range(len(self)), desc="checking images", leave=False):
            with self._open(self._table[index], index) as image:
                pixels.check_header(image)

    def is_grey(self) -> bool:
        """Return whether the first image is grey."""
        with self._open(self._table[0], 0) as image:
            return pixels.is_grey(image)

    def contents(self) -> Iterator[bytes]:
        """Yield the encoded file content of every image, as stored."""
        for row in self._table:
            encoded = row[self.config.image_column]
            yield encoded["bytes"] or Path(encoded["path"]).read_bytes()

    def _name(self, index: int) -> str:
        encoded = self._table[index][self.config.image_column] or {"bytes": None, "path": None}
        if encoded["bytes"] is None and encoded["path"]:
            return encoded["path"]
        return super()._name(index) + (f" ({encoded['path']})" if encoded["path"] else "")

    @contextmanager
    def _open(self, row: dict[str, Any], index: int) -> Iterator[Image.Image]:
        encoded = row[self.config.image_column]
        try:
            content = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
            with Image.open(content, formats=openable_formats()) as image:
                if min(image.size) < self.smallest_side:
                    raise InputError(
                        f"the image {self._name(index)} is {image.width}x{image.height}, smaller than a patch of "
                        f"{self.smallest_side}: leave it out, or choose a smaller --model.patch-size"
                    )
                yield image
        except InputError:
            raise
        except Exception as error:  # decoders raise many types, struct.error and RuntimeError among them
            reason = one_line(error)
            raise InputError(
                f"cannot read the image {self._name(index)} ({reason}): repair it, or leave it out with "
                f"--data.on-error skip"
            ) from error

    def _prepare(self, image: Image.Image) -> Tensor:
        side, channels = self.config.size, self.config.channels
        picture = pixels.flatten(image, channels)
        fitted = ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(fitted, dtype=np.float32)).reshape(side, side, channels)
        return values.permute(2, 0, 1) / 127.5 - 1  # (channels, size, size)

    def _leave_out_unreadable(self) -> None:
        unreadable = []
        for index in tqdm(range(len(self)), desc="checking images", leave=False):
            try:
                self[index]
            except InputError:
                unreadable.append(index)
        if len(unreadable) == len(self):
            raise InputError(f"{self._source.name} holds no readable image: set --data.source to another source")
        self._leave_out(unreadable, UNREADABLE)
