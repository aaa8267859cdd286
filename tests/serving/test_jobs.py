"""Jobs: the images of plain requests, in the room that these leave, whatever happens on the way."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adadiff.serving.images import image_file
from adadiff.serving.job_store import JobStore
from adadiff.serving.jobs import MOST_UNFINISHED, Jobs
from adadiff.serving.running import NOT_FINITE
from adadiff.serving.served import ServedModel
from adadiff.utils.errors import InputError
from tests.serving.conftest import eventually, generate, serving
from tests.serving.scripted import ScriptedEngine, drawn

MODEL = {"model": {"fingerprint": "a"}}

Start = Callable[..., httpx2.Client]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def start(engine: ScriptedEngine, served: ServedModel, folder: Path) -> Iterator[Start]:
    """Start a service with jobs, once or again; the one before it is ended, as a restart does."""
    with ExitStack() as stack:

        def start(engine: Any = engine, served: ServedModel = served, key: str | None = None) -> httpx2.Client:
            stack.close()
            jobs = stack.enter_context(Jobs(JobStore(folder, MODEL), engine))
            address = stack.enter_context(serving(engine, served, key, jobs))
            return stack.enter_context(httpx2.Client(base_url=address, timeout=20))

        yield start
        engine.gate.set()


def make(client: httpx2.Client, n: int, **body: Any) -> str:
    """Make a job of cats, and return its id."""
    answer = client.post("/v1/jobs", json={"class_label": "cat", "n": n, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def job(client: httpx2.Client, name: str) -> dict[str, Any]:
    return client.get(f"/v1/jobs/{name}").json()


def until(client: httpx2.Client, name: str, state: str) -> dict[str, Any]:
    eventually(lambda: job(client, name)["state"] == state, 30)
    return job(client, name)


def downloaded(client: httpx2.Client, name: str) -> dict[str, bytes]:
    answer = client.get(f"/v1/jobs/{name}/download")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        return {entry: archive.read(entry) for entry in archive.namelist()}


def of_seed(seed: int) -> bytes:
    return image_file(drawn(seed, (1, 8, 8)))


# --- what a client sees -----------------------------------------------------------------------------------------------


def test_a_job_makes_the_images_of_its_seeds(start, folder):
    client = start()
    name = make(client, 5, seed=40, num_inference_steps=9, guidance_scale=3)
    done = until(client, name, "finished")
    expected = {"n": 5, "done": 5, "seed": 40, "class_label": 0, "steps": 9, "guidance_scale": 3, "message": None}
    assert {key: done[key] for key in expected} == expected
    assert downloaded(client, name) == {f"{k:06d}.png": of_seed(40 + k) for k in range(5)}
    assert client.get("/v1/jobs").json() == {"object": "list", "data": [done]}
    assert sorted(path.name for path in (folder / name).iterdir()) == [f"{k:06d}.png" for k in range(5)] + ["job.json"]


def test_a_drawn_seed_is_kept(start):
    client = start()
    first, second = make(client, 1), make(client, 1)
    until(client, second, "finished")
    assert job(client, first)["seed"] != job(client, second)["seed"]
    assert downloaded(client, first) == {"000000.png": of_seed(job(client, first)["seed"])}


def test_jobs_run_one_after_the_other(start, engine):
    engine.gate.clear()
    client = start()
    first, second = make(client, 2, seed=0), make(client, 1, seed=100)
    eventually(lambda: job(client, first)["state"] == "running")
    assert job(client, second)["state"] == "queued"
    assert [each["id"] for each in client.get("/v1/jobs").json()["data"]] == [first, second]
    engine.gate.set()
    until(client, second, "finished")
    assert [ticket.request.seeds for ticket in engine.tickets] == [(0,), (1,), (100,)]


def test_cancel_keeps_what_there_is_and_frees_the_slots(start, engine):
    engine.gate.clear()
    client = start()
    name = make(client, 1000)
    eventually(lambda: engine.open)
    assert client.post(f"/v1/jobs/{name}/cancel").json()["state"] == "cancelled"
    eventually(lambda: engine.cancelled == [0])
    engine.gate.set()
    assert generate(client).status_code == 200
    assert len(engine.tickets) == 2
    assert downloaded(client, name) == {}
    again = client.post(f"/v1/jobs/{name}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "job_ended")
    assert job(start(), name)["state"] == "cancelled"


def test_a_job_that_has_ended_is_deleted(start, engine, folder):
    engine.gate.clear()
    client = start()
    name = make(client, 3)
    refused = client.delete(f"/v1/jobs/{name}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_unfinished")
    engine.gate.set()
    until(client, name, "finished")
    assert client.delete(f"/v1/jobs/{name}").json() == {"id": name, "object": "job", "deleted": True}
    assert job(client, name)["error"]["code"] == "job_not_found"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    assert start().get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("name", ["job_000000000000", "x", "..", "%2e%2e", "..%2f..%2fmodel.json", "a" * 5000])
def test_unknown_jobs_are_404(start, name):
    client = start()
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/download"), ("DELETE", "")):
        answer = client.request(method, f"/v1/jobs/{name}{path}")
        assert answer.status_code in ((404, 405) if "." in name or "%" in name else (404,))
        assert set(answer.json()["error"]) == {"message", "type", "code"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "n: field required"),
        ({"n": 0}, 400, "n: input should be greater than or equal to 1"),
        ({"n": 100_001}, 400, "n: input should be less than or equal to 100000"),
        ({"n": 5, "class_label": "cta"}, 400, "did you mean cat"),
        ({"n": 5, "prompt": "dog"}, 400, "either as class_label or as prompt"),
        ({"n": 5, "stream": True}, 400, "there is no setting 'stream': choose from model, prompt, class_label"),
        ({"n": 5, "plan": 0.5}, 400, "plan: no plan of the model takes at most 0.5 of the full model's compute"),
        ({"n": 5, "model": "other"}, 404, "there is no model 'other' here"),
    ],
)
def test_bad_input_is_one_clear_sentence(start, engine, folder, body, status, message):
    answer = start().post("/v1/jobs", json={"class_label": "cat", **body})
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert engine.tickets == []
    assert [path for path in folder.iterdir() if path.is_dir()] == []


def test_there_is_a_limit_on_unfinished_jobs(start, engine):
    engine.gate.clear()
    client = start()
    for _ in range(MOST_UNFINISHED):
        name = make(client, 1)
    answer = client.post("/v1/jobs", json={"class_label": "cat", "n": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_jobs")
    client.post(f"/v1/jobs/{name}/cancel")
    make(client, 1)


def test_without_a_folder_jobs_are_turned_off(client):
    for method, path in (("GET", ""), ("GET", "/x"), ("POST", "/x/cancel"), ("GET", "/x/download"), ("DELETE", "/x")):
        answer = client.request(method, f"/v1/jobs{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "jobs_off")
    answer = client.post("/v1/jobs", json={"class_label": "cat", "n": 1})
    assert "--jobs FOLDER" in answer.json()["error"]["message"]


def test_the_key_guards_jobs(start):
    client = start(key="secret")
    assert client.get("/v1/jobs").status_code == 401
    assert client.post("/v1/jobs", json={"class_label": "cat", "n": 1}).status_code == 401
    client.headers["Authorization"] = "Bearer secret"
    assert client.get("/v1/jobs").json()["data"] == []


# --- room, failures, restarts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "width", "waiting", "room"),
    [(32, 16, 0, 4), (8, 8, 0, 2), (8, 8, 3, 1), (8, 4, 4, 0), (1, 1, 0, 1), (1, 1, 1, 0)],
)
def test_a_job_takes_the_room_that_others_leave(start, engine, slots, width, waiting, room):
    engine.gate.clear()
    engine.slots, engine.batching, engine.waiting = slots, type(engine.batching)("mixed", width), waiting
    client = start()
    name = make(client, 20)
    eventually(lambda: len(engine.tickets) == room)
    threading.Event().wait(0.2)  # it would go on by now
    assert len(engine.tickets) == room
    engine.waiting = 0
    engine.gate.set()
    until(client, name, "finished")


def test_an_overloaded_engine_is_waited_for(start, engine):
    engine.overloaded = 9.0
    client = start()
    name = make(client, 3, seed=5)
    eventually(lambda: engine.rejected >= 2)
    assert job(client, name)["state"] == "queued"
    engine.overloaded = None
    until(client, name, "finished")
    assert [ticket.request.seeds for ticket in engine.tickets] == [(5,), (6,), (7,)]


def test_a_failed_image_fails_its_job_and_is_named(start, engine):
    client = start()
    whole = make(client, 2)
    until(client, whole, "finished")
    engine.failure = NOT_FINITE
    failed = until(client, make(client, 9, seed=5), "failed")
    assert failed["message"] == f"image 0 (seed 5): {NOT_FINITE}"
    engine.failure = None
    until(client, make(client, 2), "finished")
    assert job(start(), failed["id"])["message"] == failed["message"]


@pytest.mark.parametrize("place", ["submit", "write_image"])
def test_an_error_that_nobody_foresaw_fails_its_job_and_the_next_one_runs(start, engine, monkeypatch, place):
    def broken(*arguments: Any) -> Any:
        raise KeyError("gone")

    client = start()
    with monkeypatch.context() as patch:
        patch.setattr(engine if place == "submit" else JobStore, place, broken)
        failed = until(client, make(client, 4, seed=3), "failed")
    assert failed["message"] == "image 0 could not be made ('gone'): the service's log says more"
    until(client, make(client, 2), "finished")
    assert job(start(), failed["id"])["message"] == failed["message"]


def test_an_image_that_the_engine_died_of_fails_its_job_while_the_engine_is_started_again(start, engine):
    client = start()
    engine.gate.clear()
    engine.failure = "the engine's process died twice"
    name = make(client, 3, seed=5)
    eventually(lambda: engine.tickets)
    engine.restarting = 3.0
    engine.gate.set()
    assert until(client, name, "failed")["message"] == "image 0 (seed 5): the engine's process died twice"


def test_a_full_disk_stops_a_job_until_the_restart(start, engine, monkeypatch):
    def full(store: JobStore, record: Any, k: int, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    client = start()
    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "write_image", full)
        failed = until(client, make(client, 4, seed=3), "failed")
    assert "could not be written (no space left on device): start the service again" in failed["message"]
    client = start()
    until(client, failed["id"], "finished")
    assert downloaded(client, failed["id"]) == {f"{k:06d}.png": of_seed(3 + k) for k in range(4)}


def test_a_stopped_engine_fails_no_job_and_a_restart_makes_only_what_is_missing(start, engine, served, folder):
    client = start()
    name = make(client, 30, seed=1)
    eventually(lambda: job(client, name)["done"] >= 4)
    engine.stopped, engine.failure = True, "the service was stopped before the image was finished"
    eventually(lambda: not engine.open)
    assert job(client, name)["state"] == "running"
    files = {path: path.stat().st_mtime_ns for path in (folder / name).glob("0*.png")}
    other = ScriptedEngine()
    client = start(other)
    until(client, name, "finished")
    assert downloaded(client, name) == {f"{k:06d}.png": of_seed(1 + k) for k in range(30)}
    first, second = ({seed for each in made.tickets for seed in each.request.seeds} for made in (engine, other))
    assert first | second == set(range(1, 31))
    assert second.isdisjoint(1 + int(path.stem) for path in files)
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_leftovers_of_a_killed_process_are_cleared_away(start, folder):
    client = start()
    name = make(client, 3, seed=8)
    until(client, name, "finished")
    record = json.loads((folder / name / "job.json").read_text())
    (folder / name / "job.json").write_text(json.dumps({**record, "ended": None, "done": 0}))
    (folder / name / "000001.png").unlink()
    (folder / name / ".000001.part.png").write_bytes(b"half")
    (folder / ".job_0123456789ab.part").mkdir()
    client = start()
    until(client, name, "finished")
    assert downloaded(client, name) == {f"{k:06d}.png": of_seed(8 + k) for k in range(3)}
    assert sorted(path.name for path in folder.iterdir()) == [".lock", name, "model.json"]
    (folder / name / "job.json").write_text(json.dumps({**record, "ended": None, "done": 2}))
    assert job(start(), name)["state"] == "finished"


def test_folders_that_cannot_be_used_are_refused(folder, tmp_path):
    store = JobStore(folder, MODEL)
    with pytest.raises(InputError, match=f"another process uses {folder} for its jobs"):
        JobStore(folder, MODEL)
    store.close()
    with pytest.raises(InputError, match=r"holds jobs for a model with model.fingerprint = a, not b"):
        JobStore(folder, {"model": {"fingerprint": "b"}})
    JobStore(folder, MODEL).close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="already holds other files"):
        JobStore(tmp_path / "other", MODEL)
    with pytest.raises(InputError, match="is no folder"):
        JobStore(tmp_path / "other" / "file", MODEL)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": 1}', None])
def test_damaged_jobs_are_named(start, folder, content):
    client = start()
    name = make(client, 1)
    until(client, name, "finished")
    path = folder / name / "job.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=rf"{path} is missing or damaged: move .*{name} away"):
        start()
