"""The jobs of the HTTP API: make, list, follow, cancel, download, delete."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from adadiff.serving.errors import ApiError
from adadiff.serving.jobs import Jobs
from adadiff.serving.protocol import ErrorResponse, GenerationRequest, JobDeleted, JobInfo, JobList, JobRequest
from adadiff.serving.served import PlannedRequest

CHUNK = 256 * 1024  # bytes of a download that are sent at a time
READABLE = 0o644 << 16  # a file's permissions in a zip
CONFLICT = {"model": ErrorResponse, "description": "The job has ended, or has not."}
ZIP: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": {}}}}


def job_routes(
    jobs: Jobs | None,
    plan: Callable[[GenerationRequest], Awaitable[PlannedRequest]],
    require_model: Callable[[str | None], None],
    errors: dict[int | str, dict[str, Any]],
) -> APIRouter:
    """Build the routes under `/v1/jobs`; they run in threads, as they read and write files.

    Args:
        jobs: The jobs; None if they are turned off.
        plan: Checks a request and returns what the engine runs for it.
        require_model: Raises ApiError if a request names another model.
        errors: Descriptions of the errors by status.
    """
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses={404: errors[404]})

    def turned_on() -> Jobs:
        if jobs is None:
            message = "jobs are turned off: start the service with --jobs FOLDER to turn them on"
            raise ApiError(404, message, "jobs_off")
        return jobs

    @router.post("", responses={code: errors[code] for code in (400, 429)})
    async def create(body: JobRequest) -> JobInfo:
        """Make a job of many images, which goes on after a restart of the service."""
        running = turned_on()
        require_model(body.model)
        settings = body.model_dump(exclude={"n"})
        planned = await plan(GenerationRequest.model_validate(settings))
        return await asyncio.to_thread(running.create, planned, body.n)

    @router.get("")
    def list_jobs() -> JobList:
        """List all jobs, the oldest first."""
        return JobList(data=turned_on().all())

    @router.get("/{name}")
    def one_job(name: str) -> JobInfo:
        """Say how far a job is."""
        return turned_on().info(name)

    @router.post("/{name}/cancel", responses={409: CONFLICT})
    def cancel(name: str) -> JobInfo:
        """End a job that waits or runs; its images so far are kept."""
        return turned_on().cancel(name)

    @router.get("/{name}/download", response_class=Response, responses=ZIP)
    def download(name: str) -> StreamingResponse:
        """Send the images made so far in a zip."""
        images = turned_on().images(name)
        headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
        return StreamingResponse(zipped(images), media_type="application/zip", headers=headers)

    @router.delete("/{name}", responses={409: CONFLICT})
    def delete(name: str) -> JobDeleted:
        """Remove a job that has ended, and its images."""
        turned_on().delete(name)
        return JobDeleted(id=name)

    return router


class _Outbox:
    """A file that a zip is written to, and whose content is taken out as it grows."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes, /) -> int:
        self.content += data
        return len(data)

    def flush(self) -> None:
        """Do nothing: there is no more to write to."""

    def close(self) -> None:
        """Do nothing: the content is still to be taken."""

    def take(self) -> bytes:
        taken, self.content = bytes(self.content), bytearray()
        return taken


def zipped(paths: Iterable[Path]) -> Iterator[bytes]:
    """Yield a zip of files, uncompressed, in parts; the same files give the same bytes."""
    outbox = _Outbox()
    with ZipFile(outbox, "w") as archive:
        for path in paths:
            entry = ZipInfo(path.name)
            entry.external_attr = READABLE
            archive.writestr(entry, path.read_bytes())
            if len(outbox.content) >= CHUNK:
                yield outbox.take()
    yield outbox.take()
