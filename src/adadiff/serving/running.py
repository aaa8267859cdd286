"""The samples in the engine's slots: filled from the images that wait, stepped together, and emptied as they end."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adadiff.sampling import AdaptivePipeline
from adadiff.serving.batcher import Candidate, choose
from adadiff.serving.conditions import ConditionEncoder
from adadiff.serving.costs import Batching
from adadiff.serving.requests import Event, Failed, Finished, Preview, Running
from adadiff.serving.sampler import Sample, Sampler
from adadiff.serving.waiting import Job, WaitingImages
from adadiff.utils.errors import one_line

NOT_FINITE = "the image came out NaN or infinite: try another scheduler, more steps or a smaller guidance scale"

Addressed = tuple[int, Event]
"""An event, after the number of the request that it belongs to."""


@dataclass(eq=False)
class Slot:
    """A running sample, with the request it belongs to.

    Args:
        job: The request.
        image: Position of the image in the request.
        sample: The sample.
        preview_steps: Steps after which a preview is published.
        waited: Ticks since it took a step, or since it began.
        ran: Whether it took a step in the last tick.
    """

    job: Job
    image: int
    sample: Sample
    preview_steps: frozenset[int]
    waited: int = 0
    ran: bool = False

    @property
    def number(self) -> int:
        """Number of the request."""
        return self.job.ticket.number

    @property
    def work_left(self) -> float:
        """Work left of the image."""
        return self.job.ahead[self.sample.step]

    @property
    def step_work(self) -> float:
        """Work of the next step."""
        following = self.job.ahead[self.sample.step + 1 :]
        return self.work_left - (following[0] if following else 0.0)

    @property
    def state(self) -> Running:
        """The slot as other threads see it."""
        sample = self.sample
        depth = sample.exit_layers[-1] if self.ran else sample.planned_layers
        return Running(self.number, self.image, sample.step, sample.prepared.evaluations, depth, self.ran)


@dataclass(frozen=True)
class Tick:
    """What a tick has done.

    Args:
        events: Previews, and the images that have ended.
        work: Work of the steps taken.
        rows: Rows of the call.
        layers: Layers run, over all rows.
        depth: Layers that the deepest row has run.
    """

    events: list[Addressed] = field(default_factory=list)
    work: float = 0.0
    rows: int = 0
    layers: int = 0
    depth: int = 0


class RunningSamples:
    """Runs samples in slots; it knows neither threads nor listeners.

    Args:
        pipeline: The model.
        slots: Number of slots.
        encoder: Encodes what images shall show.

    Attributes:
        batching: How samples run together; all at once unless set.
    """

    def __init__(self, pipeline: AdaptivePipeline, slots: int, encoder: ConditionEncoder) -> None:
        self.pipeline, self.denoiser, self.encoder = pipeline, pipeline.denoiser, encoder
        self.batching = Batching("mixed", slots)
        self.sampler, self.free, self.taken = Sampler(pipeline, slots), list(range(slots)), list[Slot]()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self.taken)

    def fill(self, waiting: WaitingImages) -> list[Addressed]:
        """Give free slots to images that wait; return the failures of those whose condition cannot be encoded."""
        failed: list[Addressed] = []
        while self.free and len(waiting):
            job, image = waiting.pop()
            request, prepared = job.ticket.request, job.prepared
            try:
                tensors = self.encoder.tensors(job.condition)
            except Exception as error:  # the text encoder's: it concerns this request alone
                failed.append((job.ticket.number, Failed(image, one_line(error))))
                continue
            number = next(self._numbers)
            sample = self.sampler.begin(number, self.free.pop(), prepared, request.seeds[image], *tensors)
            previews = (prepared.evaluations * (k + 1) // (request.previews + 1) for k in range(request.previews))
            self.taken.append(Slot(job, image, sample, frozenset(previews)))
        return failed

    def remove(self, number: int) -> None:
        """Free the slots of a request."""
        self._release([slot for slot in self.taken if slot.number == number])

    def tick(self) -> Tick:
        """Take the next step of the samples whose turn it is."""
        depth = self.denoiser.depth
        candidates = [
            Candidate(slot.number, 2 * slot.sample.planned_layers > depth, slot.waited) for slot in self.taken
        ]
        chosen = [self.taken[place] for place in choose(candidates, self.batching.width, self.batching.rule)]
        work = sum(slot.step_work for slot in chosen)
        rows = sum(2 if slot.sample.guided else 1 for slot in chosen)
        before = sum(slot.sample.layers for slot in chosen)
        for slot in self.taken:
            slot.waited, slot.ran = slot.waited + 1, False
        for slot in chosen:
            slot.waited, slot.ran = 0, True
        watched = [slot for slot in chosen if slot.sample.step + 1 in slot.preview_steps]
        estimates = self.sampler.step([slot.sample for slot in chosen], [slot.sample for slot in watched])
        layers = sum(slot.sample.layers for slot in chosen) - before
        events = self._previews(watched, estimates)
        events += self._ends([slot for slot in chosen if slot.sample.done or not slot.sample.finite])
        return Tick(events, work, rows, layers, max(slot.sample.exit_layers[-1] for slot in chosen))

    def _previews(self, watched: list[Slot], estimates: dict[int, Tensor]) -> list[Addressed]:
        watched = [slot for slot in watched if slot.sample.finite]
        if not watched:
            return []
        pixels = self.sampler.pixels(torch.stack([estimates[slot.sample.number] for slot in watched])).cpu()
        return [
            (slot.number, Preview(slot.image, slot.sample.step, slot.sample.prepared.evaluations, image))
            for slot, image in zip(watched, pixels, strict=True)
        ]

    def _ends(self, ended: list[Slot]) -> list[Addressed]:
        """Decode the images of samples that are done, fail those that are not finite, and free their slots."""
        if not ended:
            return []
        events: list[Addressed] = []
        latents = self.sampler.latents
        places = torch.tensor([slot.sample.slot for slot in ended], device=latents.device)
        pixels, now = self.sampler.pixels(latents[places]).cpu(), time.monotonic()
        self._release(ended)
        for slot, image in zip(ended, pixels, strict=True):
            if slot.sample.finite and image.isfinite().all():
                events.append((slot.number, self._finished(slot, image, now)))
            else:
                events.append((slot.number, Failed(slot.image, NOT_FINITE)))
        return events

    def _finished(self, slot: Slot, image: Tensor, now: float) -> Finished:
        sample = slot.sample
        full_flops = self.denoiser.part_flops.full * sample.predictions
        seconds = now - slot.job.submitted
        return Finished(slot.image, image, tuple(sample.exit_layers), sample.flops, full_flops, seconds)

    def _release(self, slots: list[Slot]) -> None:
        self.taken = [slot for slot in self.taken if slot not in slots]
        self.free += [slot.sample.slot for slot in slots]
        self.sampler.end([slot.sample for slot in slots])
