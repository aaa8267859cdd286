"""Fingerprints: short content hashes, by which caches notice that their inputs have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin
from safetensors import safe_open
from torch import Tensor, nn


def fingerprint(parts: Iterable[object]) -> str:
    """Hash parts, in order, to 16 hexadecimal digits; bytes are hashed as they are, anything else as its `repr`."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(f"{len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def weights_of(module: nn.Module) -> Iterable[bytes]:
    """Yield the bytes of a module's weights and buffers, as parts of a fingerprint."""
    for tensor in module.state_dict().values():
        yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def sampled_fingerprint(module: nn.Module, values: int = 256) -> str:
    """Hash a few values of each weight, its name and its shape: fast for models of any size.

    Weights that LoRA adapters add are left out, so that it is the fingerprint of the model without them.

    Args:
        module: The model.
        values: Values that are read of each tensor, evenly spaced.
    """
    parts: list[object] = []
    files = _files_of_groups(module)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if "lora_" in name:
            continue
        if id(tensor) in files:
            held = _in_file(*files[id(tensor)])
        else:
            held = _offloaded(module, name) if tensor.is_meta else tensor
        flat = held.detach().flatten()
        some = flat[:: max(1, flat.numel() // values)][:values].float().cpu()
        parts += [name.replace(".base_layer", ""), tuple(tensor.shape), some.numpy().tobytes()]
    return fingerprint(parts)


def _offloaded(module: nn.Module, name: str) -> Tensor:
    """Return a weight that accelerate keeps elsewhere while its module does not run; no values if it is not found."""
    path, _, own_name = name.rpartition(".")
    hook = getattr(module.get_submodule(path), "_hf_hook", None)
    for each in (hook, *getattr(hook, "hooks", ())):
        if getattr(each, "weights_map", None) is not None:
            found: Tensor = each.weights_map[own_name]
            return found
    return torch.empty(0)


def _files_of_groups(module: nn.Module) -> dict[int, tuple[str, str]]:
    """Return where diffusers' group offloading keeps weights on disk, as file and key by the identity of the tensor.

    In memory these weights have no values while their group does not run.
    """
    files = {}
    for each in module.modules():
        for hook in getattr(getattr(each, "_diffusers_hook", None), "hooks", {}).values():
            path = getattr(getattr(hook, "group", None), "safetensors_file_path", None)
            if path is not None and Path(path).is_file():
                files.update({id(tensor): (path, key) for tensor, key in hook.group.tensor_to_key.items()})
    return files


def _in_file(path: str, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        found: Tensor = file.get_tensor(key)
    return found


def settings_of(configured: ConfigMixin) -> dict[str, Any]:
    """Return the configuration of a diffusers model or scheduler as plain values, without metadata on its origin."""
    return {name: value for name, value in json.loads(configured.to_json_string()).items() if name[0] != "_"}


def model_fingerprint(model: Any) -> str:
    """Hash a diffusers model's configuration, weights and buffers to 16 hexadecimal digits."""
    return fingerprint([sorted(settings_of(model).items()), *weights_of(model)])
