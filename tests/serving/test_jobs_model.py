"""Jobs on a small model: the bytes of plain requests, the plan that a job began with, an image that fails."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx2
import pytest
import torch

from adadiff import AdaDiffPipeline, CorrectedScheduleExit
from adadiff.sampling import Guidance, SamplingPlan
from adadiff.sampling.folder import describe_pipeline
from adadiff.serving.engine import Engine
from adadiff.serving.job_store import JobStore
from adadiff.serving.jobs import Jobs
from adadiff.serving.running import NOT_FINITE
from adadiff.serving.served import ServedModel
from tests.serving.conftest import generate, serving
from tests.serving.scripted import ScriptedEngine
from tests.serving.test_jobs import MODEL, downloaded, make, until

PLAN = SamplingPlan(6, CorrectedScheduleExit((5, 1, 5, 1, 2, 5)), Guidance(2.0), scheduler="dpm-solver++")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def planned(class_pipeline: AdaDiffPipeline) -> AdaDiffPipeline:
    return class_pipeline.with_plan(PLAN)


def test_images_are_the_bytes_of_plain_requests_among_which_they_run(planned, folder):
    engine = Engine(planned, slots=6, width=4)
    jobs = Jobs(JobStore(folder, describe_pipeline(planned)), engine)
    engine.start()
    served = ServedModel("animals", planned)
    with jobs, serving(engine, served, None, jobs) as address, httpx2.Client(base_url=address, timeout=30) as client:
        name = make(client, 25, seed=70)
        answers = [generate(client, n=5, seed=70 + first, response_format="b64_json") for first in range(0, 25, 5)]
        done = until(client, name, "finished")
        files = downloaded(client, name)
        engine.stop(0)
    plain = [image["b64_json"] for answer in answers for image in answer.json()["data"]]
    assert done["steps"] == PLAN.steps
    assert done["guidance_scale"] == 2
    assert [files[f"{k:06d}.png"] for k in range(25)] == [base64.b64decode(image) for image in plain]
    assert len(set(files.values())) == 25


def test_the_plan_is_the_one_the_job_was_made_with(planned, folder):
    """A model that is calibrated again meanwhile has other exits, which a job that goes on must not mix in."""
    served, engine = ServedModel("animals", planned), ScriptedEngine(stopped=True)
    with Jobs(JobStore(folder, MODEL), engine) as jobs, serving(engine, served, None, jobs) as address:
        name = make(httpx2.Client(base_url=address), 1)
    other = ScriptedEngine()
    calibrated = ServedModel("animals", planned.with_plan(SamplingPlan(3)))
    with Jobs(JobStore(folder, MODEL), other) as jobs, serving(other, calibrated, None, jobs) as address:
        until(httpx2.Client(base_url=address), name, "finished")
    plan = other.tickets[0].request.plan
    assert plan.policy == PLAN.policy
    assert (plan.steps, plan.guidance, plan.scheduler) == (PLAN.steps, PLAN.guidance, PLAN.scheduler)


def test_nan_names_the_image(planned, folder):
    engine = Engine(planned, slots=4, width=2)
    jobs = Jobs(JobStore(folder, describe_pipeline(planned)), engine)
    engine.start()
    served = ServedModel("animals", planned)
    with jobs, serving(engine, served, None, jobs) as address, httpx2.Client(base_url=address, timeout=30) as client:
        with torch.no_grad():
            next(planned.transformer.parameters()).fill_(float("nan"))
        failed = until(client, make(client, 50, seed=4), "failed")
        engine.stop(0)
    assert failed["message"] == f"image {failed['done']} (seed {4 + failed['done']}): {NOT_FINITE}"
