"""Captions and other columns of image files, from metadata.csv, metadata.jsonl, or one text file per image."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adadiff.utils.errors import InputError
from adadiff.utils.files import read_text

FILE_NAME = "file_name"


def metadata_columns(files: Sequence[Path], images: Sequence[Path], all_images: Sequence[Path]) -> dict[str, list[Any]]:
    """Read the columns of metadata files, one value per image; cells of CSV files stay strings.

    Args:
        files: Files named metadata.csv or metadata.jsonl, as in `datasets`' ImageFolder: the column `file_name` holds
            paths relative to the file's folder.
        images: The images to describe.
        all_images: All images that rows may describe, including those of other splits.

    Raises:
        InputError: If a file is damaged, a row describes none of these images, or an image has no row or several.
    """
    names = {os.path.normpath(path) for path in all_images}
    rows: dict[str, dict[str, Any]] = {}
    for file in files:
        for place, row in _read_rows(file):
            name = row.pop(FILE_NAME)
            path = os.path.normpath(file.parent / name)
            if path not in names:
                raise InputError(
                    f"{place} is about {name!r}, which is not among the images: correct it, or delete the row"
                )
            if path in rows:
                raise InputError(f"{place} is about {name!r}, which has a row already: delete one of them")
            rows[path] = row
    for image in images:
        if os.path.normpath(image) not in rows:
            raise InputError(f"the image {image} has no row in {files[0]}: add one, or move the image elsewhere")
    chosen = [rows[os.path.normpath(image)] for image in images]
    columns = dict.fromkeys(name for row in chosen for name in row)
    return {column: [row.get(column) for row in chosen] for column in columns}


def text_captions(texts: Mapping[Path, Path], images: Sequence[Path]) -> list[str | None] | None:
    """Read each image's caption from the text file with the same stem, with white space collapsed.

    Args:
        texts: Text files by their path without suffix.
        images: The images to describe.

    Returns:
        One caption per image, None for an image without a text file; or None if no image has one.

    Raises:
        InputError: If a text is not in UTF-8.
    """
    files = [texts.get(image.with_suffix("")) for image in images]
    if not any(files):
        return None
    return [None if file is None else " ".join(read_text(file).split()) for file in files]


def _read_rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read the rows as pairs of a place, such as "line 2 of metadata.csv", and a dict that has a file name."""
    text = read_text(file)
    rows = _csv_rows(file, text) if file.suffix == ".csv" else _json_rows(file, text)
    for place, row in rows:
        if not isinstance(row.get(FILE_NAME), str) or not row[FILE_NAME]:
            raise InputError(
                f"{place} has no {FILE_NAME}: give the image's path, relative to the folder of {file.name}"
            )
    return rows


def _csv_rows(file: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        header = next(reader, [])
        if FILE_NAME not in header or len(set(header)) < len(header):
            raise InputError(
                f"the first line of {file} must name the columns, each once and {FILE_NAME} among them, separated by "
                f"commas; it is {','.join(header)!r}"
            )
        for cells in reader:
            if not cells:
                continue
            place = f"line {reader.line_num} of {file}"
            if len(cells) != len(header):
                raise InputError(
                    f"{place} has {len(cells)} cells, the first line {len(header)}: put texts with commas in quotes"
                )
            rows.append((place, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} of {file} is not CSV: {error}") from error
    return rows


def _json_rows(file: Path, text: str) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for line_number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {line_number} of {file}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is not JSON: correct it, or delete it") from error
        if not isinstance(row, dict):
            raise InputError(f'{place} is not a JSON object: write one as {{"{FILE_NAME}": ..., ...}}}}')
        rows.append((place, row))
    return rows
