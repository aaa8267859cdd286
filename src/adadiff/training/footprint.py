"""The footprint of a model, computed before it is trained: parameters, FLOPs and memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adadiff.exits import AdaptiveModel
from adadiff.exits.losses import joint_loss
from adadiff.training.config import TrainConfig
from adadiff.training.presets import Preset

STATE_BYTES = 4 * 5
"""Bytes of a parameter in training: itself, its gradient, AdamW's two moments and its moving average, in float32."""


@dataclass(frozen=True)
class Footprint:
    """The parameters, FLOPs and memory that a model needs for sampling and training.

    Args:
        parameters: Number of parameters of the backbone, including its output head.
        exit_parameters: Number of parameters of the other output heads and the estimators.
        flops: FLOPs of the full model for one image at one step, without guidance (a multiply-add counts 2).
        weights: Bytes of the weights in float32; half of it in bfloat16.
        sampling_per_image: Additional bytes per image of a batch with all layers run in float32; half in bfloat16.
        training_states: Bytes of weights, gradients, optimizer states and moving average, in float32.
        training_per_image: Additional bytes per image of a process's batch, in the precision of the training.
    """

    parameters: int
    exit_parameters: int
    flops: int
    weights: int
    sampling_per_image: int
    training_states: int
    training_per_image: int


def footprint(preset: Preset) -> Footprint:
    """Compute the footprint of a preset's model by running it on fake tensors, which hold no data."""
    config = preset.train
    with torch.device("meta"):
        model = config.model.build(
            preset.shape, config.diffusion.network_time(), _class_names(config), preset.context_shape
        )
    backbone, everything = (sum(weight.numel() for weight in part.parameters()) for part in (model.backbone, model))
    flops = model.part_flops.full
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        training = _per_image(lambda batch: _train_step(model, config, batch))
        with torch.no_grad():
            sampling = _per_image(lambda batch: model.backbone(*model.backbone.example_inputs(batch)))
    return Footprint(
        parameters=backbone,
        exit_parameters=everything - backbone,
        flops=flops,
        weights=4 * everything,
        sampling_per_image=sampling,
        training_states=STATE_BYTES * everything,
        training_per_image=training,
    )


class PeakMemory(TorchDispatchMode):
    """Measures the peak memory of tensors made inside its `with` block, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self._storages: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        input_storages = {
            id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in input_storages:
                self._track(leaf.untyped_storage())
        self.peak = max(self.peak, self.alive)
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def release(_: Any) -> None:
            del self._storages[key]
            self.alive -= size

        self._storages[key] = weakref.ref(storage, release)
        self.alive += size


def _per_image(run: Callable[[int], Any]) -> int:
    """Return the growth of peak memory per image, in bytes.

    It is measured between two batch sizes large enough that tensors independent of the batch do not set the peak.
    """
    peaks = []
    for batch in (128, 256):
        with PeakMemory() as memory:
            run(batch)
        peaks.append(memory.peak)
    return (peaks[1] - peaks[0]) // 128


def _train_step(model: AdaptiveModel, config: TrainConfig, batch: int) -> None:
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    inputs = model.backbone.example_inputs(batch)
    half = config.mixed_precision != "no"
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        predictions, uncertainties = model.all_exits(*inputs)
        target = torch.empty_like(inputs[0])
        joint_loss(predictions.float(), uncertainties.float(), target).total.backward()
    model.zero_grad()


def _class_names(config: TrainConfig) -> list[str] | None:
    """Return placeholder class names if the configuration leaves the number of classes to the data."""
    return [str(k) for k in range(10)] if config.model.num_classes is None else None
