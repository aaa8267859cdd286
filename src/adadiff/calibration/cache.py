"""A cache of a calibration's tensors, so that nothing is sampled twice, even after an interruption."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adadiff.utils.errors import InputError
from adadiff.utils.files import atomic_write, claim_folder, read_json, require_empty_folder
from adadiff.utils.fingerprints import fingerprint

SETTINGS = "calibration.json"
OWN_FILE = re.compile(r"\.?[0-9a-f]{16}(\.part)?\.safetensors|\.calibration\.part\.json")
Tensors = dict[str, Tensor]


class TensorCache:
    """A cache of named tensors, in a folder, or in memory if no folder is given.

    Args:
        folder: A new or empty folder, or the cache of an earlier calibration; a cache made under other settings is
            deleted.
        settings: The settings that all cached tensors depend on, as plain values.

    Raises:
        InputError: If the folder holds other files.
    """

    def __init__(self, folder: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self._known: dict[str, Tensors] = {}
        if folder is None:
            return
        note = folder / SETTINGS
        if not note.is_file():
            require_empty_folder(folder)
        elif _settings_in(note) != self.settings:
            self.discard()

    def compute_once(self, what: str, make: Callable[[], Tensors]) -> Tensors:
        """Return the tensors cached under this name; make and cache them first if there are none."""
        found = self.find(what)
        return self.add(what, make()) if found is None else found

    def find(self, what: str) -> Tensors | None:
        """Return the tensors cached under this name, or None if there are none."""
        return self._known.get(what) if self.folder is None else _sound_tensors(self._path(self.folder, what))

    def discard(self) -> None:
        """Delete the cached tensors, and the folder if it holds no other files."""
        if self.folder is None or not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if path.name == SETTINGS or OWN_FILE.fullmatch(path.name):
                path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def add(self, what: str, tensors: Tensors) -> Tensors:
        """Cache tensors under this name, and return them."""
        if self.folder is None:
            self._known[what] = tensors
            return tensors
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        claim_folder(self.folder, SETTINGS, self.settings, "a calibration")
        with atomic_write(self._path(self.folder, what)) as part:
            save_file(tensors, part, metadata={"sha256": fingerprint(_parts(tensors))})
        return tensors

    @staticmethod
    def _path(folder: Path, what: str) -> Path:
        return folder / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"


def _settings_in(note: Path) -> dict[str, Any] | None:
    """Read the settings of a cache; return None if the file is damaged, which never equals any settings."""
    try:
        return read_json(note)
    except InputError:
        return None


def _sound_tensors(path: Path) -> Tensors | None:
    """Load the tensors of a file; return None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            noted = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        return None
    return tensors if noted == fingerprint(_parts(tensors)) else None


def _parts(tensors: Tensors) -> Iterable[object]:
    for name, tensor in sorted(tensors.items()):
        yield from (name, tensor.numpy().tobytes())
