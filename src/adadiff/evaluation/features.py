"""Feature networks, on whose outputs the metrics are computed, and a disk cache of real images' features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from adadiff.data import ImageData, cache_folder
from adadiff.evaluation.packaged import PACKAGED
from adadiff.evaluation.small_network import SmallNetwork
from adadiff.evaluation.statistics_network import StatisticsNetwork
from adadiff.utils.errors import InputError, imported, one_line
from adadiff.utils.files import atomic_write, read_json, verify_checksums
from adadiff.utils.fingerprints import fingerprint, weights_of

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

    def same_as(self, other: FeatureNetwork) -> bool:
        """Return whether another network is this one, by whatever name: of one class, with the same weights."""
        mine, others = list(weights_of(self.network)), list(weights_of(other.network))
        return type(self.network) is type(other.network) and bool(mine) and mine == others

    def of(self, batches: Iterable[Tensor]) -> ImageFeatures:
        """Compute the features of batches of images, (batch, channels, height, width) in [0, 1]."""
        return features_of([self], batches)[0]


@torch.no_grad()
def features_of(networks: Sequence[FeatureNetwork], batches: Iterable[Tensor]) -> list[ImageFeatures]:
    """Compute the features of images by several networks, reading the images once.

    Args:
        networks: The networks.
        batches: Batches of images, (batch, channels, height, width) in [0, 1].

    Raises:
        InputError: If a network fails on the images, or its features are not finite or not one row per image.
    """
    vectors: list[list[Tensor]] = [[] for _ in networks]
    guesses: list[list[Tensor]] = [[] for _ in networks]
    for images in batches:
        for place, each in enumerate(networks):
            features, logits = _output(each, images)
            vectors[place].append(features.float().flatten(1).cpu())
            if each.class_names and logits is not None:
                guesses[place].append(logits.argmax(1).cpu())
    return [
        ImageFeatures(torch.cat(mine).numpy(), torch.cat(known).numpy() if known else None)
        for mine, known in zip(vectors, guesses, strict=True)
    ]


def _output(network: FeatureNetwork, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a network's features of images, (images, features), and its logits or None; raise InputError if it fails.

    It may be anybody's.
    """
    shape = tuple(images.shape)
    try:
        output = network.network(images.to(network.device))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"the feature network {network.name} fails on images of shape {shape}: {one_line(error)}"
        ) from error
    features, logits = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    if not isinstance(features, Tensor) or features.dim() < 2 or len(features) != len(images):
        found = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise InputError(
            f"the feature network {network.name} returns {found} for images of shape {shape}: it must return a tensor "
            f"(images, features), or a pair of it and logits"
        )
    if not features.isfinite().all():
        raise InputError(f"the feature network {network.name} returns features that are NaN or infinite")
    return features, logits


def load_feature_network(name: str, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Load a feature network by name.

    Args:
        name: `"small"`, `"unlabelled"` or `"statistics"`, which come with the package; `"inception"`, the network of
            the standard FID (Heusel et al. 2017), by torch-fidelity; the folder of a network like a packaged one; a
            TorchScript file; or `"package.module:name"` of a `torch.nn.Module`, or of a function without arguments that
            returns one.
        device: Device to run it on.

    Raises:
        InputError: If the network does not exist or cannot be fetched.
    """
    path = PACKAGED.get(name, Path(name))
    class_names: tuple[str, ...] = ()
    if name == "inception":
        network: nn.Module = _Inception()
    elif path.is_dir():
        network = _stored_network(path)
        class_names = tuple(network.config.get("class_names", ()))
    elif path.is_file():
        try:
            network = torch.jit.load(str(path))
        except RuntimeError as error:
            raise InputError(f"{path} is not a TorchScript file: save the network by torch.jit.save") from error
    elif ":" in name:
        network = _import_network(name)
    else:
        raise InputError(
            f"there is no feature network {name!r}: choose {', '.join(PACKAGED)}, inception, a folder or "
            f"TorchScript file, or package.module:name of a torch.nn.Module"
        )
    return FeatureNetwork(name, network.eval().to(device), class_names, device)


def reference_features(networks: Sequence[FeatureNetwork], data: ImageData) -> list[ImageFeatures]:
    """Return the features of all real images by each network, cached on disk for each network and data set.

    The images are read once for all networks whose features are not cached yet.
    """
    contents = [data.config.size, data.config.channels, fingerprint(data.contents())]
    paths = [cache_folder() / f"features-{fingerprint([each.fingerprint, *contents])}.npz" for each in networks]
    missing = [(each, path) for each, path in zip(networks, paths, strict=True) if not path.is_file()]
    if missing:
        batches = tqdm(_batches(data), desc="features of real images", total=-(-len(data) // BATCH))
        cache_folder().mkdir(parents=True, exist_ok=True)
        computed = features_of([each for each, _ in missing], batches)
        for features, (_, path) in zip(computed, missing, strict=True):
            arrays = {name: array for name, array in vars(features).items() if array is not None}
            with atomic_write(path) as part:
                np.savez(part, **arrays)
    return [_cached(path) for path in paths]


def _cached(path: Path) -> ImageFeatures:
    with np.load(path, allow_pickle=False) as cached:
        return ImageFeatures(cached["vectors"], cached.get("guesses"))


def _batches(data: ImageData) -> Iterator[Tensor]:
    for first in range(0, len(data), BATCH):
        yield torch.stack([data[k]["image"] for k in range(first, min(first + BATCH, len(data)))]) / 2 + 0.5


def _stored_network(folder: Path) -> SmallNetwork | StatisticsNetwork:
    """Load a network from a folder that one of the commands of this package wrote."""
    verify_checksums(folder)
    kinds = {kind.__name__: kind for kind in (SmallNetwork, StatisticsNetwork)}
    config = folder / "config.json"
    name = read_json(config).get("_class_name") if config.is_file() else None
    if name not in kinds:
        raise InputError(
            f"{folder} holds no feature network that python -m adadiff.evaluation.train_small or train_unlabelled wrote"
        )
    network: SmallNetwork | StatisticsNetwork = kinds[name].from_pretrained(folder, torch_dtype=torch.float32)
    return network


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
