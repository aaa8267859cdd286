"""Arguments of the pipeline's call as users of diffusers write them, checked and normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor
from typing_extensions import Self

from adadiff.utils.errors import InputError
from adadiff.utils.ranges import as_int, shown

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
CALLBACK_TENSORS = ("latents",)


def label_list(labels: Any, batch_size: int | None) -> list[Any]:
    """Return class labels as a list; a single label is repeated `batch_size` times.

    Args:
        labels: A name or an index, or a list, tuple, numpy array or torch tensor of them.
        batch_size: Number of images, or None to return a single label once.
    """
    if isinstance(labels, (Tensor, np.ndarray)):
        labels = labels.tolist()
    return list(labels) if isinstance(labels, (list, tuple, range)) else [labels] * (batch_size or 1)


def text_list(texts: str | Sequence[str], batch_size: int | None) -> list[str]:
    """Return prompts as a list; a single prompt is repeated `batch_size` times, or once if that is None.

    Raises:
        InputError: If the prompts are not all strings.
    """
    listed = [texts] * (batch_size or 1) if isinstance(texts, str) else texts
    if not isinstance(listed, (list, tuple, np.ndarray)) or not all(isinstance(text, str) for text in listed):
        raise InputError(f"{shown(texts)} is not a prompt: give a string, or a list of one string for each image")
    return list(listed)


def listed(prompt: Any, class_labels: Any, batch_size: Any) -> tuple[list[str] | None, list[Any] | None, int]:
    """Return prompts and class labels as lists, and the number of images that they request."""
    size = None if batch_size is None else as_int(batch_size, "the batch size")
    labels = None if class_labels is None else label_list(class_labels, size)
    prompts = None if prompt is None else text_list(prompt, size)
    return prompts, labels, size if size is not None else len(labels or prompts or [None])


def repeated(conditions: dict[str, Tensor], repeats: int) -> dict[str, Tensor]:
    """Repeat each row of each condition `repeats` times, copies next to each other."""
    return {name: rows.repeat_interleave(repeats, dim=0) for name, rows in conditions.items()}


def checked_count(value: Any, name: str) -> int:
    """Return the value as an int of at least 1.

    Raises:
        InputError: If it is not an integer, or less than 1.
    """
    number = as_int(value, name)
    if number < 1:
        raise InputError(f"{name} is {number}: it must be at least 1")
    return number


def checked_output_type(output_type: Any) -> str:
    """Return one of `OUTPUT_TYPES`; raise InputError for anything else."""
    if output_type not in OUTPUT_TYPES:
        others = ", ".join(f'"{each}"' for each in OUTPUT_TYPES[:-1])
        raise InputError(f'the output type is {shown(output_type)}: it must be {others} or "{OUTPUT_TYPES[-1]}"')
    return str(output_type)


def checked_latents(latents: Any, shape: tuple[int, ...], device: torch.device, name: str = "latents") -> Tensor:
    """Convert latents to float32 on the device.

    Args:
        latents: A floating-point tensor.
        shape: The required shape, (batch, channels, height, width).
        device: Device of the model.
        name: Name of the latents in messages.

    Raises:
        InputError: If the latents are not a floating-point tensor, or have another shape.
    """
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        kind = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
        raise InputError(f"the {name} are of type {kind}: give a floating-point tensor, such as torch.float32")
    if latents.shape != shape:
        raise InputError(
            f"the {name} are of shape {tuple(latents.shape)}: it must be (images, channels, height, width), {shape}"
        )
    return latents.to(device, torch.float32)


def checked_generator(generator: Any, batch_size: int) -> torch.Generator | list[torch.Generator] | None:
    """Return the generator of a call, or the list of one generator for each image.

    Raises:
        InputError: If it is neither, or the list has another length than the batch.
    """
    several = list(generator) if isinstance(generator, (list, tuple)) else None
    given = several or ([] if generator is None else [generator])
    if not all(isinstance(each, torch.Generator) for each in given):
        raise InputError(
            f"the generator is {shown(generator)}: give a torch.Generator, or a list of one for each image"
        )
    if several is not None and len(several) != batch_size:
        raise InputError(f"there are {len(several)} generators for {batch_size} images: give one, or one each")
    return generator if several is None else several


@dataclass(frozen=True)
class StepCallback:
    """Calls a user's function after every step: the `callback_on_step_end` of diffusers.

    Args:
        function: Called with the pipeline, the step counted from 0, its time and a dict of tensors; the dict that it
            returns may replace the latents.
        tensor_inputs: Names of the tensors in that dict, among `CALLBACK_TENSORS`.
    """

    function: Callable[[Any, int, Any, dict[str, Any]], Any]
    tensor_inputs: tuple[str, ...]

    @classmethod
    def checked(cls, function: Any, tensor_inputs: Sequence[str]) -> Self | None:
        """Build the callback from the arguments of a call, or return None without a function.

        Raises:
            InputError: If the function cannot be called, or a name is not in `CALLBACK_TENSORS`.
        """
        if function is None:
            return None
        if isinstance(function, (PipelineCallback, MultiPipelineCallbacks)):
            tensor_inputs = function.tensor_inputs
        if not callable(function):
            raise InputError(f"callback_on_step_end is {shown(function)}: give a function")
        unknown = [name for name in tensor_inputs if name not in CALLBACK_TENSORS]
        if unknown:
            raise InputError(
                f"callback_on_step_end_tensor_inputs names {shown(unknown[0])}: choose from "
                f"{', '.join(CALLBACK_TENSORS)}"
            )
        return cls(function, tuple(tensor_inputs))

    def __call__(self, pipeline: Any, step: int, timestep: Tensor, latents: Tensor) -> Tensor:
        """Call the function after a step.

        Returns:
            The latents to continue with.

        Raises:
            InputError: If the function does not return a dict, or returns latents of another shape or type.
        """
        tensors = {"latents": latents}
        returned = self.function(pipeline, step, timestep, {name: tensors[name] for name in self.tensor_inputs})
        if not isinstance(returned, dict):
            raise InputError(
                f"callback_on_step_end returned {shown(returned)}: it must return a dict, either empty or with the "
                f"latents to continue with"
            )
        if "latents" not in returned:
            return latents
        replaced = returned["latents"]
        return checked_latents(replaced, tuple(latents.shape), latents.device, "latents that the callback returned")
