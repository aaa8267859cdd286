"""Short names of contents, for caches that must notice when something else is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn


def fingerprint(parts: Iterable[object]) -> str:
    """16 hexadecimal digits that follow from the parts and their order: bytes as they are, anything else as `repr`."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def weights_of(module: nn.Module) -> Iterable[bytes]:
    """The module's weights and buffers, as parts of a fingerprint."""
    for tensor in module.state_dict().values():
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
