"""Sources of images as tables: scikit-learn's digits, parquet files, folders and the hub."""

from __future__ import annotations

import glob
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from adadiff.data import listing
from adadiff.data.config import DIGITS, DataConfig
from adadiff.data.metadata import metadata_columns, text_captions
from adadiff.utils.errors import InputError, one_line

SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Source:
    """A table with one row per image, and its origin.

    Args:
        table: The table.
        name: The source in words, for messages.
        split: The split that the table holds, or None if the source has no splits.
        root: Folder or file that `files` are in.
        files: Files that the table was read from.
        origin: Identifies a table that was not read from files.
        own_columns: Columns whose values come from metadata or text files.
        no_labels: Why the images' folders give no class labels; None if they do, or for other kinds of sources.
        left_out: Names of unused files, by reason.
    """

    table: datasets.Dataset
    name: str
    split: str | None = None
    root: Path = Path()
    files: Sequence[Path] = ()
    origin: str = ""
    own_columns: Sequence[str] = ()
    no_labels: str | None = None
    left_out: Mapping[str, list[str]] = field(default_factory=dict)

    def identity(self) -> Iterator[object]:
        """Yield the parts of a fingerprint that changes with the data.

        For each file these are its path under the source, its size, and its content: all of it up to 12 KiB, else
        4 KiB each at the start, the middle and the end. File times are ignored, since copying data changes them.
        """
        yield from (self.origin, self.split)
        for file in self.files:
            yield file.relative_to(self.root).as_posix()
            yield from _content_samples(file)
        for column in self.own_columns:
            yield from (column, self.table[column][:])


def open_source(config: DataConfig, captions: bool = True) -> Source:
    """Open the source that `config.source` names, as a table.

    Args:
        config: The source, its split and its columns.
        captions: Whether to read captions from text files next to the images.

    Raises:
        InputError: If the source is missing, damaged or empty, or has no such split.
    """
    path = Path(config.source)
    if config.source == DIGITS:
        return _open_digits(config.split)
    if path.is_dir():
        found = listing.find_files(path)
        return _open_parquet_folder(found, config) if found.parquet else _open_images(found, config, captions)
    if path.is_file():
        split = listing.choose_split(
            config.split, [listing.parquet_split(path, path.parent) or listing.TRAIN], str(path)
        )
        return Source(load_parquet([path], path, split), str(path), split, path, [path])
    if path.suffix == ".parquet" or path.is_absolute() or config.source.startswith("."):
        raise InputError(f"there is no file or folder {path}: set --data.source to a folder or parquet file of images")
    return _open_hub(config)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _open_parquet_folder(found: listing.Found, config: DataConfig) -> Source:
    splits = listing.parquet_splits(found.parquet, found.root)
    split = listing.choose_split(config.split, splits, config.source)
    for path in (*found.images, *found.metadata, *found.texts.values()):
        found.leave_out("files beside parquet files", path)
    table = load_parquet(splits[split], found.root, split)
    return Source(table, config.source, split, found.root, splits[split], left_out=found.left_out)


def load_parquet(files: Sequence[Path], source: Path, split: str = listing.TRAIN) -> datasets.Dataset:
    """Load parquet files by their exact names.

    Raises:
        InputError: If a file cannot be loaded; the message names `source`.
    """
    # `datasets` treats names as glob patterns, even the current folder that it prepends to relative names.
    escaped = [glob.escape(str(file.absolute())) for file in files]
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs an error beside the one it raises
    try:
        return datasets.load_dataset("parquet", data_files={split: escaped}, split=split)
    except Exception as error:  # damaged files raise many types of errors
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = one_line(cause)
        raise InputError(f"{source} cannot be loaded as a parquet file of images: {reason}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def _open_images(found: listing.Found, config: DataConfig, captions: bool) -> Source:
    if not found.images:
        raise InputError(f"the folder {found.root} holds no images: {_other_contents(found.left_out)}")
    splits = listing.image_splits(found)
    split = listing.choose_split(config.split, splits or [listing.TRAIN], config.source)
    root = splits.get(split, found.root)
    images = [path for path in found.images if path.is_relative_to(root)]
    labels = listing.folder_labels(images, root)
    others = [folder for folder in splits.values() if folder != root]
    metadata = [path for path in found.metadata if not any(path.is_relative_to(other) for other in others)]

    columns: dict[str, Any] = {}
    if metadata:
        columns = metadata_columns(metadata, images, found.images)
    elif captions and config.caption_column is not None:
        texts = text_captions(found.texts, images)
        columns = {} if texts is None else {config.caption_column: texts}
    own_columns = [name for name in columns if name in (config.label_column, config.caption_column)]
    table = _image_table(images, labels, columns, own_columns, config)
    _note_unused(found, root, others, bool(metadata))
    return Source(
        table,
        config.source,
        split if splits else None,
        found.root,
        images,
        own_columns=own_columns,
        no_labels=labels if isinstance(labels, str) else None,
        left_out=found.left_out,
    )


def _image_table(
    images: Sequence[Path],
    labels: listing.Labels | str,
    columns: Mapping[str, list[Any]],
    own_columns: Sequence[str],
    config: DataConfig,
) -> datasets.Dataset:
    """Build the table of image paths, with labels by folder unless the metadata have labels, and metadata columns."""
    if config.image_column in columns:
        raise InputError(
            f"the metadata of {config.source} have a column {config.image_column!r}, the name of the images' "
            f"column: set --data.image-column to another name"
        )
    values: dict[str, Any] = {config.image_column: [str(path) for path in images]}
    features = datasets.Features({config.image_column: datasets.Image(decode=False)})
    label = config.label_column
    if isinstance(labels, listing.Labels) and label is not None and label not in columns:
        values[label], features[label] = labels.of, datasets.ClassLabel(names=labels.names)
    for name in own_columns:
        values[name] = columns[name]
        try:
            kind = pa.array(columns[name]).type
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(f"the column {name!r} of the metadata of {config.source} mixes types: {error}") from error
        features.update(datasets.Features.from_arrow_schema(pa.schema({name: kind})))
    return datasets.Dataset.from_dict(values, features=features)


def _note_unused(found: listing.Found, root: Path, others: Sequence[Path], has_metadata: bool) -> None:
    """Record unused texts and class folders without images as left out; drop records of the other splits."""
    stems = set() if has_metadata else {path.with_suffix("") for path in found.images}
    for stem, path in found.texts.items():
        if stem not in stems:
            found.leave_out("files of other types", path)
    listing.note_empty_folders(found, root)
    elsewhere = tuple(f"{other.name}/" for other in others)
    for reason, names in list(found.left_out.items()):
        found.left_out[reason] = [name for name in names if not name.startswith(elsewhere)]


def _other_contents(left_out: Mapping[str, list[str]]) -> str:
    """List what a folder without images holds, for a message."""
    contents = [f"{len(names)} {reason} ({listing.printable(names[0])})" for reason, names in left_out.items()]
    return f"it holds {', '.join(contents)}" if contents else "put them there, flat or one folder per class"


def _content_samples(file: Path) -> Iterator[object]:
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            yield size
            offsets = (0,) if size <= 3 * SAMPLE_BYTES else (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES)
            for offset in offsets:
                stream.seek(offset)
                yield stream.read(SAMPLE_BYTES if len(offsets) > 1 else size)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Digits and the hub


def _open_digits(requested: str | None) -> Source:
    """Load scikit-learn's 1,797 digits, 8x8 grey: four fifths of each class are the train split, the rest is test."""
    digits = load_digits()
    train, test = train_test_split(np.arange(len(digits.images)), test_size=0.2, stratify=digits.target, random_state=0)
    splits = {"train": train, "test": test}
    split = listing.choose_split(requested, splits, DIGITS)
    chosen = splits[split]
    pixels = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(name) for name in digits.target_names])}
    )
    table = datasets.Dataset.from_dict({"image": images, "label": digits.target[chosen]}, features=features)
    return Source(table, "the built-in digits", split, origin=DIGITS)


def _open_hub(config: DataConfig) -> Source:
    split = config.split or listing.TRAIN
    try:
        table = datasets.load_dataset(config.source, split=split)
    except Exception as error:  # the hub's client raises many types of errors
        reason = one_line(error)
        raise InputError(
            f"{config.source!r} is neither digits, nor an existing folder or parquet file, nor a data set on the hub "
            f"with a split {split!r} that can be fetched ({type(error).__name__}: {reason})"
        ) from error
    return Source(table, config.source, split, origin=table._fingerprint)
