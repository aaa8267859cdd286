"""Files that are written atomically and checked when they are read."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adadiff.utils.errors import InputError

CHECKSUMS = "SHA256SUMS"
LOCK = ".lock"
LONGEST_SHOWN = 120  # characters of two settings that a message still shows
PRETRAINED = Path(__file__).parent.parent / "pretrained"
"""Folder of the packaged models."""
OWN_PIPELINES = ("AdaDiffPipeline", "AdaptivePipeline")

# ---------------------------------------------------------------------------------------------------------------------
# Written atomically


def part_path(path: Path) -> Path:
    """Return the temporary path that `path` is written to until it is complete."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path that is renamed to `path` at the end of the block.

    If the block raises, the temporary file is deleted and `path` stays as it was.
    """
    part = part_path(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write a folder atomically: yield a temporary folder that replaces `path` at the end of the block.

    If the block raises, the temporary folder is deleted and `path` stays as it was.
    """
    part = part_path(path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file's content, atomically."""
    with atomic_write(path) as part:
        part.write_bytes(content)


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON, atomically."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(values, indent=2) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Output folders


def require_empty_folder(path: Path) -> None:
    """Raise InputError unless `path` is an empty folder or does not exist yet.

    A lock, and partial files left by a killed process, are ignored.
    """
    if path.exists() and not (path.is_dir() and all(_is_left_over(entry.name) for entry in path.iterdir())):
        raise InputError(f"{path} already holds other files: choose another output folder, or empty it")


def _is_left_over(name: str) -> bool:
    return name == LOCK or re.fullmatch(r"\..+\.part(\.\w+)?", name) is not None


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Lock an output folder against other processes during the block; create the folder if it is missing.

    The lock is released when the process ends, even if it is killed.

    Raises:
        InputError: If another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, blocking=False):
            try:
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)
    except Timeout as error:
        raise InputError(
            f"another process is writing into {folder}: wait until it ends, or choose another folder; to share a task "
            f"among processes, start them together with torchrun"
        ) from error


def claim_folder(folder: Path, note: str, description: dict[str, Any], holds: str) -> None:
    """Create an output folder with a JSON file that describes its contents, or check that an existing one matches.

    Args:
        folder: A new or empty folder, or one claimed before.
        note: Name of the JSON file.
        description: Everything that the folder's contents depend on, as plain values.
        holds: The contents in words, for messages, as "images sampled".

    Raises:
        InputError: If the folder was claimed with another description, or the JSON file is damaged.
    """
    check_claim(folder, note, description, holds)
    if not (folder / note).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / note, description)


def check_claim(folder: Path, note: str, description: dict[str, Any], holds: str) -> None:
    """Raise InputError if `claim_folder` would, without writing anything."""
    described = json.loads(json.dumps(description))
    path = folder / note
    if path.is_file():
        earlier = read_json(path)
        for name, value in described.items():
            if earlier.get(name) != value:
                differing = difference(name, earlier.get(name), value)
                raise InputError(f"{folder} holds {holds} with {differing}: choose another folder")
    else:
        require_empty_folder(folder)


def difference(name: str, earlier: Any, now: Any) -> str:
    """Describe in a few words how a setting differs from an earlier one; for nested settings, the first difference.

    Examples:
        >>> difference("scheduler", {"steps": 4, "eta": 0}, {"steps": 4, "eta": 1})
        'scheduler.eta = 0, not 1'
    """
    while isinstance(earlier, dict) and isinstance(now, dict):
        key = next(key for key in {**earlier, **now} if earlier.get(key) != now.get(key))
        name, earlier, now = f"{name}.{key}", earlier.get(key), now.get(key)
    return f"{name} = {earlier}, not {now}" if len(f"{earlier}{now}") <= LONGEST_SHOWN else f"another {name}"


def model_folder(name: str | os.PathLike[str]) -> Path:
    """Return a model's folder: `name` itself if it holds a model, else the packaged model of that name, else `name`.

    Examples:
        >>> model_folder("digits").name
        'digits'
    """
    packaged = PRETRAINED / name
    if not (Path(name) / "model_index.json").is_file() and (packaged / "model_index.json").is_file():
        return packaged
    return Path(name)


def is_stock(model: Path) -> bool:
    """Return whether a model is a pipeline of diffusers' own: a folder of one, or a name such as `someone/model`."""
    if (model / "model_index.json").is_file():
        index = read_json(model / "model_index.json")
        transformer = index.get("transformer")
        is_adaptive = isinstance(transformer, list) and transformer[1:] == ["AdaptiveModel"]
        return not is_adaptive and index.get("_class_name") not in (None, *OWN_PIPELINES)
    return not model.exists() and not model.is_absolute() and len(model.parts) == 2


def packaged_models() -> list[str]:
    """List the names of the packaged models."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/model_index.json"))


# ---------------------------------------------------------------------------------------------------------------------
# Checked when read


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: If the file is empty or incomplete, or holds anything but a JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged (it is not JSON): copy it again, or create it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged (it holds no JSON object): copy it again, or create it again")
    return values


def read_text(path: Path) -> str:
    """Read text in UTF-8, or in UTF-16 with a byte order mark; the mark is removed.

    Raises:
        InputError: If the file is missing, or has another encoding.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: check the path")
    content = path.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not text in UTF-8 (byte {error.start} is {content[error.start]:#04x}): save it as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{path} is not text: it holds null characters; save it as UTF-8")
    return text.replace("\ufeff", "")  # concatenated files have marks in the middle


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file in the folder to SHA256SUMS, in the format of `sha256sum --check`."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != CHECKSUMS)
    _write_checksums(folder, {file.name: sha256(file) for file in files})


def add_checksum(file: Path) -> None:
    """Add the SHA-256 of one file to SHA256SUMS, for folders that are filled file by file."""
    _write_checksums(file.parent, {**read_checksums(file.parent), file.name: sha256(file)})


def _write_checksums(folder: Path, checksums: dict[str, str]) -> None:
    with atomic_write(folder / CHECKSUMS) as part:
        part.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(checksums.items())))


def read_checksums(folder: Path) -> dict[str, str]:
    """Read SHA256SUMS: return the digest of each file by name, or an empty dict if the folder has no such file.

    Raises:
        InputError: If SHA256SUMS is damaged.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    lines = [re.fullmatch(r"([0-9a-f]{64})  ([^/\\]+)", line) for line in read_text(path).splitlines()]
    checksums = {line[2]: line[1] for line in lines if line}
    if not lines or len(checksums) != len(lines):
        raise InputError(f"{path} is damaged: copy the folder again, or delete this file to load the folder unverified")
    return checksums


def weights_checksum(folder: Path) -> str | None:
    """Return the recorded SHA-256 of a folder's first safetensors file, or None if none is recorded."""
    return next((digest for name, digest in read_checksums(folder).items() if name.endswith(".safetensors")), None)


def verify_checksums(folder: Path) -> None:
    """Raise InputError if a file listed in SHA256SUMS is missing or differs; a folder without that file passes."""
    for name, digest in read_checksums(folder).items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing: copy the folder again")
        if sha256(file) != digest:
            raise InputError(
                f"{file} is truncated or altered (its SHA-256 is not the one in {CHECKSUMS}): copy it again, "
                f"or delete {CHECKSUMS} if you changed the file"
            )


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()  # hashlib.file_digest comes with Python 3.11
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
