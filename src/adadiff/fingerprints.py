"""Short names of contents, for caches that must notice when something else is in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import ConfigMixin
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


def settings_of(configured: ConfigMixin) -> dict[str, Any]:
    """The configuration of a diffusers model or scheduler as plain values, without what it says of its origin."""
    return {name: value for name, value in json.loads(configured.to_json_string()).items() if name[0] != "_"}


def model_fingerprint(model: Any) -> str:
    """16 hexadecimal digits that follow from a diffusers model's configuration, weights and buffers."""
    return fingerprint([sorted(settings_of(model).items()), *weights_of(model)])
