"""Work on a Ray cluster: sampling into a folder on actors, and the service on replicas; both survive kill -9."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from adadiff import AdaDiffPipeline
from adadiff.runtime import Prediction, Session
from adadiff.sampling import AdaptivePipeline
from adadiff.serving.cluster import ClusterEngine
from adadiff.serving.engine import Engine
from adadiff.serving.requests import Restarting
from adadiff.serving.served import ServedModel
from adadiff.training.config import DiffusionConfig
from adadiff.utils.clusters import connected
from tests.actors import WORKER, content, kill, ray_processes
from tests.cli.conftest import run
from tests.conftest import make_model
from tests.ports import answering
from tests.serving.conftest import eventually, generate, serving

SLOW = 240  # seconds that a busy machine may take to start a process or two


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray of two actors or replicas at a time."""
    with connected(None, cpus=2):
        yield
    eventually(lambda: not ray_processes(), 30)


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with classes cat, dog and owl."""
    folder = tmp_path_factory.mktemp("models") / "animals"
    model = make_model(num_classes=4, class_names=["cat", "dog", "owl"], null_class=3)
    AdaDiffPipeline(model, DiffusionConfig().build()).save_pretrained(folder)
    return folder


# ----------------------------------------------------------------------------------------------------------------------
# Sampling into a folder


def test_actors_go_on_with_an_interrupted_run_and_outlive_kills_to_the_images_of_one_process(
    animals, tmp_path, monkeypatch
):
    words = f"sample {animals} -n 96 --batch-size 8 --steps 10 --tau 0.55 --out {tmp_path}"
    run(f"{words}/one")
    from adadiff.sampling import folder

    write, written, killed = folder._write_missing, [], []

    def interrupt(out, indices, images):
        write(out, indices[:5], images[:5])  # a part of a batch
        raise KeyboardInterrupt

    def write_and_kill(out, indices, images):
        written.append(indices)
        if len(written) == 2:
            killed.append(kill(WORKER))
        return write(out, indices, images)

    monkeypatch.setattr(folder, "_write_missing", interrupt)
    with pytest.raises(SystemExit) as stop:
        run(f"{words}/many")
    assert stop.value.code == 130
    assert len(content(tmp_path / "many")) == 5
    monkeypatch.setattr(folder, "_write_missing", write_and_kill)
    run(f"{words}/many --cluster")
    assert killed in ([1], [2])
    assert sorted(written, key=min) == [range(k, k + 8) for k in range(0, 96, 8)]  # each batch once
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert len(content(tmp_path / "one")) == 96
    one, many = (json.loads((tmp_path / name / "trace.json").read_text()) for name in ("one", "many"))
    assert one == many
    eventually(lambda: not ray_processes(WORKER), 30)  # Ray kills actors without waiting for their end


def test_actors_that_die_again_and_again_are_given_up(monkeypatch):
    import ray

    from adadiff.utils.clusters import Crew
    from adadiff.utils.errors import InputError

    @ray.remote
    class Deadly:
        def ready(self) -> None: ...

        def run(self, task: int) -> int:
            os._exit(1)

    with pytest.raises(InputError, match="3 actors on the cluster died one after the other without a result"):
        list(Crew(Deadly.remote, 1).map(iter([1, 2]), lambda actor, task: actor.run.remote(task)))


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that takes connections and answers with something that is not Ray's."""
    with answering(b"SSH-2.0-OpenSSH_9.6\r\n") as port:
        yield port


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample {model} --out {tmp}/out --cluster 127.0.0.1:1", "no Ray answers at 127.0.0.1:1 (["),
        (
            "sample {model} --out {tmp}/out --cluster no.such.invalid:6379",
            "no Ray answers at no.such.invalid:6379",
        ),
        ("sample {model} --out {tmp}/out --cluster 127.0.0.1:{deaf}", "what answers at 127.0.0.1:{deaf} is not Ray"),
        (
            "sample {model} --out {tmp}/out --cluster ray://there:10001",
            "'ray://there:10001' is no address of a Ray",
        ),
        ("sample {model} --out {tmp}/out --cluster --device cuda", "the cluster has no GPUs: choose --device cpu"),
        ("compare digits --out {tmp}/out --cluster 127.0.0.1:1", "no Ray answers at 127.0.0.1:1 (["),
        ("tune {model} --data digits --out {tmp}/out --cluster 127.0.0.1:1", "no Ray answers at 127.0.0.1:1 (["),
        ("sample digits-dit --out {tmp}/out --cluster", "--cluster is for models of adadiff's own"),
        ("serve {model} --port 0 --replicas 2 --address 127.0.0.1:1", "no Ray answers at 127.0.0.1:1 (["),
        ("serve {model} --port 0 --replicas 9", "the cluster has room for 2 of 9 replicas, which take a core each"),
        ("serve {model} --port 0 --replicas 0", "replicas is 0"),
        ("serve {model} --port 0 --address auto", "--address names a cluster for replicas: give --replicas too"),
        ("serve {model} --port 0 --replicas 2 --isolate", "give either --isolate or --replicas"),
    ],
)
def test_bad_input_is_one_line_at_once(animals, deaf_port, tmp_path, capsys, command, message):
    begin = time.monotonic()
    with pytest.raises(SystemExit) as stop:
        run(command.format(model=animals, tmp=tmp_path, deaf=deaf_port))
    assert stop.value.code == 2
    assert time.monotonic() - begin < 30  # Ray alone would try for minutes
    error = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
    assert error.startswith("adadiff: ")
    assert message.format(deaf=deaf_port) in error
    assert not list((tmp_path).glob("out/0*.png"))


def test_a_missing_extra_is_named_with_the_command_that_installs_it(animals, tmp_path, capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    for command in (f"sample {animals} --out {tmp_path}/out --cluster", f"serve {animals} --port 0 --replicas 2"):
        with pytest.raises(SystemExit) as stop:
            run(command)
        assert stop.value.code == 2
        line = "adadiff: ray is not installed, which work on a cluster needs: pip install 'adadiff[cluster]'\n"
        assert capsys.readouterr().err == line


# ----------------------------------------------------------------------------------------------------------------------
# The service


def load_gated(folder: Path) -> AdaptivePipeline:
    """The model, which waits before each of its calls while the file `closed` is in its folder."""
    pipeline = AdaptivePipeline.from_pretrained(folder)
    predict, closed = Session.predict, folder / "closed"

    def wait_and_predict(*args: Any, **kwargs: Any) -> Prediction:
        eventually(lambda: not closed.exists(), SLOW)
        return predict(*args, **kwargs)

    Session.predict = wait_and_predict  # in the replica's process alone
    return pipeline


@pytest.fixture(scope="module")
def engine(animals: Path) -> Iterator[ClusterEngine]:
    """Two replicas; another one, which a killed command has left, holds all cores until they start."""
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 2})
    class Left:
        pass

    serve.run(Left.bind(), name="animals", route_prefix=None)
    pipeline = AdaptivePipeline.from_pretrained(animals)
    engine = ClusterEngine(pipeline, partial(load_gated, animals), 2, "animals", slots=4, width=4, max_wait=SLOW)
    engine.start()
    yield engine
    engine.stop(0)


@pytest.fixture
def client(engine: ClusterEngine, animals: Path) -> Iterator[httpx2.Client]:
    served = ServedModel("animals", AdaptivePipeline.from_pretrained(animals))
    with serving(engine, served) as address, httpx2.Client(base_url=address, timeout=SLOW) as client:
        yield client


def images_of_one_process(animals: Path, **body: Any) -> list[bytes]:
    """Pixels of the images that a service without a cluster answers with."""
    pipeline = AdaptivePipeline.from_pretrained(animals)
    engine = Engine(pipeline, slots=4, width=4, max_wait=SLOW)
    engine.start()
    served = ServedModel("animals", pipeline)
    with serving(engine, served) as address, httpx2.Client(base_url=address, timeout=SLOW) as client:
        answer = generate(client, **body).json()
    engine.stop(0)
    return [pixels(image["b64_json"]) for image in answer["data"]]


def pixels(text: str) -> bytes:
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.array(image).tobytes()


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The data of server-sent events."""
    return (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))


def test_replicas_answer_as_one_process_does(client, engine, animals):
    body = {"n": 4, "seed": 7, "num_inference_steps": 10}
    answer = generate(client, **body)
    assert answer.status_code == 200
    assert [pixels(image["b64_json"]) for image in answer.json()["data"]] == images_of_one_process(animals, **body)
    assert client.get("/v1/models").json()["data"][0]["id"] == "animals"
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").status_code == 200
    assert generate(client, class_label="cow").status_code == 400
    eventually(lambda: engine.state.images_done == 4)
    figures = client.get("/metrics").text
    assert "adadiff_images_total 4.0" in figures
    assert "adadiff_slots 8.0" in figures


def test_a_client_that_leaves_frees_its_slots(client, engine, animals):
    done = engine.state.images_done
    closed = animals / "closed"
    closed.touch()
    body = {"class_label": "cat", "n": 4, "stream": True, "num_inference_steps": 50}
    with client.stream("POST", "/v1/images/generations", json=body):
        eventually(lambda: len(engine.state.running) == 4, SLOW)
    eventually(lambda: not engine.state.running, SLOW)  # given up here, while the model is in a call there
    closed.unlink()
    eventually(lambda: not any(replica.engine.running for replica in engine._replica_states.values()), SLOW)
    assert engine.state.images_done == done


def test_what_serve_holds_back_is_told_as_an_error_of_the_api(client, engine, monkeypatch):
    from ray.serve.exceptions import BackPressureError

    class Full:
        @property
        def generate(self) -> Full:
            return self

        def remote(self, request: Any) -> Any:
            raise BackPressureError(32, 32)

    monkeypatch.setattr(engine, "_streams", Full())
    answer = generate(client)
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "overloaded"
    assert int(answer.headers["Retry-After"]) >= 1
    assert engine.state.rejected == 1
    assert not engine.state.waiting


def test_a_request_outlives_its_replicas(client, engine, animals):
    body = {"class_label": "dog", "n": 3, "seed": 1, "num_inference_steps": 250}
    images: dict[int, bytes] = {}
    previews = []
    killed = 0
    streamed = {**body, "stream": True, "partial_images": 3}
    with client.stream("POST", "/v1/images/generations", json=streamed) as answer:
        for event in events(answer.iter_lines()):
            killed = killed or kill("ray::ServeReplica")
            if event["type"] == "image_generation.partial_image":
                previews.append((event["image_index"], event["step"]))
            else:
                images[event["image_index"]] = pixels(event["b64_json"])
    assert killed == 2
    assert len(previews) == len(set(previews)) == 9  # none twice, though the images were begun twice
    assert [images[k] for k in range(3)] == images_of_one_process(animals, **body)
    eventually(lambda: engine.state.slots == 8, SLOW)  # both are replaced
    assert generate(client, num_inference_steps=2).status_code == 200
    assert engine.state.restarts == 2
    assert client.get("/health").json() == {"status": "ok"}


def test_no_requests_are_taken_while_no_replica_runs_and_after_the_end(client, engine, monkeypatch):
    monkeypatch.setattr(engine, "_answering", frozenset())
    with pytest.raises(Restarting):
        engine.require_room()
    engine.stop(0)
    answer = generate(client)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopped")
    assert client.get("/ready").status_code == 503
