"""Feature networks, on whose outputs the metrics are computed, and a disk cache of real images' features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from adadiff.data import ImageData, cache_folder
from adadiff.evaluation.small_network import SmallNetwork
from adadiff.utils.errors import InputError, imported
from adadiff.utils.files import PRETRAINED, atomic_write, verify_checksums
from adadiff.utils.fingerprints import fingerprint, weights_of

SMALL = PRETRAINED / "small-features"
BATCH = 250


@dataclass(frozen=True)
class ImageFeatures:
    """The outputs of a feature network for a sequence of images.

    Args:
        vectors: Features, (images, features) float32.
        guesses: The most likely class of each image, (images,) int64, if the network is a classifier with named
            classes, else None.
    """

    vectors: NDArray[np.float32]
    guesses: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that maps images to features.

    Args:
        name: The name it was loaded by, as `load_feature_network` takes it.
        network: Takes images (batch, channels, height, width) in [0, 1] and returns features (batch, features), or
            features and logits (batch, classes).
        class_names: Names of the logits' classes, if they are known.
        device: Device that it runs on.
    """

    name: str
    network: nn.Module
    class_names: tuple[str, ...] = ()
    device: str | torch.device = "cpu"

    @property
    def fingerprint(self) -> str:
        """A short hash of the network's name and weights."""
        return fingerprint([self.name, *weights_of(self.network)])

    @torch.no_grad()
    def of(self, batches: Iterable[Tensor]) -> ImageFeatures:
        """Compute the features of batches of images, (batch, channels, height, width) in [0, 1]."""
        vectors, guesses = [], []
        for images in batches:
            output = self.network(images.to(self.device))
            features, logits = output if isinstance(output, tuple) else (output, None)
            vectors.append(features.float().flatten(1).cpu())
            if self.class_names and logits is not None:
                guesses.append(logits.argmax(1).cpu())
        return ImageFeatures(torch.cat(vectors).numpy(), torch.cat(guesses).numpy() if guesses else None)


def load_feature_network(name: str, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Load a feature network by name.

    Args:
        name: `"small"`, which comes with the package; `"inception"`, the network of the standard FID (Heusel et al.
            2017), by torch-fidelity; the folder of a network like `small`; a TorchScript file; or
            `"package.module:name"` of a `torch.nn.Module`, or of a function without arguments that returns one.
        device: Device to run it on.

    Raises:
        InputError: If the network does not exist or cannot be fetched.
    """
    path = SMALL if name == "small" else Path(name)
    class_names: tuple[str, ...] = ()
    if name == "inception":
        network: nn.Module = _Inception()
    elif path.is_dir():
        verify_checksums(path)
        try:
            small = SmallNetwork.from_pretrained(path, torch_dtype=torch.float32)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"{path} holds no feature network that python -m adadiff.evaluation.train_small wrote: "
                f"{' '.join(str(error).split())}"
            ) from error
        network, class_names = small, tuple(small.config.class_names)
    elif path.is_file():
        try:
            network = torch.jit.load(str(path))
        except RuntimeError as error:
            raise InputError(f"{path} is not a TorchScript file: save the network by torch.jit.save") from error
    elif ":" in name:
        network = _import_network(name)
    else:
        raise InputError(
            f"there is no feature network {name!r}: choose small, inception, a folder or TorchScript file, or "
            f"package.module:name of a torch.nn.Module"
        )
    return FeatureNetwork(name, network.eval().to(device), class_names, device)


def reference_features(network: FeatureNetwork, data: ImageData) -> ImageFeatures:
    """Return the features of all real images, cached on disk for each network and data set."""
    size, channels = data.config.size, data.config.channels
    key = fingerprint([network.fingerprint, size, channels, *data.contents()])
    path = cache_folder() / f"features-{key}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as cached:
            return ImageFeatures(cached["vectors"], cached.get("guesses"))
    features = network.of(tqdm(_batches(data), desc="features of real images", total=-(-len(data) // BATCH)))
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: array for name, array in vars(features).items() if array is not None}
    with atomic_write(path) as part:
        np.savez(part, **arrays)
    return features


def _batches(data: ImageData) -> Iterator[Tensor]:
    for first in range(0, len(data), BATCH):
        yield torch.stack([data[k]["image"] for k in range(first, min(first + BATCH, len(data)))]) / 2 + 0.5


class _Inception(nn.Module):
    """Maps images to the 2,048 pooled features of the standard FID's Inception network, through torch-fidelity."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise InputError(
                "the inception network needs torch-fidelity and torchvision: pip install 'adadiff[metrics]', or choose "
                "--features small"
            ) from error
        try:
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except OSError as error:
            raise InputError(
                "the weights of the inception network cannot be downloaded from github.com/toshas/torch-fidelity: "
                "check the network connection, or choose --features small"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        return self.network((255 * images).round().byte().expand(-1, 3, -1, -1))[0]


def _import_network(name: str) -> nn.Module:
    found = imported(name)
    try:
        network = found if isinstance(found, nn.Module) else found()
    except TypeError as error:
        raise InputError(f"{name} returns no network when called without arguments: {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{name} is a {type(network).__name__}: give a torch.nn.Module, or a function that returns one"
        )
    return network
