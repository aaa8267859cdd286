"""The API: what is sent for a request, and what for a request that fails."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from adadiff.serving.protocol import LARGEST_BODY
from adadiff.serving.requests import STOPPED
from tests.serving.conftest import eventually, generate, serving
from tests.serving.scripted import SECONDS, drawn


def pixels_of(image: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))))


def expected(seed: int) -> np.ndarray:
    return (drawn(seed, (1, 8, 8))[0] * 255).round().to(torch.uint8).numpy()


def events_of(text: str) -> list[tuple[str, dict]]:
    """The events of a stream, by name."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n") if not block.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_images_come_in_order_with_their_seeds_and_costs(client, engine):
    answer = generate(client, n=3, seed=5, num_inference_steps=4)
    assert answer.status_code == 200
    body = answer.json()
    for k, image in enumerate(body["data"]):
        assert image["seed"] == 5 + k
        np.testing.assert_array_equal(pixels_of(image), expected(5 + k))
        assert image["exit_layers"] == [5, 5, 5, 5]
        assert image["seconds"] == SECONDS
    assert body["seed"] == 5
    assert body["steps"] == 4
    assert body["size"] == "8x8"
    assert body["layer_fraction"] == body["compute_fraction"] == 1
    request = engine.tickets[0].request
    assert request.class_label == 0
    assert request.seeds == (5, 6, 7)
    assert request.plan.steps == 4


def test_a_drawn_seed_is_reported_and_gives_the_image_again(client):
    first = generate(client).json()
    again = generate(client, seed=first["seed"]).json()
    assert again["data"][0]["b64_json"] == first["data"][0]["b64_json"]
    assert generate(client).json()["seed"] != first["seed"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_formats(client, kind):
    image = generate(client, output_format=kind, output_compression=90).json()["data"][0]
    assert Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))).format == kind.upper()


def test_a_prompt_names_the_class_and_null_stands_for_nothing(client, engine):
    assert client.post("/v1/images/generations", json={"prompt": "owl", "seed": None}).status_code == 200
    assert engine.tickets[0].request.class_label == 2


def test_a_stream_sends_previews_and_then_the_images(client):
    with client.stream(
        "POST",
        "/v1/images/generations",
        json={"class_label": "dog", "n": 2, "seed": 3, "stream": True, "partial_images": 2, "num_inference_steps": 9},
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = events_of("".join(answer.iter_text()))
    partial, completed = events[:4], events[4:]
    assert [name for name, _ in partial] == ["image_generation.partial_image"] * 4
    assert [(data["image_index"], data["partial_image_index"], data["step"]) for _, data in partial] == [
        (0, 0, 3), (1, 0, 3), (0, 1, 6), (1, 1, 6),
    ]  # fmt: skip
    assert {name for name, _ in completed} == {"image_generation.completed"}
    assert {data["image_index"]: data["seed"] for _, data in completed} == {0: 3, 1: 4}
    for name, data in events:
        assert data["type"] == name
    for _, data in completed:
        np.testing.assert_array_equal(pixels_of(data), expected(data["seed"]))


def test_a_stream_that_waits_sends_comments_so_that_no_proxy_closes_it(client, engine, monkeypatch):
    monkeypatch.setattr("adadiff.serving.responses.KEEP_ALIVE", 0.02)
    engine.gate.clear()
    body = {"class_label": "dog", "stream": True}
    with client.stream("POST", "/v1/images/generations", json=body) as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == [": the image is being made", "", ": the image is being made"]
        engine.gate.set()
        assert [line for line in lines if line.startswith("event: ")] == ["event: image_generation.completed"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"n": 0}, "n: input should be greater than or equal to 1"),
        ({"n": 11}, "n: input should be less than or equal to 10"),
        ({"n": "2"}, "n: input should be a valid integer"),
        ({"num_inference_steps": 251}, "num_inference_steps: input should be less"),
        ({"size": "1024x1024"}, "the model makes images of 8x8"),
        ({"seed": -1}, "seed: input should be greater"),
        ({"seed": 2**64}, "seed: input should be less"),
        ({"steps": 4}, "there is no setting 'steps': choose from model, prompt"),
        ({"response_format": "url"}, "response_format: input should be 'b64_json'"),
        ({"output_format": "gif"}, "output_format: input should be 'png', 'jpeg' or 'webp'"),
        ({"partial_images": 2}, "partial_images: previews are sent in streams alone"),
        ({"partial_images": 4, "stream": True}, "partial_images: input should be less than or equal to 3"),
        ({"class_label": "cta"}, "did you mean cat"),
        ({"class_label": 3}, "class 3 is the null class"),
        ({"class_label": 9}, "choose from 0 to 2"),
        ({"class_label": True}, "class_label: give a class by its name, in at most 2000 characters, or by its index"),
        ({"class_label": None}, "class_label: the model takes a class"),
        ({"prompt": "dog"}, "either as class_label or as prompt"),
        ({"prompt": "x" * 2001}, "prompt: string should have at most 2000 characters"),
        ({"prompt": "\ud800"}, "prompt: input should be a valid string"),
        ({"negative_prompt": "dog"}, "negative_prompt: the model takes no prompts"),
        ({"guidance_scale": 0.5}, "guidance_scale: input should be greater"),
        ({"plan": "fast"}, 'plan: choose "own", "full"'),
        (
            {"plan": 0.55},
            "plan: no plan of the model takes at most 0.55 of the full model's compute: the least on offer is 1",
        ),
    ],
)
def test_bad_input_is_400_with_one_clear_sentence(client, engine, body, message):
    answer = client.post(
        "/v1/images/generations",
        content=json.dumps({"class_label": "cat", **body}),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert engine.tickets == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"n": 1', b"[" * 20000])
def test_a_body_that_is_no_object_is_400(client, content):
    answer = client.post("/v1/images/generations", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "code"}


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_413(client, engine, declared):
    body = json.dumps({"prompt": "x" * LARGEST_BODY}).encode()
    content = body if declared else iter([body[:30], body[30:]])
    answer = client.post("/v1/images/generations", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert f"larger than {LARGEST_BODY} bytes" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "body_too_large"
    assert engine.tickets == []


def test_unknown_models_paths_and_methods(client):
    answer = generate(client, model="dall-e-3")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "ask for animals" in answer.json()["error"]["message"]
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert client.get("/nothing").status_code == 404
    wrong = client.get("/v1/images/generations")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["code"] == "method_not_allowed"


def test_overload_says_when_to_try_again(client, engine):
    engine.overloaded = 6.2
    answer = generate(client)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(("state", "status"), [({"overloaded": 6.2}, 429), ({"restarting": 6.2}, 503)])
def test_requests_that_nothing_could_save_are_refused_before_they_are_read(client, engine, state, status):
    vars(engine).update(state)
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(head)  # and no body
        answer = connection.recv(10_000).decode()
    assert f"HTTP/1.1 {status} " in answer
    assert "retry-after: 7" in answer.lower()
    assert "try again in 7 s" in answer


def test_an_engine_that_is_started_again_is_alive_but_not_ready(client, engine):
    engine.restarting = 3.0
    assert client.get("/health").json() == {"status": "restarting"}
    answer = client.get("/ready")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "restarting")


def test_what_the_end_of_the_service_cuts_off_is_503(client, engine):
    engine.failure, engine.cause = STOPPED, "stopped"
    answer = generate(client)
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, STOPPED)


def test_a_stopped_engine_is_503_and_a_failed_image_500(client, engine):
    engine.failure = "image 0 came out NaN"
    answer = generate(client, n=2)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "image 0 came out NaN"
    with client.stream(
        "POST", "/v1/images/generations", json={"class_label": "cat", "stream": True, "partial_images": 1}
    ) as streamed:
        events = events_of("".join(streamed.iter_text()))
    assert [name for name, _ in events] == ["image_generation.partial_image", "error"]
    assert events[1][1]["error"]["message"] == "image 0 came out NaN"
    engine.stopped = True
    assert generate(client).status_code == 503
    eventually(lambda: not engine.open)


def test_an_unexpected_error_is_500_without_its_details(engine, served, monkeypatch):
    monkeypatch.setattr(served, "planned", lambda request: 1 / 0)
    with serving(engine, served) as address, httpx2.Client(base_url=address) as client:
        answer = generate(client)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "division" not in answer.text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_request(client, engine, stream):
    engine.gate.clear()
    left = threading.Event()

    def ask_and_leave() -> None:
        impatient = httpx2.Timeout(5, read=0.3)
        with httpx2.Client(base_url=client.base_url, timeout=impatient) as other, pytest.raises(httpx2.ReadTimeout):
            generate(other, n=2, stream=stream, partial_images=1 if stream else 0)
        left.set()

    threading.Thread(target=ask_and_leave).start()
    eventually(left.is_set)
    eventually(lambda: engine.cancelled == [0])
    assert not engine.open
    eventually(lambda: 'adadiff_responses_total{code="499"} 1.0' in client.get("/metrics").text)
    engine.gate.set()
    assert generate(client).status_code == 200
    assert engine.cancelled == [0]


def test_the_key_is_required_where_there_is_one(engine, served):
    with serving(engine, served, api_key="secret") as address, httpx2.Client(base_url=address) as client:
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}):
            for path in ("/v1/models", "/v1/engine", "/v1/nothing"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
        assert generate(client).status_code == 401
        assert [client.get(path).status_code for path in ("/", "/health", "/ready", "/metrics", "/docs")] == [200] * 5
        client.headers["Authorization"] = "Bearer secret"
        assert client.get("/v1/models").status_code == 200
        assert generate(client).status_code == 200


def test_health_is_about_the_engine(client, engine):
    assert client.get("/health").json() == client.get("/ready").json() == {"status": "ok"}
    engine.stalled = 1e6
    assert client.get("/health").json()["error"]["code"] == "engine_stalled"
    engine.stalled, engine.stopped = 0.0, True
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 503
    engine.dead = True
    assert client.get("/health").status_code == 503
    assert client.get("/health").json()["error"]["code"] == "engine_stopped"


def test_metrics_count_what_happened(client, engine):
    generate(client, n=2)
    generate(client, n=0)
    text = client.get("/metrics").text
    figures = dict(re.findall(r"^(\S+) (\S+)$", text, re.MULTILINE))
    assert figures['adadiff_responses_total{code="200"}'] == "1.0"
    assert figures['adadiff_responses_total{code="400"}'] == "1.0"
    assert figures['adadiff_image_seconds_count{plan="own"}'] == "2.0"
    assert figures['adadiff_image_seconds_sum{plan="own"}'] == str(2 * SECONDS)
    assert figures["adadiff_layer_fraction"] == "0.6"
    assert figures["adadiff_images_waiting"] == "2.0"
    assert figures["adadiff_slots"] == "4.0"
    assert figures["adadiff_batch_rows"] == "3.0"
    assert figures["adadiff_rows_total"] == "10.0"
    assert figures["adadiff_images_total"] == "11.0"
    assert figures['adadiff_call_rows_bucket{layers="5",le="1.0"}'] == "1.0"
    assert figures['adadiff_call_rows_bucket{layers="5",le="4.0"}'] == "3.0"
    assert figures['adadiff_call_rows_bucket{layers="1",le="4.0"}'] == "0.0"
    assert (
        figures['adadiff_call_rows_count{layers="1"}']
        == figures['adadiff_call_rows_bucket{layers="1",le="+Inf"}']
        == "4.0"
    )
    assert figures['adadiff_call_rows_sum{layers="5"}'] == "7.0"


def test_the_engine_is_shown_as_it_is(client, engine):
    engine.gate.clear()
    request = threading.Thread(target=generate, args=(client,))
    request.start()
    eventually(lambda: engine.open)
    status = client.get("/v1/engine").json()
    engine.gate.set()
    request.join()
    assert status["running"] == [{"request": 0, "image": 0, "step": 1, "steps": 4, "depth": 3, "ran": True}]
    assert status["layer_fraction"] == 0.6
    assert status["waiting"] == 2


def test_models_say_what_can_be_asked(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model == client.get("/v1/models/animals").json()
    assert model["classes"] == ["cat", "dog", "owl"]
    assert model["class_indices"] == [0, 1, 2]
    assert model["takes"] == "class"
    assert model["can_guide"]
    full = {"compute_fraction": 1.0, "steps": 50, "guidance_scale": 1.0, "guidance": "unguided"}
    assert model["plans"] == [{"plan": "own", **full}, {"plan": "full", **full}]


def test_flops_become_fractions(client, engine, monkeypatch):
    monkeypatch.setattr("tests.serving.scripted.exits", lambda request, depth: (5, 1, 1, 1))
    image = generate(client).json()["data"][0]
    assert image["layer_fraction"] == 0.4
    assert image["compute_fraction"] == 0.4
