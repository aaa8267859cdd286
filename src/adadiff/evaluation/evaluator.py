"""What images are evaluated with: feature networks and their features of real images, and a CLIP model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.clip import ClipScorer, load_clip
from adadiff.evaluation.colours import saturation
from adadiff.evaluation.features import (
    FeatureNetwork,
    ImageFeatures,
    features_of,
    load_feature_network,
    reference_features,
)
from adadiff.evaluation.metrics import (
    NEIGHBOURS,
    Features,
    Gaussian,
    bootstrap,
    kernel_distance,
    precision_recall,
)
from adadiff.sampling import AdaptivePipeline
from adadiff.utils.errors import InputError


class MeanSaturation(nn.Module):
    """Maps images, (batch, channels, height, width) in [0, 1], to the mean of HSV saturation, (batch, 1)."""

    def forward(self, images: Tensor) -> Tensor:
        return saturation(images).mean((1, 2))[:, None]


SATURATION = FeatureNetwork("mean saturation", MeanSaturation())


@dataclass(frozen=True)
class NetworkMetrics:
    """The quality of samples by one feature network.

    Args:
        frechet: Fréchet distance to the real images.
        frechet_error: Standard error of the Fréchet distance, by bootstrap over the samples.
        kernel: Kernel distance (KID) to the real images, unbiased.
        precision: Share of samples that lie on the manifold of real images, in [0, 1].
        recall: Share of real images that lie on the manifold of samples, in [0, 1].
        class_agreement: Share of samples that the network assigns to their requested class, in [0, 1]; None if no
            classes were requested, or the network does not know them.
    """

    frechet: float
    frechet_error: float
    kernel: float
    precision: float
    recall: float
    class_agreement: float | None


@dataclass(frozen=True)
class Reference:
    """A feature network with its features of the real images.

    Args:
        network: The network.
        real: Features of the real images.
    """

    network: FeatureNetwork
    real: ImageFeatures

    @property
    def least_images(self) -> int:
        """Least number of images, real ones and samples, that the metrics need."""
        return max(self.real.vectors.shape[1], NEIGHBOURS) + 1

    @cached_property
    def _gaussian(self) -> Gaussian:
        return Gaussian.fit(self.real.vectors)

    def distance(self, vectors: Features) -> float:
        """Compute the Fréchet distance of samples with these features, (images, features), to the real images."""
        return Gaussian.fit(vectors).distance(self._gaussian)

    def precision_recall(self, vectors: Features) -> tuple[float, float]:
        """Compute precision and recall against as many real images as samples, where there are so many."""
        return precision_recall(vectors, self._as_many(vectors))

    def metrics(self, samples: ImageFeatures, requested: Sequence[str | int] = ()) -> NetworkMetrics:
        """Compute all metrics of samples from their features by this network.

        Args:
            samples: Features of the samples.
            requested: Names of the requested classes, as `class_agreement` takes them.

        Raises:
            InputError: If there are too few samples.
        """
        vectors = samples.vectors
        precision, recall = self.precision_recall(vectors)
        return NetworkMetrics(
            frechet=self.distance(vectors),
            frechet_error=bootstrap(self.distance, vectors),
            kernel=kernel_distance(vectors, self._as_many(vectors)),
            precision=precision,
            recall=recall,
            class_agreement=class_agreement(samples.guesses, self.network.class_names, requested),
        )

    def _as_many(self, vectors: Features) -> Features:
        return self.real.vectors[np.random.default_rng(0).permutation(len(self.real.vectors))[: len(vectors)]]


@dataclass(frozen=True)
class Evaluator:
    """The real images and networks that samples are evaluated with.

    Args:
        data: The real images.
        references: The feature networks with their features of the real images, by name; at least one.
        real_saturation: Mean over the real images of HSV saturation, in [0, 1].
        clip: CLIP scorer for samples with prompts, or None.
    """

    data: ImageData
    references: Mapping[str, Reference]
    real_saturation: float
    clip: ClipScorer | None = None

    @property
    def first(self) -> Reference:
        """The first network, which a single figure goes by."""
        return next(iter(self.references.values()))

    def require_enough(self, n: int, what: str = "{n} images") -> None:
        """Raise InputError if n images, described by `what`, are too few for the features of one of the networks."""
        for name, each in self.references.items():
            if n < each.least_images:
                raise InputError(
                    f"{what.format(n=n)} are too few for metrics on the features {name}: at least {each.least_images} "
                    f"are needed"
                )

    def require_independent(self, judges: Sequence[str], others: Sequence[str]) -> None:
        """Raise InputError if one of the networks named as judges is one of the others under another name."""
        for judge, other in itertools.product(judges, others):
            if self.references[judge].network.same_as(self.references[other].network):
                raise InputError(f"the judge {judge} is the network {other} that the search goes by: name another one")

    def features(self, batches: Iterable[Tensor]) -> dict[str, ImageFeatures]:
        """Compute features of samples by each network's name, reading them once.

        Args:
            batches: Batches of images, (batch, channels, height, width) in [0, 1].

        Returns:
            Features by the networks, and under the name `mean saturation` each image's, (images, 1).
        """
        networks = [*(each.network for each in self.references.values()), SATURATION]
        names = (*self.references, SATURATION.name)
        return dict(zip(names, features_of(networks, batches), strict=True))

    def metrics(
        self, samples: Mapping[str, ImageFeatures], requested: Sequence[str | int] = ()
    ) -> dict[str, NetworkMetrics]:
        """Compute all metrics by each network's name, from what `features` returns; see `Reference.metrics`."""
        return {name: each.metrics(samples[name], requested) for name, each in self.references.items()}


def evaluator_for(
    model: str | Path, data: DataConfig, features: Sequence[str], clip: str | None, device: str | torch.device
) -> Evaluator:
    """Build the evaluator of a model's samples, with features of real images in the model's size, which are read once.

    Args:
        model: Model folder, or the name of a packaged model.
        data: Real images; resized to the model's size and converted to its channels.
        features: Names of the feature networks, as `load_feature_network` takes them; at least one.
        clip: Name of a CLIP model, for a model that takes text.
        device: Device that the networks run on.

    Raises:
        InputError: If the model, the data or a network is missing; or the real images are smaller than the model's,
            grey although the model's have colours, or too few for the metrics.
    """
    pipeline = AdaptivePipeline.from_pretrained(model, own_settings=False)
    return evaluator_of(pipeline.image_shape, pipeline.text_encoder is not None, data, features, clip, device)


def evaluator_of(
    image_shape: tuple[int, int, int],
    takes_text: bool,
    data: DataConfig,
    features: Sequence[str],
    clip: str | None,
    device: str | torch.device,
) -> Evaluator:
    """Build the evaluator of images of a shape, (channels, height, width); for the rest see `evaluator_for`."""
    if not features:
        raise InputError("no feature network is named: set --features")
    channels, height, width = image_shape
    if height != width or channels not in (1, 3):
        raise InputError(
            f"the model's images are {channels}x{height}x{width}: only square grey or RGB images can be evaluated"
        )
    if clip is not None and not takes_text:
        raise InputError("a CLIP score needs prompts, and the model takes none: leave --clip out")
    real = ImageData(
        replace(data, size=height, channels=1 if channels == 1 else 3), smallest_side=height, condition="none"
    )
    if channels == 3 and real.is_grey():
        raise InputError(f"the images of {data.source} are grey, but the model's are RGB: set another --data.source")
    networks = [load_feature_network(name, device) for name in dict.fromkeys(features)]
    scorer = None if clip is None else load_clip(clip)
    *vectors, colours = reference_features([*networks, SATURATION], real)
    references = {each.name: Reference(each, mine) for each, mine in zip(networks, vectors, strict=True)}
    evaluator = Evaluator(real, references, float(colours.vectors.mean()), scorer)
    evaluator.require_enough(len(real), "{n} real images")
    for name, each in references.items():
        if np.allclose(each.real.vectors, each.real.vectors[0], rtol=1e-5, atol=0):
            raise InputError(f"the features {name} are the same for all real images: choose another feature network")
    return evaluator


def class_agreement(
    guesses: NDArray[np.int64] | None, class_names: Sequence[str], requested: Sequence[str | int]
) -> float | None:
    """Return the share of images whose predicted class is the requested one; None if the network lacks these classes.

    Args:
        guesses: Positions in `class_names` of the predicted classes, (images,), or None.
        class_names: Names of the network's classes.
        requested: Names of the requested classes; for image k it was the one at position k modulo their number.
    """
    if guesses is None or not requested or not set(requested) <= set(class_names):
        return None
    wanted = np.array([list(class_names).index(str(name)) for name in requested])
    return float((guesses == wanted[np.arange(len(guesses)) % len(wanted)]).mean())
