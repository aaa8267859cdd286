"""Jobs: many images of one condition, made when the engine has room for them, and continued after a restart."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from adadiff.serving.errors import ApiError
from adadiff.serving.images import image_file
from adadiff.serving.job_store import JobRecord, JobStore
from adadiff.serving.protocol import JobInfo
from adadiff.serving.requests import Event, Failed, Finished, ImageEngine, ImageRequest, Overloaded, Stopped, Ticket
from adadiff.serving.served import PlannedRequest
from adadiff.utils.errors import InputError, one_line

logger = logging.getLogger(__name__)

MOST_UNFINISHED = 100
"""Jobs that may wait or run at a time."""
SHARE = 4
"""Jobs have one image on the engine for so many that a call of the model takes, since a request shares its calls."""
LOOK = 0.05
"""Seconds after which the runner looks again whether the engine has room."""
NOTE = 5.0
"""Seconds of a job's running time that a killed process may lose."""

Ended = Literal["finished", "cancelled", "failed"]
Landed = tuple[str, int, Event]
"""A job's id, the number of an image of it, and how that image has ended."""


@dataclass(eq=False)
class Unfinished:
    """A job that has not ended.

    Args:
        first: The request for its first image.
        missing: Numbers of the images that are to be made, in order.
        upcoming: The next of them, if it was taken out already.
        since: When its seconds were last noted, in seconds of `time.monotonic`; None before it has begun.
    """

    first: ImageRequest
    missing: Iterator[int]
    upcoming: int | None = None
    since: float | None = None

    def next_image(self) -> int | None:
        """Return the number of the next image, and None after the last; it stays next until `upcoming` is cleared."""
        if self.upcoming is None:
            self.upcoming = next(self.missing, None)
        return self.upcoming


class Jobs:
    """Runs jobs on an engine, one after the other, on a thread of its own; any thread may call the other methods.

    Jobs yield to other requests, which share the engine's calls with their images: these are few at a time, one while
    other images run or wait, and none are added while other images fill the calls by themselves.

    Used as a context manager: the thread runs during the block, and images that are not finished by its end are made
    again after the next start. Stop the engine first, so that running images are finished.

    Args:
        store: The folder of the jobs; it is closed at the end.
        engine: The engine; to be started before the thread is.

    Raises:
        InputError: If a job's file is damaged.
    """

    def __init__(self, store: JobStore, engine: ImageEngine) -> None:
        self._store, self._engine = store, engine
        self._landed: queue.SimpleQueue[Landed | Literal["look", "close"]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="adadiff jobs", daemon=True)
        self._lock = threading.RLock()  # guards all that follows, and the files of the jobs
        self._records = {record.id: record for record in store.load()}
        self._unfinished: dict[str, Unfinished] = {}
        self._flying: dict[tuple[str, int], Ticket] = {}  # images on the engine, or to be written
        for record in list(self._records.values()):
            if record.ended is None and record.done == record.n:  # killed before this was noted
                self._end(record.id, "finished")
            elif record.ended is None:
                self._unfinished[record.id] = self._unfinished_job(record)

    def __enter__(self) -> Jobs:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._landed.put("close")
        self._thread.join()
        self._store.close()

    # --- for the API --------------------------------------------------------------------------------------------------

    def create(self, planned: PlannedRequest, n: int) -> JobInfo:
        """Make a job of n images, the first of which is the planned one.

        Raises:
            ApiError: If too many jobs are unfinished.
        """
        first = planned.images
        record = JobRecord(
            id=f"job_{secrets.token_hex(6)}",
            created=time.time(),
            n=n,
            seed=first.seeds[0],
            class_label=first.class_label,
            prompt=first.prompt,
            negative_prompt=first.negative_prompt,
            plan=planned.plan,
            sampling=first.plan.describe(),
            warning=planned.warning,
        )
        with self._lock:
            if len(self._unfinished) >= MOST_UNFINISHED:
                message = f"{MOST_UNFINISHED} jobs are unfinished: cancel one, or wait until one has finished"
                raise ApiError(429, message, "too_many_jobs")
            self._store.add(record)
            self._records[record.id] = record
            self._unfinished[record.id] = self._unfinished_job(record)
        self._landed.put("look")
        return self.info(record.id)

    def all(self) -> list[JobInfo]:
        """Return all jobs, the oldest first."""
        with self._lock:
            return [self.info(name) for name in self._records]

    def info(self, name: str) -> JobInfo:
        """Return how far a job is.

        Raises:
            ApiError: If there is no such job; as the other methods.
        """
        with self._lock:
            record, job = self._record(name), self._unfinished.get(name)
            begun = job is not None and job.since is not None
            return JobInfo(
                id=record.id,
                created=int(record.created),
                state=record.ended or ("running" if begun else "queued"),
                done=record.done,
                n=record.n,
                seconds=round(self._seconds(name), 3),
                message=record.message,
                seed=record.seed,
                class_label=record.class_label,
                prompt=record.prompt,
                negative_prompt=record.negative_prompt,
                plan=record.plan,
                steps=record.sampling["steps"],
                guidance_scale=record.sampling["guidance"]["scale"],
                warning=record.warning,
            )

    def cancel(self, name: str) -> JobInfo:
        """End a job; its images so far are kept."""
        with self._lock:
            ended = self._record(name).ended
            if ended is not None:
                raise ApiError(409, f"the job is {ended}: only one that waits or runs can be cancelled", "job_ended")
            self._end(name, "cancelled")
            return self.info(name)

    def delete(self, name: str) -> None:
        """Remove a job that has ended, and its images."""
        with self._lock:
            record = self._record(name)
            if name in self._unfinished:
                raise ApiError(409, "the job has not ended: cancel it first", "job_unfinished")
            doomed = self._store.discard(record)
            del self._records[name]
        self._store.clear(doomed)

    def images(self, name: str) -> list[Path]:
        """Return the files of the images made so far, in order."""
        with self._lock:
            return self._store.images(self._record(name))

    def _record(self, name: str) -> JobRecord:
        if name not in self._records:
            raise ApiError(404, "there is no such job: GET /v1/jobs lists those that there are", "job_not_found")
        return self._records[name]

    # --- the state of a job -------------------------------------------------------------------------------------------

    def _unfinished_job(self, record: JobRecord) -> Unfinished:
        missing = (k for k in range(record.n) if not self._store.has_image(record, k))
        return Unfinished(record.first_image(), missing)

    def _seconds(self, name: str) -> float:
        job = self._unfinished.get(name)
        running = 0.0 if job is None or job.since is None else time.monotonic() - job.since
        return self._records[name].seconds + running

    def _end(self, name: str, ended: Ended, message: str | None = None, noted: bool = True) -> None:
        """End a job: write it down, unless it is to go on after a restart, and give up what still runs of it."""
        changes = {"ended": ended, "message": message, "seconds": self._seconds(name)}
        record = self._records[name].model_copy(update=changes)
        if noted:
            self._store.save(record)
        self._records[name] = record
        self._unfinished.pop(name, None)
        for key in [key for key in self._flying if key[0] == name]:
            self._engine.cancel(self._flying.pop(key))

    def _fail(self, name: str, message: str) -> None:
        with suppress(OSError):
            self._end(name, "failed", message)
            return
        self._end(name, "failed", message, noted=False)

    def _break(self, name: str, k: int, error: Exception) -> None:
        """Fail a job because of an error that nobody has foreseen; the other jobs go on."""
        logger.error(f"{name} has failed at image {k}", exc_info=error)
        reason = one_line(error)
        with self._lock:
            if name in self._unfinished:
                self._fail(name, f"image {k} could not be made ({reason}): the service's log says more")

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Submit images and write those that are finished, until the end."""
        while True:
            self._fill()
            try:
                landed = self._landed.get(timeout=LOOK if self._unfinished else None)
            except queue.Empty:
                continue
            if landed == "close":
                break
            if landed != "look":
                try:
                    self._take(*landed)
                except Exception as error:
                    self._break(*landed[:2], error)
        with self._lock, suppress(OSError):  # the seconds alone would be lost
            for ticket in self._flying.values():
                self._engine.cancel(ticket)
            for name, job in self._unfinished.items():
                if job.since is not None:
                    self._note(name, job)

    def _has_room(self) -> bool:
        """Return whether one more image delays others little, and not too many wait to be written."""
        state, width = self._engine.state, self._engine.batching.width
        others = max(0, len(state.running) + state.waiting - len(self._flying))
        most = 1 if others else max(1, width // SHARE)
        return state.ready and others < width and len(self._flying) < most

    def _fill(self) -> None:
        """Submit images while there is room."""
        while self._unfinished and self._has_room():
            with self._lock:
                jobs = ((name, job, job.next_image()) for name, job in self._unfinished.items())
                name, job, k = next((each for each in jobs if each[2] is not None), (None, None, None))
                if name is None or job is None or k is None:
                    return
                seed = job.first.seeds[0] + k
                try:
                    ticket = self._engine.submit(replace(job.first, seeds=(seed,)), partial(self._land, name, k))
                except (Overloaded, Stopped):
                    return
                except InputError as error:
                    self._fail(name, f"image {k} (seed {seed}): {error}")
                    continue
                except Exception as error:
                    self._break(name, k, error)
                    continue
                self._flying[name, k], job.upcoming = ticket, None
                if job.since is None:
                    job.since = time.monotonic()

    def _land(self, name: str, k: int, event: Event) -> None:
        """Hand an image that has ended from the engine's thread to the runner's."""
        self._landed.put((name, k, event))

    def _take(self, name: str, k: int, event: Event) -> None:
        """Write an image that is finished; end the job if it was the last, or has failed."""
        if isinstance(event, Finished):
            self._fill()  # the engine has a free slot, while the image is written
            content = image_file(event.pixels)
        with self._lock:
            if (name, k) not in self._flying:  # cancelled meanwhile
                return
            record, job = self._records[name], self._unfinished[name]
            if isinstance(event, Failed):
                del self._flying[name, k]
                if event.cause == "image":  # else the job goes on after a restart
                    self._fail(name, f"image {k} (seed {record.seed + k}): {event.message}")
                return
            try:
                self._store.write_image(record, k, content)
                del self._flying[name, k]
                self._records[name] = record = record.model_copy(update={"done": record.done + 1})
                if record.done == record.n:
                    self._end(name, "finished")
                elif job.since is not None and time.monotonic() - job.since > NOTE:
                    self._note(name, job)
            except OSError as error:
                logger.exception(f"{name} has stopped")
                reason = (error.strerror or str(error)).lower()
                message = f"image {k} could not be written ({reason}): start the service again, and the job goes on"
                self._end(name, "failed", message, noted=False)

    def _note(self, name: str, job: Unfinished) -> None:
        """Write down how long a job has run."""
        record = self._records[name].model_copy(update={"seconds": self._seconds(name)})
        self._store.save(record)
        self._records[name], job.since = record, time.monotonic()
