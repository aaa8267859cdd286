"""Sampling on many machines: batches of images, spread over actors of Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adadiff.sampling.folder import Batch, ImageSampler
from adadiff.utils.clusters import Crew
from adadiff.utils.errors import InputError


@dataclass(frozen=True)
class OnActors:
    """Samples the batches of `sample_to_folder` on the actors of a Ray cluster, to which this process is connected.

    Each actor has one GPU, or one core where the cluster has no GPUs. It gets the model from this process and sends
    images back, so that its machine needs adadiff alone and no files. Actors that die are replaced, and their batches
    are sampled again.

    Args:
        device: Device of the actors: cpu, cuda, or auto for cuda if the cluster has GPUs.

    Raises:
        InputError: If the cluster has no such device.
    """

    device: str = "auto"

    def __call__(self, sampler: ImageSampler, batches: Iterator[Sequence[int]]) -> Iterator[Batch]:
        """Sample batches, and yield them in the order in which they are done."""
        import ray

        device, actors = self._room(ray.cluster_resources())
        worker = ray.remote(Worker).options(num_cpus=1, num_gpus=int(device == "cuda"))
        shared = ray.put(sampler)
        return Crew(lambda: worker.remote(shared, device), actors).map(batches)

    def _room(self, resources: Mapping[str, float]) -> tuple[str, int]:
        """Return the device of an actor, and for how many actors the cluster has room."""
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device {self.device!r} on a cluster: choose cpu, cuda, or auto for cuda if it has GPUs")
        if self.device == "cuda" and not gpus:
            raise InputError("the cluster has no GPUs: choose --device cpu, or auto")
        if not gpus and not cores:
            raise InputError("the cluster has neither cores nor GPUs: add machines to it")
        return ("cuda", gpus) if gpus and self.device != "cpu" else ("cpu", cores)


class Worker:
    """Samples batches in an actor.

    Args:
        sampler: Samples images; its model is on the CPU.
        device: Device to sample on.
    """

    def __init__(self, sampler: ImageSampler, device: str) -> None:
        self._sampler = replace(sampler, pipeline=sampler.pipeline.to(device))

    def ready(self) -> None:
        """Return once the actor runs."""

    def run(self, indices: Sequence[int]) -> list[bytes]:
        """Sample a batch."""
        return self._sampler(indices)
