"""Models that are checked on loading: checksums of their files, missing tensors, NaN or infinite weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from adadiff.utils.errors import InputError, one_line
from adadiff.utils.files import read_json, verify_checksums, write_checksums


class VerifiedModel(ModelMixin, ConfigMixin):
    """A diffusers model that is saved with checksums; loading a damaged copy raises InputError."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save like any diffusers model, and write the files' checksums next to them."""
        super().save_pretrained(save_directory, *args, **kwargs)
        write_checksums(Path(save_directory))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, **kwargs: Any) -> Any:
        """Load a model from a folder or the hub; only safetensors files are read.

        Raises:
            InputError: If the model does not exist, its files are truncated or altered, its weights do not fit its
                config, or some weights are NaN or infinite.
        """
        folder = Path(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise InputError(f"{folder} is not a model folder: it has no config.json")
            verify_checksums(folder)
            read_json(folder / "config.json")
        info_wanted = kwargs.get("output_loading_info", False)
        kwargs.update(use_safetensors=True, output_loading_info=True)
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except InputError:
            raise
        except (OSError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, SafetensorError) as error:
            reason = one_line(error)
            raise InputError(f"{pretrained_model_name_or_path} cannot be loaded as a model: {reason}") from error
        require_fitting(info, str(pretrained_model_name_or_path))
        require_finite(model, str(pretrained_model_name_or_path))
        return (model, info) if info_wanted else model


def require_fitting(info: Mapping[str, Any], name: str) -> None:
    """Raise InputError if loaded weights did not fit the model.

    Args:
        info: The loading info that diffusers' `from_pretrained` returns with `output_loading_info`.
        name: Name of the source, for the message.
    """
    misfits = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if misfits:
        raise InputError(
            f"the weights in {name} do not fit its config.json: {len(misfits)} tensors are missing, unexpected or of "
            f"another size, {misfits[0]} among them; copy the model again"
        )


def require_finite(module: nn.Module, name: str) -> None:
    """Raise InputError if a weight or buffer of the module was not loaded, or holds NaN or infinity.

    Args:
        module: The loaded module.
        name: Name of the source, for the message.
    """
    for key, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise InputError(f"{name} lacks the tensor {key}: copy the model again")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{name} is damaged: weights are NaN or infinite, in {key}; copy the model again")


def holds_weights_of(module: nn.Module, folder: Path) -> bool:
    """Return whether a module's weights equal those in a folder's safetensors files, in the module's precision."""
    weights = module.state_dict()
    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                if name not in weights or not torch.equal(stored.get_tensor(name).to(weights[name]), weights[name]):
                    return False
                found.add(name)
    return found == weights.keys()


def verify_parts(folder: Path) -> None:
    """Raise InputError if a model folder's index, or a file of one of its parts, is missing or damaged.

    Parts of adadiff's own classes verify themselves in their `from_pretrained`, and are not hashed here as well.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"{folder} is not a model folder: it has no model_index.json")
    for part, class_path in read_json(index).items():
        if not _verifies_itself(class_path):
            verify_checksums(folder / part)


def _verifies_itself(class_path: Any) -> bool:
    """Return whether a part's entry in the index, [module, class], names one of adadiff's own classes."""
    match class_path:
        case [str() as module, str()]:
            return module.partition(".")[0] == "adadiff"
    return False
