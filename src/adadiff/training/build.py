"""Builders of the parts of a training run from its configuration: precision, model, condition, optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from adadiff.conditioning import ClassCondition, Condition, FeatureCondition, TextEncoder, TokenCondition, Unconditional
from adadiff.data import LabelledData, cache_folder
from adadiff.exits import AdaptiveModel
from adadiff.sampling import AdaptivePipeline, Conditions
from adadiff.training.config import TrainConfig
from adadiff.utils.errors import InputError
from adadiff.utils.processes import process_state


def native_precision(device: torch.device) -> Literal["no", "bf16"]:
    """Return "bf16" if the device has instructions for it, else "no".

    A CPU without such instructions emulates bf16, tens of times slower than float32.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
        return "bf16" if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")) else "no"
    return "no"


def build_model(config: TrainConfig, images: LabelledData) -> tuple[AdaptiveModel, TextEncoder | None]:
    """Build the model to train, and its text encoder if it takes text.

    The backbone is new, or that of `config.init_from`; it is frozen if `config.freeze_backbone` is set.

    Raises:
        InputError: If the trained backbone is missing, of another size, or for latents of another autoencoder.
    """
    torch.manual_seed(config.seed)
    text_encoder = config.model.build_text_encoder()
    context_shape = None if text_encoder is None else text_encoder.shape
    model = config.model.build(images.shape, config.diffusion.network_time(), images.class_names, context_shape)
    if config.init_from is not None:
        source = AdaptivePipeline.from_pretrained(config.init_from, own_settings=False)
        try:
            model.start_from(source.transformer.backbone)
            if text_encoder is not None and not text_encoder.frozen:
                text_encoder.load_state_dict(source.text_encoder.state_dict())
        except (RuntimeError, AttributeError) as error:
            raise InputError(
                f"the backbone in {config.init_from} has other sizes than this model: make --model and --data fit it"
            ) from error
    if config.freeze_backbone:
        model.backbone.requires_grad_(False)
        if text_encoder is not None:
            text_encoder.requires_grad_(False)
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model, text_encoder


def build_condition(config: TrainConfig, images: LabelledData, text_encoder: TextEncoder | None) -> Condition:
    """Build the condition that the model gets with each image: its class, its caption, nothing, or the user's own.

    Raises:
        InputError: If the data lack labels or captions, or have labels outside the class table.
    """
    if config.model.takes_classes:
        size, null_class = config.model.class_table(config.model.class_names(images.class_names))
        if null_class is None and config.condition_dropout > 0:
            raise InputError(
                f"a table of {size} classes has no room for a null class: set --condition-dropout 0, or "
                f"--model.num-classes {size + 1}"
            )
        return config.model.own_condition() or ClassCondition(images.labels(), size, null_class)
    if text_encoder is None:
        return Unconditional()
    captions = images.captions()
    if not text_encoder.frozen:
        return TokenCondition(text_encoder)
    state = process_state()
    with state.main_process_first():
        return FeatureCondition(text_encoder.to(state.device), captions, cache_folder())


def example_conditions(config: TrainConfig, model: AdaptiveModel, images: LabelledData) -> Conditions:
    """Return the conditions of the sample pictures: all classes, or the first 16 different captions."""
    captions = tuple(dict.fromkeys(images.captions()))[:16] if config.model.condition == "text" else ()
    return Conditions(model.class_indices, captions)


def build_optimizer(config: TrainConfig, parameters: Sequence[nn.Parameter]) -> tuple[Optimizer, LRScheduler]:
    """Build AdamW and its learning-rate schedule."""
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    schedule = get_scheduler(
        settings.schedule, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=config.steps
    )
    return optimizer, schedule
