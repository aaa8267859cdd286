"""Files written whole or not at all, and checked when read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adadiff.errors import InputError

CHECKSUMS = "SHA256SUMS"
MODELS = Path(__file__).parent / "models"
"""Where the models are that come with the package."""


def part_path(path: Path) -> Path:
    """Where `path` is written before it is whole."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` once the block ends well and vanishes if it does not."""
    part = part_path(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` (taking its place) once the block ends well."""
    part = part_path(path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def require_empty_folder(path: Path) -> None:
    """Raise InputError unless `path` is an empty folder or nothing yet."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} already holds other files: choose another output folder, or empty it")


def claim_folder(folder: Path, note: str, description: dict[str, Any], holds: str) -> None:
    """Make an output folder and note in it what it is for, or check that it was begun for the same.

    Args:
        folder: New, empty, or claimed before.
        note: Name of the JSON file.
        description: What the folder's contents depend on, as plain values.
        holds: What it holds, for people: "images sampled".

    Raises:
        InputError: If it was begun for something else.
    """
    described = json.loads(json.dumps(description))
    path = folder / note
    if path.is_file():
        earlier = json.loads(path.read_text())
        for name, value in described.items():
            if earlier.get(name) != value:
                raise InputError(
                    f"{folder} holds {holds} with {name} = {earlier.get(name)}, not {value}: choose another folder"
                )
        return
    require_empty_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(json.dumps(described, indent=2) + "\n")


def write_checksums(folder: Path) -> None:
    """Note the SHA-256 of the folder's safetensors files, in the format of `sha256sum --check`."""
    lines = [f"{_sha256(file)}  {file.name}\n" for file in sorted(folder.glob("*.safetensors"))]
    with whole_file(folder / CHECKSUMS) as part:
        part.write_text("".join(lines))


def weights_checksum(folder: Path) -> str | None:
    """SHA-256 of a folder's first safetensors file as it was noted, or None."""
    path = folder / CHECKSUMS
    return path.read_text().split()[0] if path.is_file() else None


def verify_checksums(folder: Path) -> None:
    """Raise InputError where a noted file is missing or differs; a folder without notes passes."""
    if not (folder / CHECKSUMS).is_file():
        return
    for line in (folder / CHECKSUMS).read_text().splitlines():
        checksum, _, name = line.partition("  ")
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing: copy the model folder again")
        if _sha256(file) != checksum:
            raise InputError(
                f"{file} is truncated or altered (its SHA-256 is not the one in {CHECKSUMS}): copy it again, "
                f"or delete {CHECKSUMS} if the change is yours"
            )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest comes with Python 3.11
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
