"""The whole service on a small model: the images are those of the library, whoever asks, and nothing is left behind."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from adadiff import AdaDiffPipeline, CorrectedScheduleExit, NeverExit
from adadiff.sampling import Conditions, Guidance, SamplingPlan, sample_seeded
from adadiff.serving.engine import Engine
from adadiff.serving.protocol import GenerationRequest
from adadiff.serving.served import ServedModel
from tests.serving.conftest import eventually, serving

LONGER = int(os.environ.get("ADADIFF_FUZZ", "1"))
PLAN = SamplingPlan(6, CorrectedScheduleExit((5, 1, 5, 1, 2, 5)), Guidance(2.0), scheduler="dpm-solver++")


@pytest.fixture
def planned(class_pipeline: AdaDiffPipeline) -> AdaDiffPipeline:
    return class_pipeline.with_plan(PLAN)


@pytest.fixture
def engine(planned: AdaDiffPipeline) -> Iterator[Engine]:
    engine = Engine(planned, slots=6, width=4, max_wait=1e6)
    engine.start()
    yield engine
    engine.stop(0)


@pytest.fixture
def address(engine: Engine, planned: AdaDiffPipeline) -> Iterator[str]:
    with serving(engine, ServedModel("animals", planned)) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def alone(pipeline: AdaDiffPipeline, label: str, seed: int, plan: SamplingPlan) -> tuple[np.ndarray, Any]:
    """The image of a seed sampled by the library, as 8-bit values, and its trace."""
    conditions = Conditions((label,), guidance=plan.guidance)
    out = sample_seeded(pipeline, [0], plan.steps, plan.policy, seed, conditions)
    return (out.images[0, 0].numpy() * 255).round().astype(np.uint8), out.trace


def test_the_openai_client_gets_the_images_of_the_library(client, planned):
    answer = client.images.generate(prompt="owl", model="animals", n=2, extra_body={"seed": 40})
    for k, image in enumerate(answer.data):
        expected, trace = alone(planned, "owl", 40 + k, PLAN)
        assert np.abs(pixels(image.b64_json).astype(int) - expected).max() <= 1
        assert image.exit_layers == trace.exit_layers[:, 0].tolist() == [5, 1, 5, 1, 2, 5]
        assert image.layer_fraction == pytest.approx(trace.layer_fraction, abs=1e-4)
        full = 6 * 2 * planned.transformer.part_flops.full  # the plan is the folder's only say on steps and guidance
        assert image.compute_fraction == pytest.approx(trace.flops.sum().item() / full, abs=1e-4)
        assert image.seed == 40 + k
    assert answer.seed == 40
    assert answer.seconds > 0


def test_the_openai_client_streams(client, planned):
    stream = client.images.generate(
        prompt="cat", model="animals", stream=True, partial_images=2, extra_body={"seed": 3, "plan": "full"}
    )
    *partial, completed = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * 2
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert completed.type == "image_generation.completed"
    expected, _ = alone(planned, "cat", 3, SamplingPlan(6, NeverExit(), Guidance(2.0)))
    assert np.abs(pixels(completed.b64_json).astype(int) - expected).max() <= 1
    assert completed.layer_fraction == 1


def test_the_openai_client_understands_errors(client):
    with pytest.raises(openai.BadRequestError, match="did you mean cat") as wrong:
        client.images.generate(prompt="cta")
    assert wrong.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError, match="ask for animals"):
        client.images.generate(prompt="cat", model="dall-e-3")
    assert [model.id for model in client.models.list()] == ["animals"]


def test_settings_of_a_request_are_those_of_the_library(client, planned):
    answer = client.images.generate(
        prompt="dog", extra_body={"seed": 9, "num_inference_steps": 4, "guidance_scale": 3, "plan": "full"}
    )
    expected, _ = alone(planned, "dog", 9, SamplingPlan(4, NeverExit(), Guidance(3.0)))
    assert np.abs(pixels(answer.data[0].b64_json).astype(int) - expected).max() <= 1
    assert answer.warning is None
    stretched = client.images.generate(prompt="dog", extra_body={"num_inference_steps": 4})
    assert "is used with steps 4 in place of 6" in stretched.warning


def test_disconnects_free_the_slots(address, engine):
    with httpx2.Client(base_url=address, timeout=30) as client:
        for stream in (False, True) * 3 * LONGER:
            body = {"prompt": "cat", "n": 10, "num_inference_steps": 250, "stream": stream}
            with (
                pytest.raises(httpx2.ReadTimeout),
                client.stream("POST", "/v1/images/generations", json=body, timeout=0.15) as answer,
            ):
                answer.read()
        eventually(lambda: not engine.state.running and not engine.state.waiting)
        assert client.post("/v1/images/generations", json={"prompt": "cat"}).status_code == 200


def test_a_dead_engine_fails_its_requests_at_once_and_its_health(address, engine, monkeypatch):
    with httpx2.Client(base_url=address, timeout=30) as client:
        monkeypatch.setattr(engine._running, "tick", lambda: 1 / 0)
        answer = client.post("/v1/images/generations", json={"prompt": "cat"})
        assert answer.status_code == 500
        assert "the engine has failed" in answer.json()["error"]["message"]
        eventually(lambda: client.get("/health").status_code == 503)
        assert client.get("/ready").status_code == 503
        assert client.post("/v1/images/generations", json={"prompt": "cat"}).status_code == 503


def malformed(random: random.Random) -> tuple[bytes, dict[str, str]]:
    """A body that is damaged in one of many ways, or fits by chance."""
    odd: list[Any] = [
        None, True, -1, 0, 1e308, -1e308, 2**63, 2**200, 0.5, "", "cat", "\ud800", "\0", "é" * 50, [], {}, [1],
        {"a": 1}, "x" * 3000, float("nan"), float("inf"), "32x32", "8x8", "own", "full",
    ]  # fmt: skip
    fields = [*GenerationRequest.model_fields, "nothing", "\ud800", "__class__", ""]
    body: dict[str, Any] = {"prompt": "cat", "num_inference_steps": 2, "n": 1}
    for _ in range(random.randint(1, 3)):
        body[random.choice(fields)] = random.choice(odd)
    content = json.dumps(body).encode()
    damage = random.randrange(6)
    if damage == 0:
        content = content[: random.randrange(len(content))]
    elif damage == 1:
        at = random.randrange(len(content))
        content = content[:at] + random.randbytes(3) + content[at + 1 :]
    elif damage == 2:
        content = json.dumps(random.choice(odd)).encode()
    kinds = ["application/json"] * 8 + [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "nonsense",
    ]
    return content, {"Content-Type": random.choice(kinds)}


def test_malformed_requests_give_no_server_error_and_leak_no_slot(address, engine):
    source, seen = random.Random(0), set()
    with httpx2.Client(base_url=address, timeout=30) as client:
        for _ in range(LONGER * 500):
            content, headers = malformed(source)
            answer = client.post("/v1/images/generations", content=content, headers=headers)
            seen.add(answer.status_code)
            if answer.status_code == 200:
                continue
            assert answer.status_code in (400, 404, 413, 429), (answer.status_code, content)
            message = answer.json()["error"]["message"]
            assert message
            assert "\n" not in message
        eventually(lambda: not engine.state.running and not engine.state.waiting)
        assert {200, 400} <= seen
        text = client.get("/metrics").text
    counted = dict(re.findall(r'adadiff_responses_total\{code="(\d+)"\} (\S+)', text))
    assert sum(map(float, counted.values())) == LONGER * 500
    assert not any(code.startswith("5") for code in counted)


def test_many_clients_at_a_time_get_their_own_images(address, planned):
    answers: dict[int, dict[str, Any]] = {}

    def ask(seed: int) -> None:
        body = {"class_label": seed % 3, "seed": seed, "num_inference_steps": 3 + seed % 4, "plan": "full"}
        with httpx2.Client(base_url=address, timeout=60) as client:
            answers[seed] = client.post("/v1/images/generations", json=body).json()

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, answer in answers.items():
        plan = SamplingPlan(3 + seed % 4, NeverExit(), Guidance(2.0))
        expected, _ = alone(planned, ["cat", "dog", "owl"][seed % 3], seed, plan)
        assert np.abs(pixels(answer["data"][0]["b64_json"]).astype(int) - expected).max() <= 1
