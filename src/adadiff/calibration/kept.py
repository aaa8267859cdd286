"""What a calibration has sampled, so that nothing is sampled twice, not even after an interruption."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from adadiff.files import claim_folder, require_empty_folder, whole_file

SETTINGS = "calibration.json"
Tensors = dict[str, Tensor]


class Kept:
    """Tensors, made once: kept in a folder, or in memory where none is given.

    Args:
        folder: New, empty, or of an earlier calibration; what was kept under other settings is deleted.
        settings: What all that is kept depends on, as plain values.

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
        elif json.loads(note.read_text()) != self.settings:
            shutil.rmtree(folder)

    def once(self, what: str, make: Callable[[], Tensors]) -> Tensors:
        """What is kept under this name, made now if nothing is."""
        if self.folder is not None:
            return self._from_file(self.folder, what, make)
        if what not in self._known:
            self._known[what] = make()
        return self._known[what]

    def discard(self) -> None:
        """Delete the folder."""
        if self.folder is not None:
            shutil.rmtree(self.folder)

    def _from_file(self, folder: Path, what: str, make: Callable[[], Tensors]) -> Tensors:
        path = folder / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"
        if not path.is_file():
            tensors = make()  # before anything is written: where this fails, nothing is
            claim_folder(folder, SETTINGS, self.settings, "a calibration")
            with whole_file(path) as part:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
        return load_file(path)
