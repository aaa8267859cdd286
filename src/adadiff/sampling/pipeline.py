"""The diffusers pipeline: any scheduler, every sample leaving on its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from adadiff.conditioning import TextEncoder, class_indices
from adadiff.errors import InputError, suggestion
from adadiff.exits import AdaptiveModel, AdaptiveOutput, ExitPolicy
from adadiff.exits.trace import Trace
from adadiff.files import model_folder, packaged_models, write_checksums
from adadiff.ranges import as_int
from adadiff.sampling.arguments import checked_generator, chosen_policy, label_list, text_list
from adadiff.sampling.finite import require_finite_images
from adadiff.sampling.guidance import Guidance
from adadiff.sampling.schedulers import noise_arguments, started, times_of
from adadiff.verified import require_finite, verify_parts

if TYPE_CHECKING:
    from adadiff.calibration import Calibration

DECODE_BATCH = 8


@dataclass
class AdaDiffPipelineOutput(BaseOutput):
    """What `AdaDiffPipeline` returns.

    Args:
        images: A list of PIL images, or with `output_type="pt"` a tensor (batch, channels, height, width) in [0, 1].
        trace: Which layer each sample left after, at every step.
    """

    images: Any
    trace: Trace


class AdaDiffPipeline(DiffusionPipeline):
    """Samples images with an adaptive model and a diffusers scheduler.

    Args:
        transformer: The denoiser.
        scheduler: Any diffusers scheduler for the variance-preserving forward process; the default one of a trained
            model is the one it was trained with.
        text_encoder: For a model that takes text.
        vae: For a model of latents.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "vae"]  # noqa: RUF012 - diffusers' own

    def __init__(
        self,
        transformer: AdaptiveModel,
        scheduler: SchedulerMixin,
        text_encoder: TextEncoder | None = None,
        vae: AutoencoderKL | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, text_encoder=text_encoder, vae=vae)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a model folder, as `save_pretrained` and the training make it, a packaged model by name, or a hub model.

        Raises:
            InputError: If there is no such model, or its files are damaged or do not fit together.
        """
        folder = model_folder(pretrained_model_name_or_path)
        if folder.exists():
            verify_parts(folder)
        try:
            pipeline = super().from_pretrained(folder, **kwargs)
        except InputError:
            raise
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            if folder.exists():
                reason = " ".join(str(error).split())
                raise InputError(f"{folder} cannot be loaded as a model: {reason}") from error
            raise InputError(
                f"there is no model folder {folder}, nor can a model of that name be fetched from the hub (in the "
                f"package: {suggestion(str(folder), packaged_models())})"
            ) from error
        for name, part in pipeline.components.items():
            if isinstance(part, torch.nn.Module):
                require_finite(part, f"{folder / name}")
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as diffusers pipelines are, with the checksums of each part's files beside them."""
        super().save_pretrained(save_directory, *args, **kwargs)
        for name, part in self.components.items():
            if part is not None:
                write_checksums(Path(save_directory, name))

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: int | str | Sequence[int | str] | NDArray[np.integer] | Tensor | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        tied_exits: bool = True,
        tau: float | Sequence[float] | None = None,
        policy: ExitPolicy | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_uncertainties: bool = False,
    ) -> AdaDiffPipelineOutput:
        """Sample.

        Args:
            batch_size: Number of images; by default as many as there are class labels or prompts, or 1.
            class_labels: Class of all images, or of each, where the model takes classes: a name (str) or an index
                (int).
            prompt: Text for all images, or one for each, where the model takes text.
            negative_prompt: What guidance leads away from, for all images or for each, in place of the empty prompt.
            num_inference_steps: Sampling steps. Heun's method, KDPM2 and PNDM evaluate the model more often; policies,
                the guidance interval and the trace go by evaluations.
            guidance_scale: Strength of classifier-free guidance, 1 for none; a U-ViT `scale` s is 1 + s here.
            guidance_interval: The steps that are guided, as fractions [start, end) of all the steps.
            tied_exits: Whether the conditional and the unconditional prediction of an image leave together.
            tau: Exit threshold in [0, 1], one or one per step: short for `policy=ThresholdExit(tau)`. Larger is
                faster and rougher; 0 is the full model.
            policy: When samples leave; by default never.
            generator: Source of the noise. With one per image, image k depends on generator k alone.
            output_type: `"pil"` or `"pt"`.
            return_uncertainties: Run every estimator, and keep what it says in the trace.

        Raises:
            InputError: If an argument is out of range or does not fit the model.
            NonFiniteImagesError: If an image came out NaN or infinite.
        """
        policy = chosen_policy(tau, policy)
        guidance = Guidance(guidance_scale, guidance_interval, tied_exits)
        size = None if batch_size is None else as_int(batch_size, "the batch size")
        labels = None if class_labels is None else label_list(class_labels, size)
        prompts = None if prompt is None else text_list(prompt, size)
        batch_size = size if size is not None else len(labels or prompts or [None])
        num_inference_steps = as_int(num_inference_steps, "the number of steps")
        self.check_inputs(batch_size, num_inference_steps, policy)
        if output_type not in ("pil", "pt"):
            raise InputError(f'the output type is {output_type!r}: it must be "pil" or "pt"')
        if output_type == "pil" and self.vae is None and self.transformer.backbone.in_channels not in (1, 3):
            raise InputError("the model makes latents, and its folder holds no autoencoder to decode them")
        generator = checked_generator(generator, batch_size)
        conditions = self.conditions(batch_size, labels, prompts)
        nothing = self.null_conditions(batch_size, negative_prompt) if guidance.scale > 1 else {}
        device = self._execution_device

        scheduler = started(self.scheduler, num_inference_steps, device)
        shape = (batch_size, self.transformer.backbone.in_channels, *self.transformer.backbone.sample_size)
        noise = randn_tensor(shape, generator=generator, device=device) * scheduler.init_noise_sigma
        predict = partial(self.transformer.trajectory(), policy=policy, return_uncertainties=return_uncertainties)
        sample, trace = self._denoise(noise, scheduler, predict, conditions, nothing, guidance, generator)

        decoded = self.decode(sample)
        require_finite_images(decoded)
        images: Any = (decoded / 2 + 0.5).clamp(0, 1)
        if output_type == "pil":
            images = self.numpy_to_pil(images.permute(0, 2, 3, 1).float().cpu().numpy())
        return AdaDiffPipelineOutput(images, trace)

    def _denoise(
        self,
        sample: Tensor,
        scheduler: SchedulerMixin,
        predict: Callable[..., AdaptiveOutput],
        conditions: dict[str, Tensor],
        nothing: dict[str, Tensor],
        guidance: Guidance,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> tuple[Tensor, Trace]:
        """From noise to what is decoded, (batch, channels, height, width), at every time of a started scheduler."""
        pairs = {name: torch.cat([conditions[name], nothing[name]]) for name in nothing}
        model, timesteps, steps = self.transformer, scheduler.timesteps, []
        noise = noise_arguments(scheduler, generator)
        for step, timestep in enumerate(self.progress_bar(timesteps)):
            guided = guidance.applies(step, len(timesteps))
            noisy = scheduler.scale_model_input(sample, timestep).to(model.dtype)
            output = predict(
                torch.cat([noisy, noisy]) if guided else noisy,
                timestep,
                **(pairs if guided else conditions),
                step=step,
                tied_halves=guided and guidance.tied,
            )
            prediction = guidance.combine(*output.sample.chunk(2)) if guided else output.sample
            sample = scheduler.step(prediction.to(sample.dtype), timestep, sample, **noise).prev_sample
            steps.append(_trace_of_step(output, guided))

        trace = Trace(
            **{name: torch.stack([step[name] for step in steps]) for name in steps[0]},
            depth=model.depth,
            full_flops=model.part_flops.full,
            timesteps=tuple(timesteps.tolist()),
        )
        return sample, trace

    def calibrate(
        self,
        compute: float | None = None,
        error: float | None = None,
        speedup: float | None = None,
        confidence: float = 0.95,
        num_inference_steps: int = 50,
        **options: Any,
    ) -> Calibration:
        """Find the exit policy for a budget, a bound on the error or a speedup: `adadiff.calibration.calibrate`.

        Args:
            compute: Spend this fraction of the full model's FLOPs, in (0, 1).
            error: Keep the mean difference from the full model's images below this, in (0, 1).
            speedup: Be so many times as fast as the full model, above 1.
            confidence: Of the bound on the error, in (0, 1).
            num_inference_steps: Sampling steps.
            options: `conditions`, `samples`, `metric`, ... of `calibrate`.

        Returns:
            What was found: its `policy` is for `pipe(..., policy=...)`, and `save(folder)` keeps it with the model.

        Raises:
            InputError: If the goal makes no sense or cannot be met.
        """
        from adadiff.calibration import Goal, calibrate  # which samples with pipelines

        return calibrate(self, Goal(compute, error, speedup, confidence), num_inference_steps, **options)

    def with_parts(self, **parts: Any) -> Self:
        """The same pipeline with other parts: `transformer`, `scheduler`, `text_encoder` or `vae`."""
        return type(self)(**{**self.components, **parts})

    def check_inputs(self, batch_size: int, num_inference_steps: int, policy: ExitPolicy) -> None:
        """Raise InputError where arguments of a call, or the scheduler, do not fit the model."""
        if batch_size < 1:
            raise InputError(f"the batch size is {batch_size}: it must be at least 1")
        evaluations = len(times_of(self.scheduler, num_inference_steps))
        try:
            policy.check(self.transformer.depth, evaluations)
        except InputError as error:
            if evaluations == num_inference_steps:
                raise
            raise InputError(
                f"{error} ({type(self.scheduler).__name__} evaluates the model {evaluations} times in "
                f"{num_inference_steps} steps, and each is one for the policy)"
            ) from error

    def conditions(
        self, batch_size: int, class_labels: Sequence[int | str] | None, prompts: Sequence[str] | None
    ) -> dict[str, Tensor]:
        """The keyword arguments by which the model knows what each image shall show.

        Raises:
            InputError: If it is not what the model takes, or there is no such class.
        """
        backbone, config = self.transformer.backbone, self.transformer.config
        for kind, given, takes in (
            ("class label", class_labels, backbone.num_classes is not None),
            ("prompt", prompts, backbone.context_shape is not None),
        ):
            if given is not None and not takes:
                raise InputError(f"the model takes no {kind}s: leave them out")
            if takes and (given is None or len(given) != batch_size):
                raise InputError(f"the model needs a {kind} for each of the {batch_size} images")
        indices = None
        if class_labels is not None:
            indices = class_indices(class_labels, backbone.num_classes, config.class_names, config.null_class)
        return self._condition_tensors(indices, prompts)

    def _condition_tensors(self, indices: Sequence[int] | None, prompts: Sequence[str] | None) -> dict[str, Tensor]:
        conditions = {}
        if indices is not None:
            conditions["class_labels"] = torch.tensor(indices, device=self._execution_device)
        if prompts is not None:
            if self.text_encoder is None:
                raise InputError("the model takes text, but its folder holds no text encoder")
            different = list(dict.fromkeys(prompts))
            features = self.text_encoder.encode(different).to(self.transformer.dtype)
            conditions["encoder_hidden_states"] = features[[different.index(prompt) for prompt in prompts]]
        return conditions

    def null_conditions(self, batch_size: int, negative_prompt: str | Sequence[str] | None = None) -> dict[str, Tensor]:
        """The keyword arguments of the unconditional half of guidance.

        Raises:
            InputError: If the model was not trained without its condition.
        """
        null_class, backbone = self.transformer.config.null_class, self.transformer.backbone
        if backbone.num_classes is not None and null_class is None:
            raise InputError("the model has no null class to guide away from: leave the guidance scale at 1")
        prompts = text_list("" if negative_prompt is None else negative_prompt, batch_size)
        if len(prompts) != batch_size:
            raise InputError(
                f"there are {len(prompts)} negative prompts for {batch_size} images: give one, or one each"
            )
        takes_classes, takes_text = backbone.num_classes is not None, backbone.context_shape is not None
        if any(prompts) and not takes_text:
            raise InputError("the model takes no prompts: leave the negative prompt out")
        if not takes_classes and not takes_text:
            raise InputError("the model takes neither classes nor prompts: leave the guidance scale at 1")
        return self._condition_tensors(
            [null_class] * batch_size if takes_classes else None, prompts if takes_text else None
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images, decoded."""
        backbone = self.transformer.backbone
        if self.vae is None:
            return (backbone.in_channels, *backbone.sample_size)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        height, width = backbone.sample_size
        return (self.vae.config.out_channels, factor * height, factor * width)

    def decode(self, sample: Tensor) -> Tensor:
        """Images in [-1, 1] from what the model denoises: themselves, or latents, decoded a few at a time."""
        if self.vae is None:
            return sample
        latents = (sample / self.vae.config.scaling_factor).to(self.vae.dtype)
        return torch.cat([self.vae.decode(few).sample for few in latents.split(DECODE_BATCH)])


def _trace_of_step(output: AdaptiveOutput, guided: bool) -> dict[str, Tensor]:
    """The trace's tensors for one step; with guidance, the output's batch is conditional and unconditional halves."""
    halves = 2 if guided else 1
    exit_layers, uncertainties = output.exit_layers.chunk(halves), output.uncertainties.chunk(halves)
    return {
        "exit_layers": exit_layers[0],
        "uncertainties": uncertainties[0],
        "unconditional_exit_layers": exit_layers[1] if guided else torch.zeros_like(exit_layers[0]),
        "unconditional_uncertainties": uncertainties[1] if guided else torch.full_like(uncertainties[0], torch.nan),
        "flops": output.flops.unflatten(0, (halves, -1)).sum(0),
    }
