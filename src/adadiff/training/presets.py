"""Presets: complete training configurations by name, small ones for a CPU and those of the papers.

The papers' values are those of the released configurations, `configs/*.py` of U-ViT (github.com/baofff/U-ViT) and of
AdaDiff (github.com/Tangshengku/AdaDiff). Their depth excludes the middle layer, and their guidance scale 0 means no
guidance; here depth counts all layers, and scale 1 means no guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from adadiff.backbones import UViTConfig
from adadiff.data import DataConfig
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.training.config import DiffusionConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig


@dataclass(frozen=True)
class Preset:
    """A training configuration, with the shapes of its data, which are needed before the data are loaded.

    Args:
        train: The training configuration.
        description: A one-line description for the command line's help.
        shape: Channels, height and width of the images or latents.
        context_shape: Length and width of the text features, if the model takes text.
    """

    train: TrainConfig
    description: str
    shape: tuple[int, int, int]
    context_shape: tuple[int, int] | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Small ones

COSINE_VELOCITY = DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
SMALL_OPTIMIZER = OptimizerConfig(lr=1e-3, warmup_steps=300, ema_decay=0.999)

DIGITS = TrainConfig(
    out=Path("runs/digits"),
    data=DataConfig(source="digits", size=8, channels=1, flip=False),
    model=ModelConfig(UViTConfig(patch_size=2, width=64, depth=17, num_heads=4)),
    diffusion=COSINE_VELOCITY,
    loss=LossConfig(layerwise_weight=4.0),
    optimizer=replace(SMALL_OPTIMIZER, warmup_steps=200),
    sampling=SamplingDefaults(tau=0.38, min_layer=9),
    steps=8_000,
    batch_size=64,
    mixed_precision="auto",
)

CIFAR10_XS = TrainConfig(
    out=Path("runs/cifar10-xs"),
    data=DataConfig(source="uoft-cs/cifar10", image_column="img"),
    diffusion=COSINE_VELOCITY,
    optimizer=SMALL_OPTIMIZER,
    steps=10_000,
    batch_size=32,
    mixed_precision="auto",
    sample_every=2500,
)

CIFAR10_CLASS_XS = replace(
    CIFAR10_XS,
    out=Path("runs/cifar10-class-xs"),
    model=ModelConfig(condition="class"),
    loss=LossConfig(layerwise_weight=0.3),
    optimizer=replace(SMALL_OPTIMIZER, lr=2e-3, betas=(0.9, 0.99)),
    sampling=SamplingDefaults(scheduler="dpm-solver++", steps=20, tau=0.26, min_layer=5, guidance_scale=6.0),
    batch_size=16,
    steps=22_000,
)

EMOJI_TEXT_XS = replace(
    CIFAR10_XS,
    out=Path("runs/emoji-text-xs"),
    data=DataConfig(source="./emoji.parquet", flip=False),
    model=ModelConfig(UViTConfig(depth=7), condition="text"),
    loss=CIFAR10_CLASS_XS.loss,
    optimizer=CIFAR10_CLASS_XS.optimizer,
    sampling=SamplingDefaults(scheduler="dpm-solver++", steps=20, guidance_scale=2.0),
    batch_size=16,
    steps=16_000,
    sample_every=1000,
)

IMAGES = TrainConfig(
    out=Path("runs/images"),
    data=DataConfig(source="./images", size=64),
    model=ModelConfig(UViTConfig(patch_size=4, width=384, depth=13, num_heads=6)),
    steps=100_000,
    batch_size=128,
    mixed_precision="auto",
)

# ---------------------------------------------------------------------------------------------------------------------
# The papers' networks and forward processes, and settings that their configurations share

UVIT_S = UViTConfig(patch_size=2, width=512, depth=13, num_heads=8)
UVIT_M = UViTConfig(patch_size=4, width=768, depth=17, num_heads=12)
UVIT_L = UViTConfig(patch_size=2, width=1024, depth=21, num_heads=16)
UVIT_H = replace(UVIT_L, width=1152, depth=29, final_conv=False)

SDE = DiffusionConfig(beta_schedule="vp_sde")
"""The VP SDE with beta from 0.1 to 20, whose network embeds 999 t: `sde.py` of the U-ViT release."""

STABLE_DIFFUSION = DiffusionConfig(
    beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.0120, count_from_one=True
)
"""Stable Diffusion's 1,000 steps, numbered from 1: `train_ldm_discrete.py` and `train_t2i_discrete.py` of U-ViT."""

EULER_MARUYAMA = SamplingDefaults(scheduler="ddpm", steps=1000)
DPM_SOLVER = SamplingDefaults(scheduler="dpm-solver++", steps=50)


def _adamw(lr: float, betas: tuple[float, float], warmup_steps: int = 5000) -> OptimizerConfig:
    """Return the optimizer settings of U-ViT's `train.py`.

    Constant learning rate after the warm-up, weight decay 0.03, no clipping, weights averaged with decay 0.9999.
    """
    return OptimizerConfig(
        lr=lr,
        weight_decay=0.03,
        betas=betas,
        warmup_steps=warmup_steps,
        schedule="constant_with_warmup",
        max_grad_norm=math.inf,
        ema_decay=0.9999,
    )


def _by_class(backbone: UViTConfig, num_classes: int) -> ModelConfig:
    return ModelConfig(backbone, condition="class", num_classes=num_classes)


def _released(name: str, data: DataConfig, model: ModelConfig, diffusion: DiffusionConfig) -> TrainConfig:
    return TrainConfig(
        out=Path("runs", name),
        data=data,
        model=model,
        diffusion=diffusion,
        optimizer=_adamw(2e-4, (0.99, 0.99)),
        steps=300_000,
        batch_size=1024,
        mixed_precision="auto",
        gradient_checkpointing=model.backbone.width >= UVIT_M.width,
        workers=8,
        checkpoint_every=5_000,
        sample_every=5_000,
        log_every=100,
    )


# CIFAR-10: configs/cifar10_uvit_small.py and eval_cifar.sh of AdaDiff; configs/cifar10_uvit.py of U-ViT
CIFAR10_UVIT_S = replace(
    _released("cifar10-uvit-s", DataConfig(source="uoft-cs/cifar10", image_column="img"), ModelConfig(UVIT_S), SDE),
    optimizer=_adamw(4e-4, (0.99, 0.999), warmup_steps=2500),
    steps=200_000,
    batch_size=512,
    sampling=replace(EULER_MARUYAMA, tau=0.08),
)
CIFAR10_UVIT_S_SCRATCH = replace(
    CIFAR10_UVIT_S,
    out=Path("runs/cifar10-uvit-s-scratch"),
    optimizer=_adamw(2e-4, (0.99, 0.999), warmup_steps=2500),
    steps=500_000,
    batch_size=128,
)

# CelebA: configs/celeba64_uvit_small.py and eval_celeba.sh of AdaDiff; configs/celeba64_uvit.py of U-ViT
CELEBA64_UVIT_S = replace(
    _released(
        "celeba64-uvit-s",
        DataConfig(source="flwrlabs/celeba", size=64),
        ModelConfig(replace(UVIT_S, patch_size=4)),
        SDE,
    ),
    optimizer=_adamw(8e-4, (0.99, 0.99)),
    steps=200_000,
    sampling=replace(EULER_MARUYAMA, tau=0.05),
)
CELEBA64_UVIT_S_SCRATCH = replace(
    CELEBA64_UVIT_S,
    out=Path("runs/celeba64-uvit-s-scratch"),
    optimizer=_adamw(2e-4, (0.99, 0.99)),
    steps=500_000,
    batch_size=128,
)

# ImageNet 64: configs/imagenet64_uvit_{mid,large}.py of U-ViT
IMAGENET64_UVIT_M = replace(
    _released(
        "imagenet64-uvit-m", DataConfig(source="ILSVRC/imagenet-1k", size=64), _by_class(UVIT_M, num_classes=1000), SDE
    ),
    optimizer=_adamw(3e-4, (0.99, 0.99)),
    condition_dropout=0.0,
    sampling=DPM_SOLVER,
)
IMAGENET64_UVIT_L = replace(
    IMAGENET64_UVIT_M,
    out=Path("runs/imagenet64-uvit-l"),
    model=_by_class(replace(UVIT_L, patch_size=4), num_classes=1000),
)

# ImageNet 256 and 512 in latents: configs/imagenet{256,512}_uvit*.py of U-ViT, imagenet256_uvit_large.py of AdaDiff
IMAGENET256_UVIT_L = replace(
    _released(
        "imagenet256-uvit-l",
        DataConfig(source="./imagenet256-latents", size=256),
        _by_class(UVIT_L, num_classes=1001),
        SDE,
    ),
    condition_dropout=0.15,
    sampling=replace(DPM_SOLVER, tau=0.08, guidance_scale=1.4),
)
IMAGENET512_UVIT_L = replace(
    _released(
        "imagenet512-uvit-l",
        DataConfig(source="./imagenet512-latents", size=512),
        _by_class(replace(UVIT_L, patch_size=4), num_classes=1001),
        SDE,
    ),
    steps=500_000,
    condition_dropout=0.15,
    sampling=replace(DPM_SOLVER, guidance_scale=1.7),
)
IMAGENET256_UVIT_H = replace(
    _released("imagenet256-uvit-h", IMAGENET256_UVIT_L.data, _by_class(UVIT_H, num_classes=1001), STABLE_DIFFUSION),
    steps=500_000,
    condition_dropout=0.1,
    sampling=replace(DPM_SOLVER, guidance_scale=1.4),
)
IMAGENET512_UVIT_H = replace(
    _released(
        "imagenet512-uvit-h",
        IMAGENET512_UVIT_L.data,
        _by_class(replace(UVIT_H, patch_size=4), num_classes=1001),
        STABLE_DIFFUSION,
    ),
    steps=500_000,
    condition_dropout=0.1,
    sampling=replace(DPM_SOLVER, guidance_scale=1.7),
)

# MS-COCO in latents: configs/mscoco_uvit.py of U-ViT, configs/mscoco_uvit_small.py and eval_coco.sh of AdaDiff
MSCOCO256_UVIT_S = replace(
    _released(
        "mscoco256-uvit-s",
        DataConfig(source="./mscoco256-latents", size=256),
        ModelConfig(UVIT_S, condition="text", text_encoder="openai/clip-vit-large-patch14"),
        STABLE_DIFFUSION,
    ),
    optimizer=_adamw(2e-4, (0.9, 0.9)),
    steps=1_000_000,
    batch_size=256,
    condition_dropout=0.1,
    sampling=replace(DPM_SOLVER, tau=0.13, guidance_scale=2.0),
)
MSCOCO256_UVIT_S_DEEP = replace(
    MSCOCO256_UVIT_S,
    out=Path("runs/mscoco256-uvit-s-deep"),
    model=replace(MSCOCO256_UVIT_S.model, backbone=replace(UVIT_S, depth=17)),
)

# ---------------------------------------------------------------------------------------------------------------------
# By name

_LATENTS_256, _LATENTS_512, _CLIP = (4, 32, 32), (4, 64, 64), (77, 768)

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        DIGITS, "scikit-learn's digits, 8x8 grey: 28 minutes on one CPU core that has bfloat16", (1, 8, 8)
    ),
    "cifar10-xs": Preset(CIFAR10_XS, "CIFAR-10, 32x32: 100 minutes on one CPU core that has bfloat16", (3, 32, 32)),
    "cifar10-class-xs": Preset(
        CIFAR10_CLASS_XS, "CIFAR-10 by class, 32x32: 2 hours on one CPU core that has bfloat16", (3, 32, 32)
    ),
    "emoji-text-xs": Preset(
        EMOJI_TEXT_XS, "emoji from their names, 32x32, with a trained text encoder", (3, 32, 32), (12, 192)
    ),
    "images": Preset(IMAGES, "your own folder of images, 64x64: for a GPU, or make it smaller", (3, 64, 64)),
    "cifar10-uvit-s": Preset(
        CIFAR10_UVIT_S, "the paper's fine-tuning of U-ViT-S/2 on CIFAR-10 (--init-from the backbone)", (3, 32, 32)
    ),
    "cifar10-uvit-s-scratch": Preset(CIFAR10_UVIT_S_SCRATCH, "U-ViT-S/2 on CIFAR-10 from scratch", (3, 32, 32)),
    "celeba64-uvit-s": Preset(
        CELEBA64_UVIT_S, "the paper's fine-tuning of U-ViT-S/4 on CelebA (--init-from the backbone)", (3, 64, 64)
    ),
    "celeba64-uvit-s-scratch": Preset(CELEBA64_UVIT_S_SCRATCH, "U-ViT-S/4 on CelebA from scratch", (3, 64, 64)),
    "imagenet64-uvit-m": Preset(IMAGENET64_UVIT_M, "U-ViT-M/4 on ImageNet, 64x64", (3, 64, 64)),
    "imagenet64-uvit-l": Preset(IMAGENET64_UVIT_L, "U-ViT-L/4 on ImageNet, 64x64", (3, 64, 64)),
    "imagenet256-uvit-l": Preset(
        IMAGENET256_UVIT_L, "the paper's U-ViT-L/2 on ImageNet latents, 256x256", _LATENTS_256
    ),
    "imagenet512-uvit-l": Preset(IMAGENET512_UVIT_L, "U-ViT-L/4 on ImageNet latents, 512x512", _LATENTS_512),
    "imagenet256-uvit-h": Preset(IMAGENET256_UVIT_H, "U-ViT-H/2 on ImageNet latents, 256x256", _LATENTS_256),
    "imagenet512-uvit-h": Preset(IMAGENET512_UVIT_H, "U-ViT-H/4 on ImageNet latents, 512x512", _LATENTS_512),
    "mscoco256-uvit-s": Preset(
        MSCOCO256_UVIT_S, "the paper's U-ViT-S/2 on MS-COCO latents and captions, 256x256", _LATENTS_256, _CLIP
    ),
    "mscoco256-uvit-s-deep": Preset(
        MSCOCO256_UVIT_S_DEEP, "U-ViT-S/2 with 17 layers on MS-COCO latents and captions, 256x256", _LATENTS_256, _CLIP
    ),
}
