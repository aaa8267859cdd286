"""The configuration of a training run, as typed dataclasses; presets provide other default values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from diffusers import DDPMScheduler
from tyro.conf import arg

from adadiff.backbones import BackboneConfig, InputSpec, UViTConfig, backbone_of, backbone_settings
from adadiff.conditioning import ByteTextEncoder, Condition, Reads, TextEncoder, TransformersTextEncoder
from adadiff.data import DataConfig
from adadiff.exits import AdaptiveModel
from adadiff.exits.losses import UalWeighting
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.utils.errors import InputError, imported, one_line, suggestion
from adadiff.utils.ranges import (
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

CONDITIONS: tuple[Reads, ...] = ("none", "class", "text")
"""Our kinds of condition; each reads what it is named after."""


@dataclass(frozen=True)
class ModelConfig:
    """The backbone, its exits, and what the model is conditioned on."""

    backbone: Annotated[BackboneConfig, arg(name="")] = field(default_factory=UViTConfig)
    """The backbone's choices; their class says which backbone it is."""
    condition: str = "none"
    """What the model is conditioned on: none (nothing), class (an image's class), text (its caption), or
    package.module:name of a Condition of yours."""
    num_classes: Count | None = None
    """Size of the class table, including the null class; by default the data's classes and a null class."""
    text_encoder: str = "bytes"
    """"bytes" (small, trained with the model), or a frozen text model of transformers, by hub name or folder."""
    head: Literal["shared", "per_layer"] = "shared"
    """Output heads: one for all layers, or one for each."""
    estimator: Literal["concat", "token", "attention", "shared_token", "saturation"] = "concat"
    """Uncertainty estimators: the paper's (concat), the released code's (token), attention with a learned query,
    BERxiT's (shared_token) or CALM's (saturation)."""

    def __post_init__(self) -> None:
        shared = {part.name for part in fields(self.backbone)} & {part.name for part in fields(self)}
        if shared:
            kind = type(self.backbone).__qualname__
            raise InputError(f"{kind} has a field {min(shared)}, as ModelConfig has: give it another name")

    def describe(self) -> dict[str, Any]:
        """Return all choices as plain values in one level, as the options of the command line are named."""
        own = {part.name: getattr(self, part.name) for part in fields(self)}
        return {**own, **asdict(self.backbone), "backbone": backbone_of(self.backbone).name()}

    def own_condition(self) -> Condition | None:
        """Build the user's own condition; return None if the condition is one of ours.

        Raises:
            InputError: If the name is neither one of ours nor that of a `Condition` with classes.
        """
        if self.condition in CONDITIONS:
            return None
        if ":" not in self.condition:
            raise InputError(
                f"there is no condition {self.condition!r}: {suggestion(self.condition, CONDITIONS)} Or give "
                f"package.module:name of one of yours"
            )
        kind = imported(self.condition)
        if not (isinstance(kind, type) and issubclass(kind, Condition)):
            raise InputError(f"{self.condition} is not a class derived from adadiff.conditioning.Condition")
        condition = kind()
        if not condition.class_names:
            raise InputError(f"{self.condition} names no classes, which a model could take: set its class_names")
        size = len(condition.class_names) + 1
        if self.num_classes not in (None, size):
            raise InputError(f"num_classes is {self.num_classes}, but {self.condition} has {size}: leave it out")
        return condition

    @property
    def reads(self) -> Reads:
        """What each item of the data must have."""
        own = self.own_condition()
        return cast(Reads, self.condition) if own is None else own.reads

    def build_text_encoder(self) -> TextEncoder | None:
        """Build the text encoder, or load a pretrained one; return None if the model takes no text."""
        if self.condition != "text":
            return None
        if self.text_encoder == "bytes":
            return ByteTextEncoder(self.backbone.width)
        return TransformersTextEncoder.from_pretrained(self.text_encoder)

    @property
    def takes_classes(self) -> bool:
        """Whether the model takes classes: an image's own, or those of the user's condition."""
        return self.condition not in ("none", "text")

    def class_names(self, names: list[str] | None) -> list[str] | None:
        """Return the names of the model's classes, if it takes classes and they have names.

        Args:
            names: The data's class names, if they have any.
        """
        own = self.own_condition()
        if own is not None:
            return list(own.class_names)
        return names if self.takes_classes else None

    def class_table(self, names: list[str] | None) -> tuple[int, int | None]:
        """Return the size of the class table, and the row of the null class, or None if the data use all rows.

        Args:
            names: The names of the classes, if they have any.

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
        """Build a new model.

        Args:
            shape: Channels, height and width of the images or latents to denoise.
            network_time: The backbone's time settings, from `DiffusionConfig.network_time`.
            class_names: The data's class names, if they have any, for a model that takes classes.
            context_shape: Length and width of the text features, for a model that takes text.

        Raises:
            InputError: If the sizes do not fit together, or the model does not fit into memory.
        """
        channels, height, width = shape
        names, size, null_class = self.class_names(class_names), None, None
        if self.takes_classes:
            size, null_class = self.class_table(names)
        length, dim = context_shape or (InputSpec.context_length, None)
        inputs = InputSpec(
            (height, width), channels, num_classes=size, context_length=length, context_dim=dim, **network_time
        )
        try:
            return AdaptiveModel(
                sample_size=height if height == width else (height, width),
                in_channels=channels,
                backbone_type=backbone_of(self.backbone).name(),
                backbone_config=backbone_settings(self.backbone, inputs),
                head_type=self.head,
                estimator_type=self.estimator,
                class_names=names,
                null_class=null_class,
            )
        except (RuntimeError, TypeError, MemoryError) as error:
            raise InputError(
                f"a model of width {self.backbone.width} and depth {self.backbone.depth} cannot be built here: make it "
                f"smaller ({one_line(error)})"
            ) from error


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward diffusion process, and the quantity that the model predicts."""

    num_train_timesteps: Count = 1000
    """Number of time steps of the forward process."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "vp_sde"] = "linear"
    """Schedule of beta, as in diffusers; vp_sde: the variance-preserving SDE, beta from 0.1 to 20, discretised."""
    beta_start: BelowOne = 0.0001
    """Beta of the first time step, in [0, 1); vp_sde ignores it."""
    beta_end: BelowOne = 0.02
    """Beta of the last time step, in [0, 1); vp_sde ignores it."""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """Target of the model's prediction: the noise (epsilon) or the velocity (v_prediction)."""
    count_from_one: bool = False
    """Count time steps from 1 to T in the network's input, as the U-ViT release does, instead of from 0 to T - 1."""

    def build(self, in_latents: bool = False) -> DDPMScheduler:
        """Build the scheduler for training, which is also the default one for sampling.

        With `vp_sde` the ancestral steps have variance beta, as Euler-Maruyama steps have.

        Args:
            in_latents: Whether the model denoises latents: predicted images are clipped to [-1, 1], latents are not.
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
        """Return the backbone's time settings: for the SDE, U-ViT embeds 999 t, t in (0, 1], else the time step."""
        if self.beta_schedule == "vp_sde":
            return {"time_scale": 999 / self.num_train_timesteps, "time_shift": 1.0}
        return {"time_shift": 1.0} if self.count_from_one else {}


def vp_sde_betas(steps: int, first: float = 0.1, last: float = 20.0) -> list[float]:
    """Compute the betas of discrete steps whose abar after step i equals that of the VP SDE at t = i / steps.

    abar(t) = exp(-first t - (last - first) t^2 / 2): Song et al. 2021, arXiv 2011.13456, appendix B, equation 29.

    Args:
        steps: Number of discrete steps.
        first: The SDE's beta at t = 0.
        last: The SDE's beta at t = 1.
    """
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    log_abar = -(first * t + (last - first) * t**2 / 2)
    return (-torch.expm1(log_abar.diff())).tolist()


@dataclass(frozen=True)
class LossConfig:
    """The joint loss L = L_simple + lambda * L_u + beta * L_UAL."""

    uncertainty_weight: NonNegative = 1.0
    """Weight lambda of the uncertainty estimators' loss L_u, at least 0."""
    layerwise_weight: NonNegative = 1.0
    """Weight beta of the uncertainty-aware layer-wise loss L_UAL, at least 0."""
    ual_weighting: UalWeighting = "detached"
    """Layer weights in L_UAL: detached (the paper), normalized (its released code), uniform (BERxiT), index (CALM)."""
    alternating: bool = False
    """Add L_UAL only at every second optimizer step, as BERxiT does."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The AdamW optimizer, its learning-rate schedule, and the moving average of the weights."""

    lr: Positive = 2e-4
    """Learning rate at the end of the warm-up, above 0."""
    weight_decay: NonNegative = 0.03
    """AdamW's weight decay, at least 0."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """AdamW's betas: decay of the moving averages of the gradient and of its square, in [0, 1)."""
    warmup_steps: CountOrZero = 500
    """Number of optimizer steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant_with_warmup", "cosine"] = "cosine"
    """Learning rate after the warm-up: constant, or falling to 0 along a cosine."""
    max_grad_norm: PositiveOrInfinite = 1.0
    """Norm that gradients are clipped to; inf for no clipping."""
    ema_decay: BelowOne = 0.9995
    """Decay of the exponential moving average of the weights, in [0, 1); the saved model holds this average."""


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run.

    Examples:
        >>> config = TrainConfig(Path("runs/digits"), DataConfig(size=8, channels=1), batch_size=64, steps=200)
        >>> config.check()  # raises InputError if a value is out of range; `train(config)` starts the run
        >>> config.data.source, config.model.backbone.depth
        ('digits', 9)
    """

    out: Path
    """Folder of the run, for the model, its checkpoints, logs and sample pictures."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    steps: Count = 10_000
    """Number of optimizer steps."""
    condition_dropout: Fraction = 0.1
    """Probability of dropping an image's class or caption, in [0, 1]; classifier-free guidance needs it above 0."""
    batch_size: Count = 128
    """Number of images per optimizer step, summed over all processes and accumulated batches."""
    accumulate: Count = 1
    """Number of batches that each step's images are split into, to save memory; their gradients are accumulated."""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Precision of the layers' arithmetic; weights stay in float32. auto: bf16 if the device supports it, else no."""
    gradient_checkpointing: bool = False
    """Recompute layers in the backward pass, to save memory."""
    workers: Workers = 0
    """Number of processes that load images; 0 loads them in the training process."""
    seed: Seed = 0
    """Seed of weights, data order, noise, time steps and dropped conditions, at least 0."""
    init_from: Path | None = None
    """Model folder whose backbone is fine-tuned, with newly initialised exits; by default the backbone is new."""
    freeze_backbone: bool = False
    """Train only estimators and per-layer heads, so that the full model does not change."""
    resume: bool = False
    """Continue from the run's last checkpoint, or from the beginning if it has none yet."""
    max_bad_steps: Count = 1
    """Number of consecutive steps with a non-finite loss or gradient after which training stops; each is skipped."""
    checkpoint_every: Count = 1000
    """Number of optimizer steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Number of checkpoints to keep; older ones are deleted."""
    sample_every: CountOrZero = 2000
    """Number of optimizer steps between sample pictures; 0 for none."""
    log_every: Count = 50
    """Number of optimizer steps between TensorBoard entries."""

    def check(self) -> None:
        """Raise InputError if a value is out of range, or two values do not fit together."""
        check_ranges(self)
        self.model.own_condition()
        if self.diffusion.beta_start > self.diffusion.beta_end:
            raise InputError(
                f"diffusion.beta_start is {self.diffusion.beta_start}: it must be at most beta_end, "
                f"{self.diffusion.beta_end}"
            )
        if self.batch_size % self.accumulate:
            raise InputError(f"batch_size is {self.batch_size}: it must be a multiple of accumulate, {self.accumulate}")
