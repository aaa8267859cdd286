"""The diffusers pipeline: any scheduler, every sample leaving on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from adadiff.conditioning import class_indices
from adadiff.policies import ExitPolicy
from adadiff.runtime.trace import Trace
from adadiff.sampling.arguments import (
    CALLBACK_TENSORS,
    StepCallback,
    checked_count,
    checked_generator,
    checked_latents,
    checked_output_type,
    listed,
    repeated,
    text_list,
)
from adadiff.sampling.denoising import Denoising
from adadiff.sampling.finite import require_finite_images
from adadiff.sampling.guidance import Guidance
from adadiff.sampling.parts import ModelParts
from adadiff.sampling.plan import PlanContext, SamplingPlan
from adadiff.sampling.schedulers import scheduler_like, scheduler_name, started, times_of
from adadiff.utils.errors import InputError

DECODE_BATCH = 8


@dataclass
class AdaDiffPipelineOutput(BaseOutput):
    """What `AdaptivePipeline` returns.

    Args:
        images: By `output_type` a list of PIL images; an array (images, height, width, channels) or a tensor (images,
            channels, height, width) in [0, 1]; or what the model denoised, undecoded, shaped like that tensor.
        trace: Which layer each sample left after, at every step.
    """

    images: Any
    trace: Trace


class AdaptivePipeline(ModelParts):
    """Samples images with an adaptive model and a diffusers scheduler; `adadiff.AdaDiffPipeline` also calibrates.

    Loaded from a folder it samples as the folder says (`own_settings`): with its scheduler, steps, guidance scale and
    exit policy. Built from its parts it runs all layers in 50 steps unless a call says otherwise.

    Args:
        transformer: The denoiser.
        scheduler: Any diffusers scheduler for the variance-preserving forward process.
        text_encoder: For a model that takes text.
        vae: For a model of latents.
    """

    _callback_tensor_inputs = list(CALLBACK_TENSORS)  # noqa: RUF012 - diffusers' own
    _interrupt = False

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CALLBACK_TENSORS,
        class_labels: int | str | Sequence[int | str] | NDArray[np.integer] | Tensor | None = None,
        batch_size: int | None = None,
        guidance_interval: tuple[float, float] | None = None,
        tied_exits: bool | None = None,
        guidance: Guidance | None = None,
        tau: float | Sequence[float] | None = None,
        policy: ExitPolicy | None = None,
        return_uncertainties: bool = False,
    ) -> AdaDiffPipelineOutput | Any:
        """Sample images.

        Args:
            prompt: Text, or a list of texts, where the model takes text.
            num_inference_steps: Sampling steps; by default the folder's, or 50. Heun's method, KDPM2 and PNDM evaluate
                the model more often; policies, the guidance interval, the callback and the trace go by evaluations.
            guidance_scale: Strength of classifier-free guidance, 1 for none; by default the folder's, or 1. A U-ViT
                `scale` s is 1 + s here.
            negative_prompt: What guidance leads away from, for all prompts or for each, in place of the empty prompt.
            num_images_per_prompt: Images m of each prompt or class label: those of the j-th are images j * m to
                j * m + m - 1.
            generator: Source of the noise. With a list of one per image, image k depends on generator k alone.
            latents: Noise to start from, in place of the generator's: standard normal, (images, channels, height,
                width) of what the model denoises.
            output_type: `"pil"`, `"np"`, `"pt"`, or `"latent"` for what the model denoised, undecoded.
            return_dict: Whether to return an `AdaDiffPipelineOutput` or a tuple of its fields.
            callback_on_step_end: Called after each step as `callback(pipe, step, timestep, tensors)`; it returns a
                dict, whose "latents", if any, replace those. Setting `pipe.interrupt` to True there skips the remaining
                steps.
            callback_on_step_end_tensor_inputs: Names of the tensors it is given: "latents".
            class_labels: Class, or a list of classes, where the model takes them: names (str) or indices (int).
            batch_size: How many images to sample without conditions, or how often to repeat one prompt or label; by
                default as many as there are prompts or labels, or 1.
            guidance_interval: The steps that are guided, as fractions [start, end) of all the steps; by default the
                folder's, or all.
            tied_exits: Whether the conditional and the unconditional prediction of an image leave together, as they
                do by default.
            guidance: All of the guidance, the internal one included, in place of scale, interval and `tied_exits`.
            tau: Exit threshold in [0, 1], one or one per step, from the folder's `min_layer` on. Larger is faster and
                rougher; 0 is the full model.
            policy: When samples leave; by default the folder's policy or threshold, or never.
            return_uncertainties: Run every estimator, and keep what it says in the trace.

        Raises:
            InputError: If an argument is out of range or does not fit the model.
            NonFiniteImagesError: If an image came out NaN or infinite.
        """
        chosen = self.sampling_settings(
            num_inference_steps,
            guidance_scale,
            tau,
            policy,
            guidance_interval=guidance_interval,
            tied_exits=tied_exits,
            guidance=guidance,
        )
        guidance = chosen.guidance
        callback = StepCallback.checked(callback_on_step_end, callback_on_step_end_tensor_inputs)
        output_type = self._checked_output_type(output_type)
        prompts, labels, size = listed(prompt, class_labels, batch_size)
        self.check_inputs(size, chosen.steps, chosen.policy, guidance)
        repeats = checked_count(num_images_per_prompt, "num_images_per_prompt")
        generator = checked_generator(generator, size * repeats)
        conditions = self.conditions(size, labels, prompts)
        nothing = self.null_conditions(size, negative_prompt) if guidance.scale > 1 else {}
        noise = self._noise(size * repeats, generator, latents)

        scheduler = started(self.scheduler, chosen.steps, noise.device)
        denoising = Denoising(
            self.denoiser,
            self.transformer.dtype,
            scheduler,
            chosen.policy,
            size * repeats,
            repeated(conditions, repeats),
            repeated(nothing, repeats),
            guidance,
            generator,
            return_uncertainties,
        )
        sample = self._run(denoising, noise * scheduler.init_noise_sigma, callback)
        output = AdaDiffPipelineOutput(self._output(sample, output_type), denoising.trace)
        return output if return_dict else output.to_tuple()

    def _checked_output_type(self, output_type: Any) -> str:
        checked = checked_output_type(output_type)
        if checked == "pil" and self.vae is None and self.transformer.backbone.in_channels not in (1, 3):
            raise InputError("the model makes latents, and its folder holds no autoencoder to decode them")
        return checked

    def _noise(
        self, images: int, generator: torch.Generator | list[torch.Generator] | None, latents: Tensor | None
    ) -> Tensor:
        """Draw or check the initial noise, (images, channels, height, width) float32."""
        backbone, device = self.transformer.backbone, self._execution_device
        shape = (images, backbone.in_channels, *backbone.sample_size)
        if latents is not None:
            return checked_latents(latents, shape, device)
        return randn_tensor(shape, generator=generator, device=device)

    def _run(self, denoising: Denoising, sample: Tensor, callback: StepCallback | None) -> Tensor:
        """Take every step, or those until an interruption, from noise to what is decoded."""
        self.interrupt = False
        timesteps = denoising.timesteps
        with self.progress_bar(total=len(timesteps)) as progress:
            for step, timestep in enumerate(timesteps):
                sample = denoising.take(step, sample)
                if callback is not None:
                    sample = callback(self, step, timestep, sample)
                progress.update()
                if self.interrupt:
                    break
        return sample

    def _output(self, sample: Tensor, output_type: str) -> Any:
        """Convert denoised samples, (images, channels, height, width), to the requested output type."""
        decoded = sample if output_type == "latent" else self.decode(sample)
        require_finite_images(decoded)
        if output_type == "latent":
            return decoded
        images = (decoded / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        pixels = images.permute(0, 2, 3, 1).float().cpu().numpy()  # (images, height, width, channels)
        return pixels if output_type == "np" else self.numpy_to_pil(pixels)

    @property
    def interrupt(self) -> bool:
        """Whether the sampling that is going on shall skip its remaining steps; a callback sets it to True."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    def with_plan(self, plan: SamplingPlan) -> Self:
        """Make the same pipeline that samples by a plan: with its scheduler, steps, guidance and exits by default.

        Raises:
            InputError: If the plan does not fit the model.

        Examples:
            >>> from adadiff import AdaDiffPipeline
            >>> from adadiff.sampling import SamplingPlan
            >>> pipe = AdaDiffPipeline.from_pretrained("digits").with_plan(SamplingPlan(steps=5, scheduler="unipc"))
            >>> pipe.set_progress_bar_config(disable=True)
            >>> pipe().trace.steps, type(pipe.scheduler).__name__
            (5, 'UniPCMultistepScheduler')
        """
        name = plan.scheduler or scheduler_name(self.scheduler)
        changed = plan.spacing is not None or name != scheduler_name(self.scheduler)
        scheduler = scheduler_like(name, self.scheduler, plan.spacing) if changed else self.scheduler
        other = self.with_parts(scheduler=scheduler)
        other.check_inputs(1, plan.steps, plan.policy, plan.guidance)
        evaluations = len(times_of(scheduler, plan.steps))
        context = PlanContext.of(plan, None, self.transformer.depth, name, evaluations)
        other.own_settings = replace(self.own_settings, stored=context.stored(plan.policy, {}, {}))
        other._own_scheduler, other._denoiser = scheduler, plan.denoiser(other.denoiser)
        return other

    def check_inputs(
        self, batch_size: int, num_inference_steps: int, policy: ExitPolicy, guidance: Guidance | None = None
    ) -> None:
        """Raise InputError where arguments of a call, or the scheduler, do not fit the model."""
        if batch_size < 1:
            raise InputError(f"the batch size is {batch_size}: it must be at least 1")
        internal, depth = None if guidance is None else guidance.internal, self.denoiser.depth
        if internal is not None and internal.layer >= depth:
            raise InputError(
                f"internal guidance by layer {internal.layer}: the model's layers before the last are 1 to {depth - 1}"
            )
        evaluations = len(times_of(self.scheduler, num_inference_steps))
        try:
            policy.check(self.denoiser.depth, evaluations)
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
        """Build the model's keyword arguments for the condition of each image.

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
        """Build the model's keyword arguments for the unconditional half of guidance.

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
        """Decode samples to images in [-1, 1], a few latents at a time; images are returned as they are."""
        if self.vae is None:
            return sample
        latents = (sample / self.vae.config.scaling_factor).to(self.vae.dtype)
        return torch.cat([self.vae.decode(few).sample for few in latents.split(DECODE_BATCH)])
