"""The isolated engine: its process may die at any moment, and those who asked for images do not notice."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adadiff import NeverExit
from adadiff.sampling import Guidance, SamplingPlan
from adadiff.serving.engine import Engine
from adadiff.serving.engine_process import Begun, EngineOptions, EngineProcess, Progress, Submit
from adadiff.serving.images import image_file
from adadiff.serving.isolation import IsolatedEngine
from adadiff.serving.requests import (
    STOPPED,
    Failed,
    Finished,
    ImageRequest,
    Overloaded,
    Preview,
    Restarting,
    Stopped,
    Ticket,
)
from adadiff.serving.served import ServedModel
from adadiff.utils.errors import InputError
from tests.serving.conftest import eventually, generate, serving
from tests.serving.isolated import CAT, DOG, OWL, scripted_pipeline
from tests.serving.traffic import PATIENCE, Listener, class_pipeline, corrected

PLAN = SamplingPlan(30, corrected(30), Guidance(2.0), "dpm-solver++")
SHORT = SamplingPlan(2, NeverExit(), Guidance(2.0), "ddim")

Start = Callable[..., IsolatedEngine]


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Let processes begin with all imports."""
    forkserver.set_forkserver_preload(["tests.serving.isolated", "adadiff.serving.engine_process"])
    forkserver.ensure_running()


def isolated(folder: Path, **options: Any) -> IsolatedEngine:
    settings = {"slots": 4, "width": 2, "max_wait": 1e6, **options}
    return IsolatedEngine(class_pipeline(), partial(scripted_pipeline, folder), **settings)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an engine, stops it after the test, and then looks for its process."""
    engines: list[IsolatedEngine] = []

    def started(**options: Any) -> IsolatedEngine:
        engines.append(isolated(tmp_path, **options))
        engines[-1].start()
        return engines[-1]

    yield started
    for file in tmp_path.iterdir():
        file.unlink()
    for engine in engines:
        engine.stop(0)
        assert not is_running(engine.pid)


def is_running(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill(engine: IsolatedEngine) -> None:
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)


def submit(engine: Any, *seeds: int, plan: SamplingPlan = PLAN, label: int = CAT, previews: int = 0) -> Any:
    listener = Listener(len(seeds))
    return engine.submit(ImageRequest(seeds, plan, label, previews=previews), listener), listener


def files(ended: dict[int, Finished | Failed]) -> list[bytes]:
    assert all(isinstance(image, Finished) for image in ended.values()), ended
    return [image_file(image.pixels) for _, image in sorted(ended.items())]  # type: ignore[union-attr]


# --- deaths -----------------------------------------------------------------------------------------------------------


def test_all_requests_survive_a_kill_with_the_same_bytes(start: Start) -> None:
    engine, asked = start(), [(1, 2, 3), (4,), (5, 6), (7, 8), (9,)]
    began = time.monotonic()
    listeners = [submit(engine, *seeds, label=DOG, previews=3)[1] for seeds in asked]
    eventually(lambda: any(isinstance(event, Finished) for event in listeners[0].events), 30)
    assert len(listeners[-1].events) < 4, "the kill comes too late"
    kill(engine)
    ended = [listener.wait() for listener in listeners]
    seconds = time.monotonic() - began
    state = engine.state
    assert (state.restarts, state.alive, state.ready, state.restarting) == (1, True, True, False)

    plain = Engine(class_pipeline(), slots=4, width=2, max_wait=1e6)
    plain.start()
    expected = [submit(plain, *seeds, label=DOG)[1].wait() for seeds in asked]
    plain.stop(0)
    assert [files(images) for images in ended] == [files(images) for images in expected]
    for listener, images, plainly in zip(listeners, ended, expected, strict=True):
        for image, last in images.items():
            own = [event for event in listener.events if event.image == image]
            assert [event.step for event in own if isinstance(event, Preview)] == [7, 15, 22]  # none of them twice
            assert own[-1] is last
            assert isinstance(last, Finished)
            assert last.exit_layers == plainly[image].exit_layers  # type: ignore[union-attr]
            assert 0 < last.seconds <= seconds


def test_meanwhile_nothing_is_taken_and_the_service_says_so(start: Start, tmp_path: Path) -> None:
    engine = start()
    with (
        serving(engine, ServedModel("animals", class_pipeline())) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        assert client.get("/health").json() == client.get("/ready").json() == {"status": "ok"}
        (tmp_path / "load").touch()
        _, listener = submit(engine, 1)
        gone, given_up = submit(engine, 2)
        kill(engine)
        eventually(lambda: engine.state.restarting)
        assert client.get("/health").json() == {"status": "restarting"}
        assert (client.get("/ready").status_code, client.get("/ready").json()["error"]["code"]) == (503, "restarting")
        refused = generate(client)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "restarting")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "adadiff_engine_restarts_total 1.0" in client.get("/metrics").text
        assert client.get("/v1/engine").json()["waiting"] == 2
        with pytest.raises(Restarting):
            submit(engine, 3)
        engine.cancel(gone)
        (tmp_path / "load").unlink()
        assert isinstance(listener.wait()[0], Finished)
        eventually(lambda: client.get("/ready").status_code == 200)
        assert generate(client, num_inference_steps=2).status_code == 200
        assert given_up.events == []


@pytest.mark.parametrize(("fate", "reason"), [("error", "the device is gone"), ("kill", "SIGKILL")])
def test_a_request_on_its_way_at_two_deaths_fails_alone(start: Start, tmp_path: Path, fate: str, reason: str) -> None:
    engine = start(slots=1)
    (tmp_path / "owl").write_text(fate)
    with (
        serving(engine, ServedModel("animals", class_pipeline())) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        answer = generate(client, class_label="owl", n=2, num_inference_steps=2)
        assert answer.status_code == 500
        message = answer.json()["error"]["message"]
        assert message.startswith("the engine's process died twice while the image was made")
        assert reason in message
        assert "\n" not in message
    eventually(lambda: engine.state.ready, 30)
    assert isinstance(submit(engine, 1)[1].wait()[0], Finished)
    assert engine.state.restarts == 2


def test_the_third_death_in_a_row_while_it_starts_is_the_end(start: Start, tmp_path: Path) -> None:
    engine = start()
    (tmp_path / "tick").touch()
    _, listener = submit(engine, 1, 2)
    (tmp_path / "fatal").touch()
    kill(engine)
    failed = listener.wait()
    assert all(isinstance(image, Failed) and image.cause == "engine" for image in failed.values())
    assert "its process cannot be started (it was ended by SIGKILL)" in failed[0].message
    assert (engine.state.alive, engine.state.restarting, engine.state.restarts) == (False, False, 3)
    with pytest.raises(Stopped):
        submit(engine, 1)


@pytest.mark.parametrize(("file", "message"), [("missing", "there is no model"), ("fatal", "has died while it start")])
def test_a_model_that_cannot_be_served_is_refused(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).touch()
    engine = isolated(tmp_path)
    with pytest.raises(InputError, match=message):
        engine.start()
    assert not is_running(engine.pid)


@pytest.mark.parametrize("moment", ["load", "tick"])
def test_the_process_ends_when_the_service_is_gone_whatever_it_does(tmp_path: Path, moment: str) -> None:
    if moment == "load":
        (tmp_path / "load").touch()
    process = EngineProcess(EngineOptions(partial(scripted_pipeline, tmp_path), slots=2, width=2, threads=1))
    if moment == "tick":
        assert isinstance(next(process.reports()), Begun)
        (tmp_path / "tick").touch()
        process.send(Submit(Ticket(0, ImageRequest((1,), PLAN, CAT))))
        reports = (report for report in process.reports() if isinstance(report, Progress))
        assert next(report for report in reports if report.state.running)
    with socket.socket(fileno=os.dup(process._connection.fileno())) as pipe:
        pipe.shutdown(socket.SHUT_RDWR)  # what a kill of the service does
    eventually(lambda: not is_running(process.pid))
    assert process.close() == "it ended with code 1"


# --- as any engine ----------------------------------------------------------------------------------------------------


def test_nan_fails_its_own_image_alone(start: Start, tmp_path: Path) -> None:
    engine = start()
    (tmp_path / "owl").write_text("nan")
    sound, spoilt = submit(engine, 1, 2, label=DOG)[1], submit(engine, 3, 4, label=OWL)[1]
    assert all(isinstance(image, Failed) and "NaN" in image.message for image in spoilt.wait().values())
    pixels = [image.pixels for image in sound.wait().values() if isinstance(image, Finished)]
    assert len(pixels) == 2
    assert all(image.isfinite().all() for image in pixels)
    assert engine.state.restarts == 0


def test_cancelled_requests_free_their_slots(start: Start, tmp_path: Path) -> None:
    engine = start(slots=2)
    (tmp_path / "tick").touch()
    ticket, gone = submit(engine, 1, 2, 3, plan=SamplingPlan(900, scheduler="ddim"))
    eventually(lambda: len(engine.state.running) == 2)
    running = {(sample.request, sample.image) for sample in engine.state.running}
    assert running == {(ticket.number, 0), (ticket.number, 1)}
    assert engine.state.waiting == 1
    engine.cancel(ticket)
    (tmp_path / "tick").unlink()
    assert isinstance(submit(engine, 4, plan=SHORT)[1].wait()[0], Finished)  # 900 steps would take far longer
    eventually(lambda: not engine.state.running and not engine.state.waiting)
    assert gone.events == []
    assert engine.state.images_done == 1


def test_overload_is_refused_by_what_is_known_at_once(start: Start, tmp_path: Path) -> None:
    engine = start(max_wait=1e-6)
    (tmp_path / "tick").touch()
    submit(engine, 1, 2)
    submit(engine, 3, 4, 5)  # two find a slot, whether or not the process has reported the others
    with pytest.raises(Overloaded) as refused:
        submit(engine, 6)
    with pytest.raises(Overloaded):
        engine.require_room()
    assert refused.value.retry_after > 0
    assert engine.state.rejected == 2


def test_totals_go_on_after_a_death(start: Start) -> None:
    engine = start()
    submit(engine, 1, 2, plan=SHORT)[1].wait()
    eventually(lambda: engine.state.images_done == 2 and not engine.state.running)
    before = engine.state
    kill(engine)
    eventually(lambda: engine.state.restarts == 1 and engine.state.ready, 30)
    assert engine.state.images_done == 2
    submit(engine, 3, plan=SHORT)[1].wait()
    eventually(lambda: engine.state.images_done == 3 and engine.state.ticks == before.ticks + SHORT.steps)
    state = engine.state
    assert state.layers_full == before.layers_full * 3 // 2
    assert sum(state.batches.values()) == state.ticks
    assert sum(rows * calls for (_, rows), calls in state.batches.items()) * 5 == state.layers_full


@pytest.mark.parametrize("killed", [False, True])
def test_stop_lets_accepted_requests_finish_even_after_a_death(start: Start, tmp_path: Path, killed: bool) -> None:
    engine = start()
    (tmp_path / "tick").touch()
    listeners = [submit(engine, 1, 2, 3, plan=SHORT)[1] for _ in range(2)]
    stopping = threading.Thread(target=engine.stop, args=(PATIENCE,))
    stopping.start()
    eventually(lambda: not engine.state.ready)
    if killed:
        kill(engine)
    (tmp_path / "tick").unlink()
    assert all(isinstance(image, Finished) for listener in listeners for image in listener.wait().values())
    stopping.join(PATIENCE)
    assert (engine.state.alive, engine.state.restarts) == (False, int(killed))
    with pytest.raises(Stopped):
        submit(engine, 1)


def test_the_end_of_the_drain_is_503(start: Start, tmp_path: Path) -> None:
    engine = start()
    with (
        serving(engine, ServedModel("animals", class_pipeline())) as address,
        httpx2.Client(base_url=address, timeout=60) as client,
    ):
        _, listener = submit(engine, 1, plan=SamplingPlan(900, scheduler="ddim"))
        eventually(lambda: engine.state.running)
        stopping = threading.Thread(target=engine.stop, args=(0.2,))
        stopping.start()
        assert listener.wait() == {0: Failed(0, STOPPED, "stopped")}
        stopping.join(PATIENCE)
        assert generate(client).status_code == 503


def test_an_engine_that_hangs_does_not_hold_up_the_end(start: Start, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("adadiff.serving.isolation.GRACE", 0.2)
    engine = start()
    (tmp_path / "tick").touch()
    _, listener = submit(engine, 1)
    engine.stop(0)
    assert listener.wait() == {0: Failed(0, STOPPED, "stopped")}
    assert not is_running(engine.pid)
