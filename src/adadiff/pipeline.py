"""The pipeline that users see: sampling, which does not know calibration, with calibration attached."""

from __future__ import annotations

from typing import Any

from adadiff.calibration import Calibration, Goal, calibrate
from adadiff.policies import NeverExit
from adadiff.sampling import AdaptivePipeline, Conditions


class AdaDiffPipeline(AdaptivePipeline):
    """Samples images with an adaptive model and a diffusers scheduler, and calibrates its own exit policies.

    Loaded from a folder it samples as the folder says: with its scheduler, steps, guidance scale and exit policy. Built
    from its parts it runs all layers in 50 steps unless a call says otherwise.

    Args:
        transformer: The denoiser.
        scheduler: Any diffusers scheduler for the variance-preserving forward process.
        text_encoder: For a model that takes text.
        vae: For a model of latents.

    Examples:
        >>> import torch
        >>> from adadiff import AdaDiffPipeline
        >>> pipe = AdaDiffPipeline.from_pretrained("digits")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> out = pipe(batch_size=2, generator=torch.Generator().manual_seed(0))
        >>> [image.size for image in out.images], out.trace.exit_layers.shape
        ([(8, 8), (8, 8)], torch.Size([50, 2]))
        >>> f"{out.trace.compute_fraction:.0%} of the full model's compute"
        "45% of the full model's compute"
        >>> pipe(tau=0, num_inference_steps=5).trace.layer_fraction
        1.0
    """

    def calibrate(
        self,
        compute: float | None = None,
        error: float | None = None,
        speedup: float | None = None,
        confidence: float = 0.95,
        num_inference_steps: int | None = None,
        **options: Any,
    ) -> Calibration:
        """Find the exit policy for a budget, a bound on the error or a speedup: `adadiff.calibration.calibrate`.

        Args:
            compute: Spend this fraction of the full model's FLOPs, in (0, 1).
            error: Keep the mean difference from the full model's images below this, in (0, 1).
            speedup: Be so many times as fast as the full model, above 1.
            confidence: Of the bound on the error, in (0, 1).
            num_inference_steps: Sampling steps; by default as many as a call takes.
            options: `conditions`, `samples`, `metric`, `periodic`, ... of `calibrate`. By default all classes of the
                model are sampled, guided as a call guides them.

        Returns:
            What was found: its `policy` is for `pipe(..., policy=...)`, and `save(folder)` keeps it with the model.

        Raises:
            InputError: If the goal makes no sense or cannot be met.
        """
        chosen = self.sampling_settings(num_inference_steps, policy=NeverExit())
        own = Conditions(self.transformer.class_indices, guidance=chosen.guidance)
        options = {"conditions": own, **options}
        return calibrate(self, Goal(compute, error, speedup, confidence), chosen.steps, **options)
