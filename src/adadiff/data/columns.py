"""Checks of a table's columns, made on Arrow buffers, so that no image is decoded."""

from __future__ import annotations

from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adadiff.utils.errors import InputError

Kind = Literal["label", "caption"]
WANTED = {"label": "class labels, integers or strings", "caption": "strings"}


def require_image_column(table: datasets.Dataset, column: str, source: str) -> None:
    """Raise InputError unless the column exists and has a type that holds one image per row."""
    if column not in table.column_names:
        raise InputError(
            f"{source} has no column {column!r}: set --data.image-column to one of {', '.join(table.column_names)}"
        )
    feature = table.features[column]
    if not (isinstance(feature, datasets.Image) or _is_string(feature) or _is_binary(feature) or _is_encoded(feature)):
        raise InputError(
            f"the column {column!r} of {source} holds {_type_name(feature)}: it must hold one image per row, as a "
            f"file's bytes or path; set --data.image-column to another"
        )


def require_condition_type(feature: Any, kind: Kind, column: str, source: str) -> None:
    """Raise InputError unless the column's type fits labels, or captions, whichever `kind` names."""
    is_label = isinstance(feature, datasets.ClassLabel) or (
        isinstance(feature, datasets.Value) and pa.types.is_integer(feature.pa_type)
    )
    if not (_is_string(feature) if kind == "caption" else is_label):
        raise InputError(
            f"the {kind}s in the column {column!r} of {source} are {_type_name(feature)}: they must be {WANTED[kind]}; "
            f"set --data.{kind}-column to another"
        )


def rows_without_image(table: datasets.Dataset, column: str) -> NDArray[np.int64]:
    """Find the rows whose image cell is null, or has neither bytes nor a path.

    Args:
        table: A table without a selection of rows.
        column: Name of the image column, cast to `datasets.Image(decode=False)`.

    Returns:
        Row indices, (missing,) int64.
    """
    cells = table.data[column]
    content, path = (pc.struct_field(cells, name) for name in ("bytes", "path"))
    no_path = pc.equal(pc.fill_null(pc.binary_length(path), 0), 0)
    no_content = pc.if_else(pc.is_null(content), no_path, pc.equal(pc.binary_length(content), 0))
    return np.flatnonzero(pc.or_(pc.is_null(cells), no_content).to_numpy())


def rows_without_condition(table: datasets.Dataset, column: str) -> NDArray[np.int64]:
    """Find the rows whose label is null or negative, or whose caption is null or blank: (missing,) int64.

    Data sets mark hidden labels, as those of a test split, with negative numbers.
    """
    cells = _cells(table, column)
    if pa.types.is_integer(cells.type):
        missing = pc.fill_null(pc.less(cells, pa.scalar(0, cells.type)), True)
    else:
        missing = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(pc.fill_null(cells, ""))), 0)
    return np.flatnonzero(missing.to_numpy())


def encode_string_labels(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """Convert string labels to class labels, with sorted names and null for blank strings; keep other labels.

    Unlike `Dataset.class_encode_column`, this does not rewrite the other columns.
    """
    if not _is_string(table.features[column]):
        return table
    cells = pc.utf8_trim_whitespace(_cells(table, column))
    names = sorted(name for name in pc.unique(cells).to_pylist() if name)
    codes = pc.index_in(cells, value_set=pa.array(names, cells.type)).cast(pa.int64())
    features = datasets.Features({column: datasets.ClassLabel(names=names)})
    encoded = datasets.Dataset(pa.table({column: codes}), info=datasets.DatasetInfo(features=features))
    return datasets.concatenate_datasets([table.remove_columns(column), encoded], axis=1)


def count_labels(table: datasets.Dataset, column: str) -> dict[int, int]:
    """Count the rows of each label, ignoring null labels."""
    counts = pc.value_counts(_cells(table, column).combine_chunks())
    return {entry["values"]: entry["counts"] for entry in counts.to_pylist() if entry["values"] is not None}


def _cells(table: datasets.Dataset, column: str) -> pa.ChunkedArray:
    return table.select_columns(column).with_format("arrow")[:][column]


def _is_string(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_binary(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _is_encoded(feature: Any) -> bool:
    """Return whether the type is a struct of `bytes`, `path` or both; either may be null in all rows."""
    if not isinstance(feature, dict) or not feature or not set(feature) <= {"bytes", "path"}:
        return False
    allowed = {"bytes": ("binary", "large_binary", "null"), "path": ("string", "large_string", "null")}
    return all(getattr(part, "dtype", None) in allowed[name] for name, part in feature.items())


def _type_name(feature: Any) -> str:
    """Return a short name of the type, for messages."""
    if isinstance(feature, datasets.Value):
        return feature.dtype
    return "structs" if isinstance(feature, dict) else "lists" if "List" in type(feature).__name__ else repr(feature)
