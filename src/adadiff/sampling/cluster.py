"""Sampling on many machines: batches of images, spread over actors of Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from adadiff.sampling.folder import Batch, ImageSampler
from adadiff.utils.clusters import Crew
from adadiff.utils.errors import InputError

if TYPE_CHECKING:
    from ray import ObjectRef


class OnActors(Crew):
    """Samples batches on the actors of a Ray cluster, to which this process is connected, during a `with` block.

    Each actor has one GPU, or one core where the cluster has no GPUs. Actors start with the first batches, and stay for
    later ones, of other models too. They get the model from this process and send images back, so that their machines
    need adadiff alone and no files. Actors that die are replaced, and their batches are sampled again.

    Args:
        device: Device of the actors: cpu, cuda, or auto for cuda if the cluster has GPUs.

    Raises:
        InputError: If the cluster has no such device.
    """

    def __init__(self, device: str = "auto") -> None:
        import ray

        place, actors = _room(device, ray.cluster_resources())
        worker = ray.remote(Worker).options(num_cpus=1, num_gpus=int(place == "cuda"))
        super().__init__(lambda: worker.remote(place), actors)

    def __call__(self, sampler: ImageSampler, batches: Iterator[Sequence[int]]) -> Iterator[Batch]:
        """Sample batches, and yield them in the order in which they are done."""
        import ray

        shared = ray.put(sampler)
        yield from self.map(batches, lambda actor, indices: actor.run.remote([shared], indices))


def _room(device: str, resources: Mapping[str, float]) -> tuple[str, int]:
    """Return the device of an actor, and for how many actors the cluster has room."""
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {device!r} on a cluster: choose cpu, cuda, or auto for cuda if it has GPUs")
    if device == "cuda" and not gpus:
        raise InputError("the cluster has no GPUs: choose --device cpu, or auto")
    if not gpus and not cores:
        raise InputError("the cluster has neither cores nor GPUs: add machines to it")
    return ("cuda", gpus) if gpus and device != "cpu" else ("cpu", cores)


class Worker:
    """Samples batches in an actor, which holds the last sampler alone.

    Args:
        device: Device to sample on.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._held = ""  # of which reference the sampler is
        self._sampler: ImageSampler | None = None

    def ready(self) -> None:
        """Return once the actor runs."""

    def run(self, shared: Sequence[ObjectRef[ImageSampler]], indices: Sequence[int]) -> list[bytes]:
        """Sample a batch.

        Args:
            shared: Reference to the sampler, whose model is on the CPU; in a list, since Ray would fetch a bare one for
                each batch.
            indices: Indices of the images.
        """
        import ray

        if self._sampler is None or self._held != shared[0].hex():
            self._sampler = None  # so that its memory is free before the next one comes
            sampler = ray.get(shared[0])
            self._sampler = replace(sampler, pipeline=sampler.pipeline.to(self._device))
            self._held = shared[0].hex()
        return self._sampler(indices)
