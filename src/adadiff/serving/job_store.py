"""Jobs on disk: a folder of jobs, each a folder of its own with what was asked and the images made so far."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from adadiff.sampling.images import image_path
from adadiff.sampling.plan import plan_from
from adadiff.serving.requests import ImageRequest
from adadiff.utils.errors import InputError
from adadiff.utils.files import LOCK, atomic_folder, claim_folder, part_path, read_json, write_bytes, write_json

MODEL = "model.json"
RECORD = "job.json"
HOLDS = "jobs for a model"
JOB = re.compile(r"job_[0-9a-f]{12}")
PART = re.compile(r"\.job_[0-9a-f]{12}\.part")
IMAGE = re.compile(r"\d{6}\.png")


class JobRecord(BaseModel):
    """What a job's `job.json` says: all that its images depend on, and how it ended.

    Args:
        id: Name of the job and of its folder.
        created: Unix time in seconds.
        n: Number of images.
        seed: Image k is made from seed + k alone.
        class_label: Index of the class, where the model takes classes.
        prompt: Text, where the model takes text.
        negative_prompt: What guidance leads away from.
        plan: The plan as the request named it.
        sampling: The plan as it was then, in plain values; a later calibration of the model does not change the job.
        warning: What there is to say of the plan, or None.
        ended: How the job ended; None before.
        message: Why it failed.
        done: Images made.
        seconds: Seconds for which it has run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    created: float
    n: int
    seed: int
    class_label: int | str | None
    prompt: str | None
    negative_prompt: str | None
    plan: str | float
    sampling: dict[str, Any]
    warning: str | None
    ended: Literal["finished", "cancelled", "failed"] | None = None
    message: str | None = None
    done: int = 0
    seconds: float = 0.0

    def first_image(self) -> ImageRequest:
        """Return the request for the job's first image.

        Raises:
            InputError: If the stored plan is none.
        """
        return ImageRequest(
            seeds=(self.seed,),
            plan=plan_from(self.sampling),
            class_label=self.class_label,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
        )


class JobStore:
    """Keeps jobs in a folder that belongs to one model and one process; all writing is atomic.

    Args:
        folder: A new or empty folder, or one of earlier jobs of the same model.
        model: The model in plain values, as `describe_pipeline` returns them.

    Raises:
        InputError: If the folder holds other files or jobs of another model, or another process uses it.
    """

    def __init__(self, folder: Path, model: dict[str, Any]) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is no folder: choose one for the jobs")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / LOCK, blocking=False)
            self._lock.acquire()
        except Timeout as error:
            raise InputError(
                f"another process uses {folder} for its jobs: stop it, or choose another folder for these"
            ) from error
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}): choose another folder") from error
        try:
            claim_folder(folder, MODEL, model, HOLDS)
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes use the folder."""
        self._lock.release()

    def load(self) -> list[JobRecord]:
        """Read all jobs, the oldest first, with the images counted that a killed process has left no note of.

        What such a process left of half-made or deleted jobs is cleared away.

        Raises:
            InputError: If a job's file is damaged.
        """
        with os.scandir(self.folder) as entries:
            names = [entry.name for entry in entries]
        for name in filter(PART.fullmatch, names):
            self.clear(self.folder / name)
        records = [self._read(name) for name in filter(JOB.fullmatch, names)]
        return sorted(records, key=lambda record: (record.created, record.id))

    def _read(self, name: str) -> JobRecord:
        path = self.folder / name / RECORD
        try:
            record = JobRecord.model_validate(read_json(path))
            record.first_image()
            return record if record.ended else record.model_copy(update={"done": len(self.images(record))})
        except (OSError, ValidationError, LookupError, TypeError, InputError) as error:
            raise InputError(
                f"{path} is missing or damaged: move {self.folder / name} away, and start the service again"
            ) from error

    def add(self, record: JobRecord) -> None:
        """Make a new job's folder."""
        with atomic_folder(self.folder / record.id) as part:
            write_json(part / RECORD, record.model_dump())

    def save(self, record: JobRecord) -> None:
        """Write how far a job is."""
        write_json(self.folder / record.id / RECORD, record.model_dump())

    def discard(self, record: JobRecord) -> Path:
        """Take a job out, atomically, and return the folder that `clear` then deletes."""
        doomed = part_path(self.folder / record.id)
        (self.folder / record.id).rename(doomed)
        return doomed

    def clear(self, doomed: Path) -> None:
        """Delete a folder; what is left of it if the process is killed meanwhile, the next one deletes."""
        shutil.rmtree(doomed, ignore_errors=True)

    def has_image(self, record: JobRecord, k: int) -> bool:
        """Return whether image k is there."""
        return image_path(self.folder / record.id, k).exists()

    def write_image(self, record: JobRecord, k: int, content: bytes) -> None:
        """Write the file of image k."""
        write_bytes(image_path(self.folder / record.id, k), content)

    def images(self, record: JobRecord) -> list[Path]:
        """Return the files of the images made so far, in order."""
        folder = self.folder / record.id
        with os.scandir(folder) as entries:
            return [folder / name for name in sorted(entry.name for entry in entries) if IMAGE.fullmatch(name)]
