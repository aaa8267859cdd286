"""Files of a local source: which are images, which are left out, and the split and class of each."""

from __future__ import annotations

import functools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from adadiff.utils.errors import InputError

TRAIN = "train"
SPLITS = {
    **{"train": TRAIN, "training": TRAIN},
    **{"val": "validation", "valid": "validation", "validation": "validation", "dev": "validation"},
    **{"test": "test", "testing": "test", "eval": "test"},
}
"""The split that each word in the name of a folder or file stands for."""

METADATA = ("metadata.csv", "metadata.jsonl")
MODEL = "model_index.json"
OWN_NOTES = {
    "train.json": ("a training run", "mixed_precision"),
    "compare.json": ("a comparison", "headline_compute"),
    "latents.json": ("latents", "shards"),
    "request.json": ("samples", "policy"),
}
"""For each file that adadiff writes into its output folders: what such a folder holds, and a key in the file."""
NOTE_BYTES = 1 << 20  # ours are far smaller; a COCO train.json is far larger
SAMPLE_PLOTS = ("grid.png", "exits.png")

NOT_PHOTOS = {
    *("EPS", "WMF"),  # vector graphics; EPS would be run by Ghostscript
    *("MPEG", "FLI"),  # video
    *("BUFR", "GRIB", "HDF5", "IPTC"),  # Pillow identifies these, but cannot decode them without a plugin
}


@functools.cache
def image_formats() -> dict[str, str]:
    """Map each image file extension that this installation can open to Pillow's format, as ".png" to "PNG"."""
    extensions = Image.registered_extensions()  # loads all plugins
    return {extension: name for extension, name in extensions.items() if name in Image.OPEN and name not in NOT_PHOTOS}


@functools.cache
def openable_formats() -> tuple[str, ...]:
    """Return Pillow's formats that an image may have, whatever its file extension."""
    return tuple(sorted(set(image_formats().values())))


@dataclass
class Found:
    """The files in a folder and its sub-folders, including linked ones, sorted by their use.

    Args:
        root: The folder.
        images: Image files, sorted by path.
        parquet: Parquet files, sorted by path.
        metadata: Files named in `METADATA`.
        texts: Text files, by their path without suffix.
        left_out: Names, relative to `root`, of unused files and folders, by reason.
    """

    root: Path
    images: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)
    texts: dict[Path, Path] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def leave_out(self, reason: str, path: Path) -> None:
        """Record an unused path under the reason for leaving it out."""
        self.left_out[reason].append(path.relative_to(self.root).as_posix())


@dataclass(frozen=True)
class Labels:
    """The class of each image, taken from the name of its folder.

    Args:
        names: Names of the classes, sorted.
        of: Index into `names` for each image.
    """

    names: list[str]
    of: list[int]


# ---------------------------------------------------------------------------------------------------------------------
# Walking


def find_files(root: Path) -> Found:
    """Find the images, parquet files, metadata and texts in a source folder.

    Raises:
        InputError: If it is an output folder of adadiff, or a folder in it cannot be read.
    """
    if not _is_utf8(str(root)):
        raise InputError(f"the name of the folder {printable(str(root))} is not UTF-8: rename it")
    own = _own_output(root)
    if own is not None and own != "samples":
        raise InputError(f"{root} holds {own}, not images: set --data.source to a folder or parquet file of images")
    found = Found(root)
    _visit(root, frozenset(), found)
    found.images.sort(key=str)
    found.parquet.sort(key=str)
    return found


def _visit(folder: Path, above: frozenset[tuple[int, int]], found: Found) -> None:
    """Add a folder's files to `found`.

    `above` holds device and inode of all enclosing folders, to detect links that lead back to one of them.
    """
    try:
        status = folder.stat()
        here = above | {(status.st_dev, status.st_ino)}
        if above and (status.st_dev, status.st_ino) in above:
            found.leave_out("links to a folder around them", folder)
            return
        is_samples = _own_output(folder) == "samples"
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = folder / entry.name
                if entry.name.startswith("."):
                    found.leave_out("hidden files", path)
                elif not _is_utf8(entry.name):
                    found.leave_out("files with names that are not UTF-8", path)
                elif entry.is_dir():
                    _add_folder(path, here, found)
                elif not entry.is_file():
                    found.leave_out("broken links" if entry.is_symlink() else "special files", path)
                elif is_samples and entry.name in SAMPLE_PLOTS:
                    found.leave_out("files made by adadiff", path)
                else:
                    _add_file(path, found)
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}") from error


def _add_folder(path: Path, above: frozenset[tuple[int, int]], found: Found) -> None:
    if _own_output(path) in (None, "samples"):
        _visit(path, above, found)
    else:
        found.leave_out("folders made by adadiff", path)


def _add_file(path: Path, found: Found) -> None:
    suffix = path.suffix.lower()
    if suffix in image_formats():
        found.images.append(path)
    elif suffix == ".parquet":
        found.parquet.append(path)
    elif path.name in METADATA:
        found.metadata.append(path)
    elif suffix == ".txt":
        found.texts[path.with_suffix("")] = path
    else:
        found.leave_out("files of other types", path)


def _own_output(folder: Path) -> str | None:
    """Return what an output folder of adadiff holds, or None if the folder is not one."""
    if (folder / MODEL).is_file():
        return "a model"
    for name, (kind, key) in OWN_NOTES.items():
        note = folder / name
        try:
            if note.stat().st_size <= NOTE_BYTES and key in json.loads(note.read_bytes()):
                return kind
        except (OSError, ValueError, TypeError, RecursionError):
            continue  # missing, or not one of ours
    return None


def _is_utf8(name: str) -> bool:
    return name == name.encode(errors="replace").decode()


def printable(name: str) -> str:
    """Return the name as one line, with escapes for characters that cannot be printed."""
    shown = name.encode(errors="backslashreplace").decode()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in shown)


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def image_splits(found: Found) -> dict[str, Path]:
    """Return the folder of each split, or an empty dict if the folder is not divided into splits.

    It is divided if every top-level folder with images is named after a split, and no image lies outside of them.

    Raises:
        InputError: If two folders name the same split.
    """
    tops = {path.relative_to(found.root).parts for path in found.images}
    names = sorted({parts[0] for parts in tops})
    if any(len(parts) == 1 for parts in tops) or not all(name.lower() in SPLITS for name in names):
        return {}
    return _unique_splits(found.root, names)


def _unique_splits(root: Path, folders: Iterable[str]) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for name in folders:
        split = SPLITS[name.lower()]
        if split in splits:
            raise InputError(
                f"{root} has two folders for the split {split}, {splits[split].name} and {name}: rename or merge them"
            )
        splits[split] = root / name
    return splits


def parquet_split(path: Path, root: Path) -> str | None:
    """Return the split that a parquet file is named after, as in train-00000-of-00005.parquet.

    If the file name has no split, the nearest enclosing folder under `root` whose name has one decides.

    Raises:
        InputError: If a name contains two splits.
    """
    for name in (path.stem, *reversed(path.relative_to(root).parent.parts)):
        words = re.findall(rf"(?<![a-z])(?:{'|'.join(SPLITS)})(?![a-z])", name.lower())
        splits = sorted({SPLITS[word] for word in words})
        if len(splits) > 1:
            raise InputError(f"{path} names the splits {' and '.join(splits)}: rename it after one")
        if splits:
            return splits[0]
    return None


def parquet_splits(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Group parquet files by split; if no file names a split, all belong to the split train.

    Raises:
        InputError: If some files name a split and others do not.
    """
    splits: dict[str | None, list[Path]] = defaultdict(list)
    for path in files:
        splits[parquet_split(path, root)].append(path)
    unnamed = splits.pop(None, [])
    if unnamed and splits:
        raise InputError(
            f"{root} holds parquet files that name a split and others that do not, {unnamed[0].relative_to(root)} "
            f"among them: rename them after train, validation or test, or set --data.source to one file"
        )
    return {TRAIN: unnamed} if unnamed else {str(split): paths for split, paths in splits.items()}


def choose_split(requested: str | None, available: Iterable[str], source: str) -> str:
    """Return the requested split; by default train, or the only one available.

    Raises:
        InputError: If the split does not exist, or none was requested and there are several, none of them train.
    """
    names = sorted(available)
    split = TRAIN if requested is None else SPLITS.get(requested.lower(), requested)
    if split in names:
        return split
    if requested is None and len(names) == 1:
        return names[0]
    there_are = f"there are {', '.join(names)}" if len(names) > 1 else f"the only one is {names[0]}"
    missing = "no split train" if requested is None else f"no split {requested!r}"
    raise InputError(f"{source} has {missing}: {there_are}; choose it by --data.split")


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def folder_labels(images: Sequence[Path], root: Path) -> Labels | str:
    """Return each image's class, the first folder under `root` on its path, or the reason why there are no classes."""
    tops = [path.relative_to(root).parts for path in images]
    outside = next((path for path, parts in zip(images, tops, strict=True) if len(parts) == 1), None)
    if outside is not None:
        if all(len(parts) == 1 for parts in tops):
            return f"{root} has no class folders: put its images into one folder per class"
        return f"the image {outside} lies outside of the class folders: move it into one, or elsewhere"
    names = sorted({parts[0] for parts in tops})
    index = {name: k for k, name in enumerate(names)}
    return Labels(names, [index[parts[0]] for parts in tops])


def note_empty_folders(found: Found, root: Path) -> None:
    """Record as left out the folders directly under `root` with neither images nor other files left out."""
    mentioned = {path.relative_to(root).parts[0] for path in found.images if path.is_relative_to(root)}
    prefix = root.relative_to(found.root).as_posix() + "/" if root != found.root else ""
    mentioned |= {name.removeprefix(prefix).split("/")[0] for names in list(found.left_out.values()) for name in names}
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and entry.name not in mentioned:
            found.leave_out("folders without images", entry)
