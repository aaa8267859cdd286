"""The training loop, on accelerate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, broadcast_object_list
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm

from adadiff.conditioning import Condition
from adadiff.data import LabelledData, open_data
from adadiff.sampling import AdaptivePipeline, Conditions
from adadiff.sampling.finite import NonFiniteImagesError
from adadiff.sampling.grid import image_grid
from adadiff.sampling.schedulers import scheduler_like
from adadiff.training.build import (
    build_condition,
    build_model,
    build_optimizer,
    example_conditions,
    native_precision,
)
from adadiff.training.checkpoints import last_sound_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from adadiff.training.config import TrainConfig
from adadiff.training.interruption import batches_of, ignore_stop_signals, stop_signals
from adadiff.training.objective import JointObjective, Objective
from adadiff.training.run_folder import TRAIN_CONFIG, check_run, describe_run, report_start, save_model
from adadiff.training.stream import TrainingStream
from adadiff.utils.errors import Diverged
from adadiff.utils.files import atomic_write, exclusive_folder, write_json
from adadiff.utils.processes import process_state
from adadiff.utils.seeding import generator_for


class Interrupted(Exception):  # noqa: N818 - like KeyboardInterrupt, not an error
    """The training run was stopped by a signal, after saving a checkpoint to resume from."""


def train(config: TrainConfig) -> None:
    """Train a model, or resume its training.

    The run's folder, `config.out`, becomes a pipeline folder that `AdaptivePipeline.from_pretrained` loads; its weights
    are the moving average of the trained weights.

    Args:
        config: The configuration of the run.

    Raises:
        InputError: If the data, the sizes, the output folder or the checkpoint do not fit.
        Interrupted: If stopped by SIGINT or SIGTERM, after a checkpoint.
        Diverged: If the loss or the gradients are not finite at `config.max_bad_steps` steps in a row.
    """
    config.check()
    state = process_state()
    if config.mixed_precision == "auto":
        config = dataclasses.replace(config, mixed_precision=native_precision(state.device))
    images = open_data(config.data, config.model.backbone.patch_size, config.model.reads)
    model, text_encoder = build_model(config, images)
    condition = build_condition(config, images, text_encoder)
    pipeline = AdaptivePipeline(model, config.diffusion.build(images.vae is not None), text_encoder, images.vae)
    with _open_folder(config, images, pipeline) if state.is_main_process else nullcontext() as checkpoint:
        checkpoint = broadcast_object_list([checkpoint])[0]  # only the main process opened the folder
        run = Run(config, images, condition, pipeline, checkpoint)
        run.train()
        run.finish()


@contextmanager
def _open_folder(config: TrainConfig, images: LabelledData, pipeline: AdaptivePipeline) -> Iterator[Path | None]:
    """Check the run, then lock its folder; yield the checkpoint to resume from, or None."""
    description = describe_run(config, images, pipeline)
    check_run(config, description)
    checkpoint, damaged = last_sound_checkpoint(config.out) if config.resume else (None, [])
    if config.data.on_error == "stop" and checkpoint is None:
        images.check()
    with exclusive_folder(config.out):
        check_run(config, description)
        write_json(config.out / TRAIN_CONFIG, description)
        report_start(config, images, checkpoint, damaged)
        yield checkpoint


class Run:
    """A training run as one process executes it, from its start or a checkpoint to the saved model.

    Args:
        config: The configuration of the run.
        images: The training data.
        condition: What the model is conditioned on.
        pipeline: The model to train, with its scheduler, text encoder and autoencoder.
        checkpoint: The checkpoint to resume from, or None to start from the beginning.
    """

    def __init__(
        self,
        config: TrainConfig,
        images: LabelledData,
        condition: Condition,
        pipeline: AdaptivePipeline,
        checkpoint: Path | None,
    ) -> None:
        self.config, self.pipeline = config, pipeline
        self.examples = example_conditions(config, pipeline.transformer, images)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.accumulate,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            log_with="tensorboard",
            project_config=ProjectConfiguration(project_dir=str(config.out), logging_dir=str(config.out / "logs")),
        )
        self.accelerator.wait_for_everyone()
        self.accelerator.init_trackers("tensorboard")
        encoder = pipeline.text_encoder
        trained_encoder = encoder if encoder is not None and not encoder.frozen else None
        self.trained = nn.ModuleList(filter(None, [pipeline.transformer, trained_encoder]))
        self.trainable = [parameter for parameter in self.trained.parameters() if parameter.requires_grad]
        optimizer, schedule = build_optimizer(config, self.trainable)
        self.objective, self.optimizer, self.schedule = self.accelerator.prepare(
            JointObjective(pipeline.transformer, pipeline.scheduler, config.loss, trained_encoder), optimizer, schedule
        )
        self.ema = EMAModel(
            self.trained.parameters(),
            decay=config.optimizer.ema_decay,
            use_ema_warmup=True,
            power=3 / 4,
            foreach=True,
        )
        self.step = 0 if checkpoint is None else load_checkpoint(self.accelerator, self.ema, checkpoint)
        self.bad_steps = 0  # in a row
        self.loader = self.accelerator.prepare(
            DataLoader(
                TrainingStream(images, config.seed, config.data.flip, condition, config.condition_dropout),
                batch_size=config.batch_size // config.accumulate,
                sampler=range(self.step * config.batch_size, config.steps * config.batch_size),
                num_workers=config.workers,
                worker_init_fn=ignore_stop_signals,
            )
        )

    def train(self) -> None:
        """Run the remaining optimizer steps, or stop early, after a checkpoint, if a stop signal arrives."""
        config, accelerator = self.config, self.accelerator
        progress = tqdm(total=config.steps, initial=self.step, desc="training", disable=not accelerator.is_main_process)
        with progress, stop_signals() as stop_requested, closing(batches_of(self.loader)) as batches:
            for batch in batches:
                result = self._learn_from(batch)
                if result is None:
                    continue
                progress.update()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    log(accelerator, result, self.schedule.get_last_lr()[0], self.step, progress)
                if stop_requested():
                    accelerator.set_trigger()
                stopping = accelerator.check_trigger()
                if config.sample_every and self.step % config.sample_every == 0 and accelerator.is_main_process:
                    with averaged_weights(self.ema, self.trained):
                        picture = config.out / "samples" / f"step-{self.step:08d}.png"
                        draw_samples(self.pipeline, self.examples, picture)
                if self.step % config.checkpoint_every == 0 or self.step == config.steps or stopping:
                    self._save_checkpoint()  # last, so that a run killed before it draws the picture again
                if stopping and self.step < config.steps:
                    break

    def finish(self) -> None:
        """Save the model; raise Interrupted if steps remain."""
        self.accelerator.end_training()
        if self.accelerator.is_main_process:
            with averaged_weights(self.ema, self.trained):
                save_model(self.pipeline, self.config.out)
                self.config.sampling.save(self.config.out)
        if self.step < self.config.steps:
            raise Interrupted(f"stopped and saved after step {self.step} of {self.config.steps}")

    def _learn_from(self, batch: dict[str, Tensor]) -> Objective | None:
        """Accumulate one batch's gradients; at the last batch of a step, update the weights and return the objective.

        Returns None at the other batches.
        """
        accelerator = self.accelerator
        with accelerator.accumulate(self.objective):
            with attention_backend(accelerator):
                result: Objective = self.objective(**batch, step=self.step)
            accelerator.backward(result.loss.total)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.trainable, self.config.optimizer.max_grad_norm)
                self._skip_if_not_finite(result.loss.total, norm)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        if not accelerator.sync_gradients:
            return None
        self.step += 1
        self.ema.step(self.trained.parameters())
        return result

    def _skip_if_not_finite(self, loss: Tensor, norm: Tensor) -> None:
        """Discard the gradients of a step whose loss or gradients are not finite; after too many, raise Diverged.

        With float16 only the loss is checked, because the gradient scaler handles overflowing gradients itself.
        """
        scaled = self.accelerator.scaler is not None
        finite = torch.isfinite(loss.detach()) & (scaled or torch.isfinite(norm))
        if self.accelerator.reduce(finite.float(), reduction="mean") == 1:
            self.bad_steps = 0
            return
        self.bad_steps += 1
        if self.bad_steps >= self.config.max_bad_steps:
            raise self._diverged("the loss or the gradients are", self.step + 1)
        tqdm.write(f"step {self.step + 1}: the loss or the gradients are not finite; skipping this step")
        if not scaled:
            self.optimizer.zero_grad()

    def _save_checkpoint(self) -> None:
        if not all(torch.isfinite(parameter).all() for parameter in self.trained.parameters()):
            raise self._diverged("the weights are", self.step)
        save_checkpoint(self.accelerator, self.ema, self.config.out, self.step, self.config.keep_checkpoints)

    def _diverged(self, what: str, step: int) -> Diverged:
        checkpoints = list_checkpoints(self.config.out)
        last = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        return Diverged(
            f"{what} not finite at step {step} of {self.config.steps}, so training stopped; {last}. Train again with a "
            f"smaller --optimizer.lr, or skip such steps: --resume --max-bad-steps 10"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Attention, logging, sample pictures


def attention_backend(accelerator: Accelerator) -> AbstractContextManager[Any]:
    """Select unfused attention for bfloat16 on a CPU, where the fused backward pass takes twice as long."""
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def log(accelerator: Accelerator, result: Objective, lr: float, step: int, progress: tqdm[Any]) -> None:
    """Log the losses and each layer's error and uncertainty to TensorBoard, and the losses to the progress bar."""
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
    """Replace the trained weights by their moving average within a `with` block, in evaluation mode."""
    ema.store(trained.parameters())
    ema.copy_to(trained.parameters())
    trained.eval()
    try:
        yield
    finally:
        ema.restore(trained.parameters())
        trained.train()


def draw_samples(pipeline: AdaptivePipeline, examples: Conditions, path: Path) -> None:
    """Write a grid of 16 images sampled with DDIM, always from the same noise; skip it if they are not finite."""
    sampler = pipeline.with_parts(scheduler=scheduler_like("ddim", pipeline.scheduler))
    sampler.set_progress_bar_config(disable=True)
    generators = [generator_for(0, k) for k in range(16)]
    try:
        images = sampler(batch_size=16, generator=generators, **examples.of(range(16))).images
    except NonFiniteImagesError as error:
        tqdm.write(f"sample picture {path.name} is not drawn: {error}")
        return
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as part:
        image_grid(images).save(part)
