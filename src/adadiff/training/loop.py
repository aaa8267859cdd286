"""The training loop, on accelerate."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm

from adadiff.conditioning import ClassCondition, Condition, FeatureCondition, TextEncoder, TokenCondition, Unconditional
from adadiff.data import LabelledData, cache_folder, open_data
from adadiff.errors import InputError
from adadiff.exits import AdaptiveModel
from adadiff.files import require_empty_folder, whole_file, whole_folder
from adadiff.sampling import AdaDiffPipeline, Conditions
from adadiff.sampling.grid import image_grid
from adadiff.sampling.schedulers import scheduler_like
from adadiff.seeding import generator_for
from adadiff.training.checkpoints import load_last_checkpoint, save_checkpoint
from adadiff.training.config import TrainConfig
from adadiff.training.objective import JointObjective, Objective
from adadiff.training.stream import TrainingStream

TRAIN_CONFIG = "train.json"
MAY_CHANGE_ON_RESUME = (
    *("out", "resume", "steps", "workers", "sampling"),
    *("checkpoint_every", "keep_checkpoints", "sample_every", "log_every"),
)


class Interrupted(Exception):  # noqa: N818 - like KeyboardInterrupt, not an error
    """The training was asked to stop, and has saved all it needs to go on."""


def train(config: TrainConfig) -> None:
    """Train a model, or go on training it.

    The run's folder, `config.out`, becomes a pipeline folder that `AdaDiffPipeline.from_pretrained` loads; the model
    in it is the moving average of the weights.

    Args:
        config: The whole training.

    Raises:
        InputError: If the data, the sizes, the output folder or the checkpoint do not fit.
        Interrupted: If stopped by SIGINT or SIGTERM, after a checkpoint.
    """
    config.check()
    if config.mixed_precision == "auto":
        config = dataclasses.replace(config, mixed_precision=native_precision(PartialState().device))
    images = open_data(config.data, config.model.patch_size, config.model.condition)
    model, text_encoder = build_model(config, images)
    condition = build_condition(config, images, text_encoder)
    trained_encoder = text_encoder if text_encoder is not None and not text_encoder.frozen else None
    trained = nn.ModuleList([model] if trained_encoder is None else [model, trained_encoder])
    if config.data.on_error == "stop" and not config.resume:
        images.check()
    scheduler = config.diffusion.build(in_latents=images.vae is not None)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(config.out), logging_dir=str(config.out / "logs")),
    )
    if accelerator.is_main_process:
        open_run(config)
        for line in images.describe():
            tqdm.write(line)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("tensorboard")

    trainable = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        trainable, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    schedule = get_scheduler(
        settings.schedule, optimizer, num_warmup_steps=settings.warmup_steps, num_training_steps=config.steps
    )
    objective, optimizer, schedule = accelerator.prepare(
        JointObjective(model, scheduler, config.loss, trained_encoder), optimizer, schedule
    )
    ema = EMAModel(trained.parameters(), decay=settings.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
    step = load_last_checkpoint(accelerator, ema, config.out) if config.resume else 0

    loader = accelerator.prepare(
        DataLoader(
            TrainingStream(images, config.seed, config.data.flip, condition, config.condition_dropout),
            batch_size=config.batch_size // config.accumulate,
            sampler=range(step * config.batch_size, config.steps * config.batch_size),
            num_workers=config.workers,
        )
    )
    pipeline = AdaDiffPipeline(model, scheduler, text_encoder, images.vae)
    examples = example_conditions(config, model, images)
    progress = tqdm(total=config.steps, initial=step, desc="training", disable=not accelerator.is_main_process)
    with progress, stop_signals() as stop_asked:
        for batch in loader:
            with accelerator.accumulate(objective):
                with attention_backend(accelerator):
                    result: Objective = objective(**batch, step=step)
                accelerator.backward(result.loss.total)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(trainable, settings.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            step += 1
            ema.step(trained.parameters())
            progress.update()
            if step % config.log_every == 0 or step == config.steps:
                log(accelerator, result, schedule.get_last_lr()[0], step, progress)
            if stop_asked():
                accelerator.set_trigger()
            stopping = accelerator.check_trigger()
            if step % config.checkpoint_every == 0 or step == config.steps or stopping:
                save_checkpoint(accelerator, ema, config.out, step, config.keep_checkpoints)
            if config.sample_every and step % config.sample_every == 0 and accelerator.is_main_process:
                with averaged_weights(ema, trained):
                    draw_samples(pipeline, examples, config.out / "samples" / f"step-{step:08d}.png")
            if stopping and step < config.steps:
                break
    accelerator.end_training()
    if accelerator.is_main_process:
        with averaged_weights(ema, trained):
            save_model(pipeline, config.out)
            config.sampling.save(config.out)
    if step < config.steps:
        raise Interrupted(f"stopped and saved after step {step} of {config.steps}")


# ---------------------------------------------------------------------------------------------------------------------
# Before: arithmetic, the run's folder, the model


def native_precision(device: torch.device) -> Literal["no", "bf16"]:
    """bf16 where the device has instructions for it; a CPU without emulates it, tens of times slower than float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
        return "bf16" if any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16")) else "no"
    return "no"


def open_run(config: TrainConfig) -> None:
    """Make the run's folder and write the configuration there; when resuming, check that it is the same.

    Raises:
        InputError: If the folder holds something else, or the run to resume was another.
    """
    resolved = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    path = config.out / TRAIN_CONFIG
    if config.resume:
        if not path.is_file():
            raise InputError(f"{config.out} holds no run to resume: start without --resume, or choose another --out")
        earlier = json.loads(path.read_text())
        for name, value in resolved.items():
            if name not in MAY_CHANGE_ON_RESUME and earlier.get(name) != value:
                raise InputError(
                    f"{config.out} was trained with {name} = {earlier.get(name)}, not {value}: resume with the same, "
                    f"or choose another --out"
                )
    else:
        try:
            require_empty_folder(config.out)
        except InputError as error:
            raise InputError(f"{error}; --resume goes on with the run in it") from None
    config.out.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(json.dumps(resolved, indent=2) + "\n")


def build_model(config: TrainConfig, images: LabelledData) -> tuple[AdaptiveModel, TextEncoder | None]:
    """The model to train, new or with a trained backbone, frozen where asked; and the text encoder, if it takes text.

    Raises:
        InputError: If the trained backbone is missing, of another size, or for latents of another autoencoder.
    """
    torch.manual_seed(config.seed)
    text_encoder = config.model.build_text_encoder()
    context_shape = None if text_encoder is None else text_encoder.shape
    model = config.model.build(images.shape, config.diffusion.network_time(), images.class_names, context_shape)
    if config.init_from is not None:
        source = AdaDiffPipeline.from_pretrained(config.init_from)
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
    """What the model is told of each image.

    Raises:
        InputError: If the data lack it, or have labels outside the class table.
    """
    if config.model.condition == "class":
        size, null_class = config.model.class_table(images.class_names)
        if null_class is None and config.condition_dropout > 0:
            raise InputError(
                f"a table of {size} classes has no room for a null class: set --condition-dropout 0, or "
                f"--model.num-classes {size + 1}"
            )
        return ClassCondition(images.labels(), size, null_class)
    if text_encoder is None:
        return Unconditional()
    captions = images.captions()
    if not text_encoder.frozen:
        return TokenCondition(text_encoder)
    state = PartialState()
    with state.main_process_first():
        return FeatureCondition(text_encoder.to(state.device), captions, cache_folder())


def example_conditions(config: TrainConfig, model: AdaptiveModel, images: LabelledData) -> Conditions:
    """What the sample pictures show: all classes, or the first captions."""
    captions = tuple(dict.fromkeys(images.captions()))[:16] if config.model.condition == "text" else ()
    return Conditions(model.class_indices, captions)


# ---------------------------------------------------------------------------------------------------------------------
# During: attention, signals, logs, pictures


def attention_backend(accelerator: Accelerator) -> AbstractContextManager[Any]:
    """Plain attention for bfloat16 on a CPU, where the fused one's backward pass takes twice as long."""
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


@contextmanager
def stop_signals() -> Iterator[Any]:
    """Turn SIGINT and SIGTERM into a question: was the training asked to stop? A second one stops at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log(accelerator: Accelerator, result: Objective, lr: float, step: int, progress: tqdm[Any]) -> None:
    """Write the losses, and each layer's error and uncertainty, to TensorBoard and the progress bar."""
    terms = vars(result.loss)
    values = torch.stack([*terms.values(), *result.layer_errors, *result.layer_uncertainties]).detach()
    means = accelerator.reduce(values, reduction="mean").tolist()
    layers = range(1, len(result.layer_errors) + 1)
    names = [
        *(f"loss/{name}" for name in terms),
        *(f"error/layer {i}" for i in layers),
        *(f"uncertainty/layer {i}" for i in layers),
    ]
    scalars = dict(zip(names, means, strict=True))
    accelerator.log({**scalars, "lr": lr}, step=step)
    progress.set_postfix(loss=f"{scalars['loss/total']:.4f}", simple=f"{scalars['loss/simple']:.4f}", refresh=False)


@contextmanager
def averaged_weights(ema: EMAModel, trained: nn.Module) -> Iterator[None]:
    """What is trained with the moving average of its weights, for a while."""
    ema.store(trained.parameters())
    ema.copy_to(trained.parameters())
    trained.eval()
    try:
        yield
    finally:
        ema.restore(trained.parameters())
        trained.train()


def draw_samples(pipeline: AdaDiffPipeline, examples: Conditions, path: Path) -> None:
    """Write a grid of 16 images by 50 DDIM steps, always from the same noise."""
    sampler = pipeline.with_parts(scheduler=scheduler_like("ddim", pipeline.scheduler))
    sampler.set_progress_bar_config(disable=True)
    images = sampler(batch_size=16, generator=[generator_for(0, k) for k in range(16)], **examples.of(range(16))).images
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as part:
        image_grid(images).save(part)


# ---------------------------------------------------------------------------------------------------------------------
# After


def save_model(pipeline: AdaDiffPipeline, run: Path) -> None:
    """Write the pipeline's parts into the run's folder, each whole."""
    staging = run / ".model"
    with whole_folder(staging) as part:
        pipeline.save_pretrained(part)
    for entry in staging.iterdir():
        if entry.is_dir():
            shutil.rmtree(run / entry.name, ignore_errors=True)
        entry.replace(run / entry.name)
    staging.rmdir()
