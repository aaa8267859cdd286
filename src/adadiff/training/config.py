"""Everything a training is made of, as typed dataclasses; the presets fill them in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler

from adadiff.conditioning import ByteTextEncoder, TextEncoder, TransformersTextEncoder
from adadiff.data import DataConfig
from adadiff.errors import InputError
from adadiff.exits import AdaptiveModel
from adadiff.exits.losses import UalWeighting
from adadiff.ranges import (
    BelowOne,
    Count,
    CountOrZero,
    Fraction,
    NonNegative,
    Positive,
    PositiveOrInfinite,
    Seed,
    Workers,
    check_ranges,
)
from adadiff.sampling.defaults import SamplingDefaults


@dataclass(frozen=True)
class ModelConfig:
    """The backbone and its exits."""

    backbone: str = "uvit"
    """Kind of backbone."""
    patch_size: Count = 4
    """Side of a patch, in pixels."""
    width: Count = 192
    """Size of a token."""
    depth: Count = 9
    """Number of layers, odd."""
    num_heads: Count = 3
    """Attention heads."""
    head_dim: Count | None = None
    """Size of an attention head; by default the width over their number. Pruned models have fewer heads."""
    mlp_ratio: Positive = 4.0
    """Hidden size of the MLP over the width."""
    time_mlp: bool = False
    """Put the time embedding through an MLP."""
    final_conv: bool = True
    """End the output head in a 3x3 convolution."""
    condition: Literal["none", "class", "text"] = "none"
    """What the model is told of an image: nothing, its class, or its caption."""
    num_classes: Count | None = None
    """Size of the class table, the null class counted; by default the data's classes and the null class."""
    text_encoder: str = "bytes"
    """"bytes" (small, trained with the model), or a text model of transformers, by hub name or folder, frozen."""
    head: Literal["shared", "per_layer"] = "shared"
    """Output heads: one for all layers, or one for each."""
    estimator: Literal["concat", "token", "attention", "shared_token", "saturation"] = "concat"
    """Uncertainty estimators: the paper's, the released code's, attention with a learned query, BERxiT's or CALM's."""

    def build_text_encoder(self) -> TextEncoder | None:
        """The text encoder, where the model takes text: new, or loaded."""
        if self.condition != "text":
            return None
        if self.text_encoder == "bytes":
            return ByteTextEncoder(self.width)
        return TransformersTextEncoder.from_pretrained(self.text_encoder)

    def class_table(self, names: list[str] | None) -> tuple[int, int | None]:
        """Size of the class table, and which of its rows is the null class, if one is left for it.

        Args:
            names: The data's class names, if there are any.

        Raises:
            InputError: If the number of classes is neither set nor known from the names.
        """
        if self.num_classes is None and names is None:
            raise InputError("the data's classes have no names to count: set --model.num-classes, null class counted")
        size = self.num_classes or len(names or ()) + 1
        all_taken = names is not None and len(names) >= size
        return size, None if all_taken else size - 1

    def build(
        self,
        shape: tuple[int, int, int],
        network_time: dict[str, float],
        class_names: list[str] | None = None,
        context_shape: tuple[int, int] | None = None,
    ) -> AdaptiveModel:
        """A new model.

        Args:
            shape: Channels, height and width of what it denoises.
            network_time: The backbone's settings for the time, from `DiffusionConfig.network_time`.
            class_names: The data's class names, for a model that takes classes, if there are any.
            context_shape: Length and width of the text features, for a model that takes text.

        Raises:
            InputError: If the sizes do not fit together, or are more than memory holds.
        """
        backbone_config: dict[str, Any] = {
            "patch_size": self.patch_size,
            "width": self.width,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "mlp_ratio": self.mlp_ratio,
            "time_mlp": self.time_mlp,
            "final_conv": self.final_conv,
            **network_time,
        }
        null_class = None
        if self.condition == "class":
            backbone_config["num_classes"], null_class = self.class_table(class_names)
        if context_shape is not None:
            backbone_config["context_length"], backbone_config["context_dim"] = context_shape
        channels, height, width = shape
        try:
            return AdaptiveModel(
                sample_size=height if height == width else (height, width),
                in_channels=channels,
                backbone_type=self.backbone,
                backbone_config=backbone_config,
                head_type=self.head,
                estimator_type=self.estimator,
                class_names=class_names if self.condition == "class" else None,
                null_class=null_class,
            )
        except (RuntimeError, TypeError, MemoryError) as error:
            raise InputError(
                f"a model of width {self.width}, depth {self.depth} and mlp_ratio {self.mlp_ratio} cannot be built "
                f"here: make it smaller"
            ) from error


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process, and what the model predicts."""

    num_train_timesteps: Count = 1000
    """Number of time steps."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "vp_sde"] = "linear"
    """How beta grows, as in diffusers; vp_sde: the continuous linear-beta SDE, in as many steps."""
    beta_start: BelowOne = 0.0001
    """The first beta."""
    beta_end: BelowOne = 0.02
    """The last beta. (The SDE's are 0.1 and 20, whatever is set here.)"""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the model predicts: the noise, or the velocity."""
    count_from_one: bool = False
    """The network sees the steps as 1 to N, as in the U-ViT release, not as 0 to N - 1."""

    def build(self, in_latents: bool = False) -> DDPMScheduler:
        """The scheduler for training, and the default one for sampling; images stay in [-1, 1], latents need not.

        On the SDE the ancestral steps have the variance beta, as Euler and Maruyama's have.
        """
        continuous = self.beta_schedule == "vp_sde"
        return DDPMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_schedule="linear" if continuous else self.beta_schedule,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            trained_betas=vp_sde_betas(self.num_train_timesteps) if continuous else None,
            variance_type="fixed_large" if continuous else "fixed_small",
            prediction_type=self.prediction_type,
            clip_sample=not in_latents,
        )

    def network_time(self) -> dict[str, float]:
        """The backbone's settings for the time: U-ViT sees 999 t on the SDE, t in (0, 1], and else the step itself."""
        if self.beta_schedule == "vp_sde":
            return {"time_scale": 999 / self.num_train_timesteps, "time_shift": 1.0}
        return {"time_shift": 1.0} if self.count_from_one else {}


def vp_sde_betas(steps: int, first: float = 0.1, last: float = 20.0) -> list[float]:
    """Betas of as many discrete steps that stand, after step i, where the VP SDE does at t = i / steps.

    abar(t) = exp(-first t - (last - first) t^2 / 2): Song et al. 2021, arXiv 2011.13456, appendix B, equation 29.
    """
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    log_abar = -(first * t + (last - first) * t**2 / 2)
    return (-torch.expm1(log_abar.diff())).tolist()


@dataclass(frozen=True)
class LossConfig:
    """The joint loss L = L_simple + lambda * L_u + beta * L_UAL."""

    uncertainty_weight: NonNegative = 1.0
    """lambda."""
    layerwise_weight: NonNegative = 1.0
    """beta."""
    ual_weighting: UalWeighting = "detached"
    """Layer weights in L_UAL: the paper's, as the released code normalises them, or as BERxiT or CALM have them."""
    alternating: bool = False
    """The layer-wise loss at every second step only, as BERxiT trains."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule, and the moving average of the weights."""

    lr: Positive = 2e-4
    """Learning rate after the warm-up."""
    weight_decay: NonNegative = 0.03
    """Weight decay."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """AdamW's betas."""
    warmup_steps: CountOrZero = 500
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant_with_warmup", "cosine"] = "cosine"
    """The learning rate after the warm-up: constant, or falling to 0 along a cosine."""
    max_grad_norm: PositiveOrInfinite = 1.0
    """Gradients are clipped to this norm; inf for none."""
    ema_decay: BelowOne = 0.9995
    """Decay of the moving average of the weights, which is the model that is saved."""


@dataclass(frozen=True)
class TrainConfig:
    """One training."""

    out: Path
    """Folder of the run: the model, its checkpoints, logs and sample pictures."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    steps: Count = 10_000
    """Optimizer steps."""
    condition_dropout: Fraction = 0.1
    """How often a class or caption is left out, which classifier-free guidance needs."""
    batch_size: Count = 128
    """Images per optimizer step, over all processes and accumulated batches."""
    accumulate: Count = 1
    """Split each step's images into this many batches."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Arithmetic of the layers; weights stay in float32. auto: bf16 where the device computes with it, else no."""
    gradient_checkpointing: bool = False
    """Compute layers again in the backward pass, to save memory."""
    workers: Workers = 0
    """Processes that load images."""
    seed: Seed = 0
    """Of everything random."""
    init_from: Path | None = None
    """Fine-tune: start from the backbone of this model folder; exits start anew."""
    freeze_backbone: bool = False
    """Train only estimators and per-layer heads; the full model stays as it is."""
    resume: bool = False
    """Go on from the run's last checkpoint, or from the beginning where it has none yet."""
    max_bad_steps: Count = 1
    """Stop after this many steps in a row whose loss or gradients are not finite; each is skipped."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    """How many of the last checkpoints to keep."""
    sample_every: CountOrZero = 2000
    """Steps between sample pictures; 0 for none."""
    log_every: Count = 50
    """Steps between TensorBoard entries."""

    def check(self) -> None:
        """Raise InputError where a number is out of range, or two do not fit together."""
        check_ranges(self)
        if self.diffusion.beta_start > self.diffusion.beta_end:
            raise InputError(
                f"diffusion.beta_start {self.diffusion.beta_start} is above beta_end {self.diffusion.beta_end}: betas "
                f"must rise"
            )
        if self.batch_size % self.accumulate:
            raise InputError(f"batch_size {self.batch_size} cannot be split into {self.accumulate} equal batches")
