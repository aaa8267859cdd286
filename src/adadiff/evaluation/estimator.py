"""A study of the uncertainty estimators: estimated uncertainty against true error, by step, layer and image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tqdm import tqdm

from adadiff.data import ImageData
from adadiff.exits.losses import pseudo_uncertainty
from adadiff.sampling import AdaptivePipeline
from adadiff.sampling.schedulers import scheduler_like
from adadiff.training.objective import training_target
from adadiff.utils.errors import InputError
from adadiff.utils.seeding import generator_for

BINS = 10
MAPPED = 4  # images whose uncertainty maps are stored
BATCH = 64


@dataclass(frozen=True)
class EstimatorStudy:
    """Estimated uncertainty and true error of real images, noised to several time steps.

    Args:
        timesteps: The time steps, (steps,) int64.
        estimated: Mean estimated uncertainty u_i of each image, (steps, images, layers).
        true: Mean of tanh |g_i - target|, the estimators' target, (steps, images, layers).
        images: The images with maps, (mapped, channels, height, width) in [0, 1].
        estimated_maps: Uncertainty at the middle layer and step, averaged over channels, (mapped, height, width).
        true_maps: True error at the middle layer and step, averaged over channels, (mapped, height, width).
    """

    timesteps: NDArray[np.int64]
    estimated: NDArray[np.floating]
    true: NDArray[np.floating]
    images: NDArray[np.floating]
    estimated_maps: NDArray[np.floating]
    true_maps: NDArray[np.floating]

    @property
    def rank_correlation(self) -> float:
        """Spearman's rank correlation of estimate and truth over all steps, images and layers, in [-1, 1]."""
        return float(spearmanr(self.estimated.ravel(), self.true.ravel()).statistic)

    @property
    def sample_correlations(self) -> NDArray[np.floating]:
        """Spearman's rank correlation over the images at each step and layer, (steps, layers)."""
        steps, _, layers = self.estimated.shape
        return np.array(
            [
                [spearmanr(self.estimated[t, :, i], self.true[t, :, i]).statistic for i in range(layers)]
                for t in range(steps)
            ]
        )

    @property
    def variance_shares(self) -> dict[str, float]:
        """The share of the estimates' variance that each factor explains, as the function `variance_shares` gives."""
        return variance_shares(self.estimated)

    def reliability(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Compute mean estimate and mean truth in each tenth of the estimates, sorted by estimate: (10,) each."""
        order = self.estimated.ravel().argsort()
        tenths = np.array_split(order, BINS)
        estimated, true = self.estimated.ravel(), self.true.ravel()
        means = [(estimated[tenth].mean(), true[tenth].mean()) for tenth in tenths]
        return np.array([mean for mean, _ in means]), np.array([mean for _, mean in means])

    @property
    def verdict(self) -> str:
        """The result of the study in words."""
        shares, within = self.variance_shares, float(np.nanmean(self.sample_correlations))
        beyond = 1 - shares["step"] - shares["layer"] - shares["step and layer"]
        extent = "hardly more than" if beyond < 0.05 else "more than"
        return (
            f"The estimates reflect {extent} step and layer, which explain {1 - beyond:.1%} of their variance. The "
            f"rank correlation with the true error is {within:.2f} on average among images at the same step and layer, "
            f"and {self.rank_correlation:.2f} over all steps, layers and images."
        )


def variance_shares(values: NDArray[np.floating]) -> dict[str, float]:
    """Analyse the variance of a full table, (steps, images, layers), into shares that add up to 1.

    Returns:
        Shares of `step` and `layer` alone; of `step and layer`, their interaction; of `image`, each image's mean over
        steps and layers; and of the `rest`, all interactions of the image with step or layer.
    """
    mean = values.mean()
    step, image, layer = (values.mean(axis, keepdims=True) - mean for axis in ((1, 2), (0, 2), (0, 1)))
    both = values.mean(1, keepdims=True) - mean - step - layer
    rest = values - mean - step - image - layer - both
    total = np.square(values - mean).mean()
    parts = {"step": step, "layer": layer, "step and layer": both, "image": image, "rest": rest}
    return {name: float(np.square(part).mean() / total) for name, part in parts.items()}


@torch.no_grad()
def study_estimators(
    pipeline: AdaptivePipeline, data: ImageData, images: int = 256, steps: int = 10, seed: int = 0
) -> EstimatorStudy:
    """Add noise to real images at evenly spaced time steps, run every exit, and compare estimates with true errors.

    Args:
        pipeline: The model and its scheduler.
        data: Real images of the model's size, preferably not training images; with labels if the model takes classes.
        images: Number of images; each has the same noise at all steps.
        steps: Number of time steps.
        seed: Seed of the noise.

    Raises:
        InputError: If the model takes text, since no captions are given, or there are too few images.
    """
    model = pipeline.transformer
    if model.backbone.context_shape is not None:
        raise InputError("the model takes text: its estimators cannot be studied on images without captions")
    if len(data) < images:
        raise InputError(f"there are {len(data)} images, but the study needs {images}: give more, or study fewer")
    scheduler = scheduler_like("ddpm", pipeline.scheduler)  # others cannot compute the velocity
    last = scheduler.config.num_train_timesteps
    timesteps = torch.linspace(0, last - 1, steps).round().long()
    clean = torch.stack([data[k]["image"] for k in range(images)])
    noise = torch.stack([torch.randn(clean.shape[1:], generator=generator_for(seed, k)) for k in range(images)])
    labels = torch.tensor(data.labels()[:images]) if model.backbone.num_classes is not None else None

    estimated, true = np.empty((2, steps, images, model.depth))
    maps: list[NDArray[np.floating]] = []
    for place, timestep in enumerate(tqdm(timesteps, desc="estimators")):
        for few in torch.arange(images).split(BATCH):
            times = timestep.expand(len(few))
            noisy = scheduler.add_noise(clean[few], noise[few], times).to(model.dtype)
            target = training_target(scheduler, clean[few], noise[few], times)
            predictions, uncertainties = model.all_exits(noisy, times, None if labels is None else labels[few])
            predictions, uncertainties = predictions.float(), uncertainties.float()  # (layers, batch, ...) each
            errors = pseudo_uncertainty(predictions, target)
            estimated[place, few] = uncertainties.flatten(2).mean(2).T
            true[place, few] = errors.flatten(2).mean(2).T
            if place == steps // 2 and few[0] == 0:
                middle = model.depth // 2
                maps = [each[middle, :MAPPED].mean(1).numpy() for each in (uncertainties, errors)]
    return EstimatorStudy(timesteps.numpy(), estimated, true, (clean[:MAPPED] / 2 + 0.5).numpy(), *maps)
