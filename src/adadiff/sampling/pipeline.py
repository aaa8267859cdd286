"""The diffusers pipeline: any scheduler, every sample leaving on its own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from typing_extensions import Self

from adadiff.errors import InputError
from adadiff.exits import AdaptiveModel, ExitPolicy, NeverExit, ThresholdExit
from adadiff.exits.trace import Trace


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
    """Samples images with an adaptive model and any diffusers scheduler.

    Args:
        transformer: The denoiser.
        scheduler: Any diffusers scheduler; the default one of a trained model is the one it was trained with.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: AdaptiveModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a model folder, as `save_pretrained` and the training make it, or a hub model.

        Raises:
            InputError: If there is no such model, or its files are damaged or do not fit together.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.exists() and not (folder / "model_index.json").is_file():
            raise InputError(f"{folder} is not a model folder: it has no model_index.json")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except InputError:
            raise
        except (OSError, ValueError, AttributeError, RuntimeError) as error:
            if folder.exists():
                reason = " ".join(str(error).split())
                raise InputError(f"{folder} cannot be loaded as a model: {reason}") from error
            raise InputError(
                f"there is no model folder {folder}, nor a model of that name that can be fetched from the hub"
            ) from error

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Sequence[int] | None = None,
        num_inference_steps: int = 50,
        tau: float | Sequence[float] | None = None,
        policy: ExitPolicy | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_uncertainties: bool = False,
    ) -> AdaDiffPipelineOutput:
        """Sample.

        Args:
            batch_size: Number of images.
            class_labels: Class of each image, where the model takes classes.
            num_inference_steps: Sampling steps.
            tau: Exit threshold in [0, 1], one or one per step: short for `policy=ThresholdExit(tau)`. Larger is
                faster and rougher; 0 is the full model.
            policy: When samples leave; by default never.
            generator: Source of the noise. With one per image, image k depends on generator k alone.
            output_type: `"pil"` or `"pt"`.
            return_uncertainties: Run every estimator, and keep what it says in the trace.

        Raises:
            InputError: If an argument is out of range or does not fit the model.
        """
        policy = _choose_policy(tau, policy)
        self.check_inputs(batch_size, class_labels, num_inference_steps, policy)
        if output_type not in ("pil", "pt"):
            raise InputError(f'the output type is {output_type!r}: it must be "pil" or "pt"')
        if isinstance(generator, list) and len(generator) != batch_size:
            raise InputError(f"there are {len(generator)} generators for {batch_size} images: give one, or one each")
        model, device = self.transformer, self._execution_device

        self.scheduler.set_timesteps(num_inference_steps, device=device)
        backbone = model.backbone
        shape = (batch_size, backbone.in_channels, *backbone.sample_size)
        labels = None if class_labels is None else torch.tensor(class_labels, device=device)
        sample = randn_tensor(shape, generator=generator, device=device) * self.scheduler.init_noise_sigma
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        noise_source = {"generator": generator} if takes_generator else {}

        outputs = []
        timesteps = self.scheduler.timesteps
        for step, timestep in enumerate(self.progress_bar(timesteps)):
            output = model(
                self.scheduler.scale_model_input(sample, timestep).to(model.dtype),
                timestep,
                class_labels=labels,
                policy=policy,
                step=step,
                return_uncertainties=return_uncertainties,
            )
            sample = self.scheduler.step(output.sample.to(sample.dtype), timestep, sample, **noise_source).prev_sample
            outputs.append(output)

        trace = Trace(
            exit_layers=torch.stack([output.exit_layers for output in outputs]),
            flops=torch.stack([output.flops for output in outputs]),
            depth=model.depth,
            full_flops=model.part_flops.full,
            timesteps=tuple(timesteps.tolist()),
            uncertainties=torch.stack([output.uncertainties for output in outputs]),
        )
        images: Any = (sample / 2 + 0.5).clamp(0, 1)
        if output_type == "pil":
            images = self.numpy_to_pil(images.permute(0, 2, 3, 1).cpu().numpy())
        return AdaDiffPipelineOutput(images, trace)

    def check_inputs(
        self, batch_size: int, class_labels: Sequence[int] | None, num_inference_steps: int, policy: ExitPolicy
    ) -> None:
        """Raise InputError where arguments of a call are out of range or do not fit the model."""
        if batch_size < 1:
            raise InputError(f"the batch size is {batch_size}: it must be at least 1")
        most_steps = self.scheduler.config.num_train_timesteps
        if not 1 <= num_inference_steps <= most_steps:
            raise InputError(f"the number of steps is {num_inference_steps}: it must be between 1 and {most_steps}")
        policy.check(self.transformer.depth, num_inference_steps)

        num_classes = self.transformer.backbone.num_classes
        if num_classes is None and class_labels is not None:
            raise InputError("the model knows no classes: leave the class labels out")
        if num_classes is not None:
            if class_labels is None or len(class_labels) != batch_size:
                raise InputError(f"the model needs a class label for each of the {batch_size} images")
            for label in class_labels:
                if not 0 <= label < num_classes:
                    raise InputError(f"there is no class {label}: the model's classes are 0 to {num_classes - 1}")


def _choose_policy(tau: float | Sequence[float] | None, policy: ExitPolicy | None) -> ExitPolicy:
    if tau is not None and policy is not None:
        raise InputError("give either tau or a policy, not both")
    if tau is not None:
        return ThresholdExit(tau if isinstance(tau, (int, float)) else tuple(tau))
    return policy or NeverExit()
