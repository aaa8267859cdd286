"""What is pinned: samplings with the packaged models under every kind of exit policy, and the losses of trainings.

Each case is a row of a table; `sample` and `train_losses` run one through the library's public calls. All imports from
the library are in one block below, so that a renamed module is changed in one place.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import diffusers
import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from adadiff import (
    AdaDiffPipeline,
    BatchMeanExit,
    CorrectedScheduleExit,
    ExitPolicy,
    FixedExit,
    NeverExit,
    PatienceExit,
    ScheduleExit,
    TableExit,
    ThresholdExit,
    load_policy,
)
from adadiff.backbones import UViTConfig
from adadiff.data import DataConfig
from adadiff.training import TrainConfig, train
from adadiff.training.config import DiffusionConfig, LossConfig, ModelConfig, OptimizerConfig
from adadiff.utils.seeding import generator_for

# ---------------------------------------------------------------------------------------------------------------------
# Sampling

STEPS = 6
PIXEL_STRIDE = 5
"""Every fifth value of an image is stored. 5 divides no side of a patch or an image, so that all positions occur."""
SCHEDULERS = {
    "ddpm": diffusers.DDPMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpm-solver++": diffusers.DPMSolverMultistepScheduler,
}


@dataclass(frozen=True)
class PackagedModel:
    """How a packaged model is sampled here.

    Args:
        samples: Number of samples.
        depth: Layers of the model.
        taus: A threshold for each step near the middle of the uncertainties at that step.
        conditions: Arguments of the pipeline that say what the images show.
        guidance_scale: Of the guided cases; None for a model without a condition.
    """

    samples: int
    depth: int
    taus: tuple[float, ...]
    conditions: Mapping[str, Any]
    guidance_scale: float | None = None


MODELS = {
    "digits": PackagedModel(3, 17, (0.335, 0.31, 0.285, 0.28, 0.31, 0.48), {"batch_size": 3}),
    "cifar10-class-xs": PackagedModel(
        2, 9, (0.23, 0.195, 0.185, 0.19, 0.23, 0.455), {"class_labels": ["cat", "ship"]}, guidance_scale=3.0
    ),
    "emoji-text-xs": PackagedModel(
        2, 7, (0.18, 0.2, 0.235, 0.27, 0.33, 0.58), {"prompt": ["red apple", "blue heart"]}, guidance_scale=1.5
    ),
}


@dataclass(frozen=True)
class SamplingCase:
    """One call of the pipeline.

    Args:
        model: A key of `MODELS`.
        scheduler: A key of `SCHEDULERS`.
        policy: The exit policy.
        guidance: Arguments of the pipeline for classifier-free guidance; none where it is empty.
    """

    model: str
    scheduler: str
    policy: ExitPolicy
    guidance: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Describe the case as JSON values, to be stored beside its result."""
        policy = self.policy.describe()
        return {
            "model": self.model,
            "scheduler": self.scheduler,
            "steps": STEPS,
            "conditions": dict(MODELS[self.model].conditions),
            "guidance": {name: _as_json(value) for name, value in self.guidance.items()},
            "policy": policy.pop("policy"),
            "settings": {name: _as_json(value) for name, value in policy.items()},
        }


def policies(model: str) -> dict[str, ExitPolicy]:
    """Return every kind of policy the package has, with settings for a packaged model, by short names."""
    depth, taus = MODELS[model].depth, MODELS[model].taus
    tau, middle, last = taus[2], depth // 2, depth - 1
    table = (
        (0.0,) * last,  # no sample leaves
        *((0.0, *(row_tau,) * (last - 2), 1.0) for row_tau in taus[1:-1]),  # all have left after layer N - 1
        (1.0,) * last,  # all leave after layer 1
    )
    return {
        "never": NeverExit(),
        "fixed": FixedExit(middle),
        "schedule": ScheduleExit((depth, last, middle, 1, 2, depth)),
        "corrected": CorrectedScheduleExit((depth, 1, depth, 1, 2, middle)),
        "threshold": ThresholdExit(tau, min_layer=2),
        "threshold per step": ThresholdExit(taus),
        "threshold per layer": ThresholdExit(
            tuple(round(tau + 0.1 * (0.5 - layer / depth), 4) for layer in range(1, depth + 1)), per="layer"
        ),
        "table": TableExit(table),
        "patience": PatienceExit(tau, patience=2, min_layer=2, last_patient_layer=middle + 1),
        "batch mean": BatchMeanExit(tau),
        "calibrated": load_policy(model).stretched(STEPS),
    }


def sampling_cases() -> Iterator[tuple[str, SamplingCase]]:
    """Yield the names and cases of all samplings: each policy unguided, guided as tied pairs, and guided untied.

    A model without a condition is sampled with every scheduler; the others with another scheduler for each guidance.
    """
    for model, settings in MODELS.items():
        scale = settings.guidance_scale
        guidances: dict[str, tuple[str, dict[str, Any]]] = (
            {name: (name, {}) for name in SCHEDULERS}
            if scale is None
            else {
                "unguided": ("ddim", {}),
                "tied": ("dpm-solver++", {"guidance_scale": scale, "tied_exits": True}),
                "untied": ("ddpm", {"guidance_scale": scale, "tied_exits": False}),
            }
        )
        for kind, policy in policies(model).items():
            for guidance_name, (scheduler, guidance) in guidances.items():
                yield f"{model}/{guidance_name}/{kind}", SamplingCase(model, scheduler, policy, guidance)
    # Guidance begins after the first full step: the unconditional predictions have no corrections yet at the next exit.
    corrected = policies("cifar10-class-xs")["corrected"]
    interval = {"guidance_scale": 3.0, "guidance_interval": (0.15, 0.8)}
    yield "cifar10-class-xs/interval/corrected", SamplingCase("cifar10-class-xs", "ddim", corrected, interval)
    negative = {"guidance_scale": 2.0, "negative_prompt": "green leaf"}
    yield "emoji-text-xs/negative prompt/never", SamplingCase("emoji-text-xs", "ddim", NeverExit(), negative)


@functools.cache
def _pipeline(model: str, scheduler: str) -> AdaDiffPipeline:
    loaded = AdaDiffPipeline.from_pretrained(model)
    replaced = SCHEDULERS[scheduler].from_config(loaded.scheduler.config)
    pipeline = AdaDiffPipeline(**{**loaded.components, "scheduler": replaced})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class Sampled:
    """What a sampling gave.

    Args:
        exits: Values that must stay exactly as they are: exit layers and FLOPs, nested lists (steps, samples).
        images: A part of the values of each image, (samples, kept values) float32 in [0, 1].
    """

    exits: dict[str, list[list[int]]]
    images: Tensor


def sample(case: SamplingCase, seed: int) -> Sampled:
    """Run a case; image k has the generator of position k under the seed."""
    settings = MODELS[case.model]
    output = _pipeline(case.model, case.scheduler)(
        **settings.conditions,
        **case.guidance,
        policy=case.policy,
        num_inference_steps=STEPS,
        generator=[generator_for(seed, k) for k in range(settings.samples)],
        output_type="pt",
    )
    names = ("exit_layers", "unconditional_exit_layers", "flops")
    exits = {name: getattr(output.trace, name).tolist() for name in names}
    return Sampled(exits, output.images.flatten(1)[:, ::PIXEL_STRIDE].contiguous())


def _as_json(value: Any) -> Any:
    """Return lists in place of tuples, as JSON gives them back."""
    return [_as_json(each) for each in value] if isinstance(value, tuple) else value


# ---------------------------------------------------------------------------------------------------------------------
# Training

LOSSES = ("total", "simple", "uncertainty", "layerwise")
SQUARES = "squares.parquet"
_MODEL = {"patch_size": 2, "width": 16, "depth": 5, "num_heads": 2}
_COMMON = {"optimizer": {"lr": 1e-3, "warmup_steps": 5}, "steps": 20, "batch_size": 8}
TRAININGS: dict[str, dict[str, Any]] = {
    "unconditional": {
        **_COMMON,
        "data": {"source": "digits", "size": 8, "channels": 1},
        "model": _MODEL,
        "loss": {"ual_weighting": "detached"},
    },
    "class": {
        **_COMMON,
        "data": {"source": "digits", "size": 8, "channels": 1},
        "model": {**_MODEL, "condition": "class", "head": "per_layer"},
        "loss": {"ual_weighting": "normalized"},
        "diffusion": {"prediction_type": "v_prediction"},
    },
    "text": {
        **_COMMON,
        "data": {"source": SQUARES, "size": 8},
        "model": {**_MODEL, "condition": "text", "text_encoder": "bytes"},
        "loss": {"ual_weighting": "detached"},
    },
}
"""Settings of each training, as they are stored beside its losses."""


def train_losses(name: str, folder: Path) -> dict[str, list[float]]:
    """Train in an empty folder; return the loss and its terms at every step, as TensorBoard holds them."""
    settings = TRAININGS[name]
    data = dict(settings["data"])
    if data["source"] == SQUARES:
        data["source"] = str(_write_squares(folder))
    chosen = {name: value for name, value in settings["model"].items() if name not in _MODEL}
    config = TrainConfig(
        out=folder / "run",
        data=DataConfig(**data),
        model=ModelConfig(UViTConfig(**_MODEL), **chosen),
        diffusion=DiffusionConfig(**settings.get("diffusion", {})),
        loss=LossConfig(**settings["loss"]),
        optimizer=OptimizerConfig(**settings["optimizer"]),
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        checkpoint_every=settings["steps"],
        sample_every=0,
        log_every=1,
    )
    train(config)
    log = EventAccumulator(str(config.out / "logs" / "tensorboard"))
    log.Reload()
    return {term: [event.value for event in log.Scalars(f"loss/{term}")] for term in LOSSES}


def _write_squares(folder: Path) -> Path:
    """Write 12 captioned pictures, each a coloured square on black, as a parquet file."""
    colours = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 240)}
    rows: dict[str, list[Any]] = {"image": [], "text": []}
    for k in range(12):
        name = list(colours)[k % 3]
        pixels = np.zeros((8, 8, 3), dtype=np.uint8)
        pixels[k % 4 : k % 4 + 4, 2:6] = colours[name]
        rows["image"].append(Image.fromarray(pixels))
        rows["text"].append(f"a {name} square")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    path = folder / SQUARES
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path
