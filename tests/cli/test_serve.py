"""`adadiff serve`: from the command to an image and to its end, and bad input."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import httpx2
import pytest

from adadiff import FixedExit
from adadiff.sampling import SamplingPlan
from tests.cli.conftest import run
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("isolate", [False, True])
def test_a_model_is_served_by_a_plan_until_sigterm_and_running_requests_finish(
    pipeline, model_folder, tmp_path, isolate
):
    context = pipeline.with_plan(SamplingPlan(6, FixedExit(2))).own_settings.stored.calibrated_for
    context.stored(FixedExit(2), {"compute": 0.4}, {}).save(tmp_path / "plan")
    command = [sys.executable, "-m", "adadiff", "serve", str(model_folder), "--port", "0", "--slots", "4"]
    command += ["--policy", str(tmp_path / "plan")] + (["--isolate"] if isolate else [])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    environment.pop("ADADIFF_API_KEY", None)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **streams)
    try:
        line = process.stdout.readline()
        address = re.search(r"model is served at (http://127\.0\.0\.1:\d+) ", line)[1]
        answers: list[httpx2.Response] = []
        models: list[dict[str, Any]] = []
        begun = threading.Event()

        def ask() -> None:
            with httpx2.Client(base_url=address, timeout=60) as client:
                body = {"n": 4, "num_inference_steps": 200, "stream": True, "partial_images": 3}
                models.append(client.get("/v1/models").json())
                with client.stream("POST", "/v1/images/generations", json=body) as answer:
                    for _ in answer.iter_lines():
                        begun.set()
                    answers.append(answer)

        asking = threading.Thread(target=ask)
        asking.start()
        assert begun.wait(60)
        os.killpg(process.pid, signal.SIGTERM)  # the engine's process gets the signal, too
        asking.join(60)
        assert process.wait(60) == 0
        assert [answer.status_code for answer in answers] == [200]
        assert [plan["steps"] for plan in models[0]["data"][0]["plans"]] == [6, 6, 6]  # own, the same, full
    finally:
        process.kill()
    assert process.stdout.read() == ""


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "serve {model} --port {taken}",
            "127.0.0.1:{taken} cannot be used (address already in use): choose another --po",
        ),
        ("serve {model} --host no.such.host.invalid", "there is no host 'no.such.host.invalid'"),
        ("serve {model} --host 192.0.2.1", "192.0.2.1:8000 cannot be used"),
        ("serve {model} --port 70000", "port is 70000"),
        ("serve {model} --slots 0", "slots is 0"),
        ("serve {model} --width 0", "width is 0"),
        ("serve {model} --max-wait 0", "max_wait is 0"),
        ("serve {model} --drain -1", "drain is -1"),
        ("serve {model} --api-key=", "the API key is empty"),
        ("serve {model} --port 0 --device cudda", "no device 'cudda'"),
        ("serve {model} --port 0 --jobs {model}", "model already holds other files: choose another output folder"),
        ("serve {tmp}/missing --port 0", "no model folder"),
        ("serve digits-dit --port 0", "it is a stock diffusers pipeline (DiTPipeline), and only"),
        ("serve someone/model --port 0", "it is a stock diffusers pipeline, and only adadiff's own models are"),
    ],
)
def test_bad_input_is_one_line(model_folder, taken_port, tmp_path, capsys, monkeypatch, command, message):
    monkeypatch.delenv("ADADIFF_API_KEY", raising=False)
    with pytest.raises(SystemExit) as stop:
        run(command.format(model=model_folder, taken=taken_port, tmp=tmp_path))
    error = capsys.readouterr().err.rstrip("\n").split("\n")[-1]
    assert stop.value.code == 2
    assert error.startswith("adadiff: ")
    assert message.format(taken=taken_port) in error


def test_a_missing_extra_is_named_with_the_command_that_installs_it(model_folder, capsys, monkeypatch):
    monkeypatch.setattr("adadiff.cli.serve.EXTRA", ("no_such_library", "uvicorn"))
    with pytest.raises(SystemExit) as stop:
        run(f"serve {model_folder}")
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "adadiff: no_such_library is not installed, which serving needs: pip install 'adadiff[serve]'\n"
    )


@pytest.mark.parametrize(
    ("host", "key", "warns"), [("0.0.0.0", None, True), ("0.0.0.0", "k", False), ("localhost", None, False)]
)
def test_a_service_for_others_without_a_key_warns(model_folder, capsys, monkeypatch, host, key, warns):
    served: list[tuple[object, ...]] = []
    monkeypatch.setattr("adadiff.serving.server.run", lambda *arguments: served.append(arguments))
    monkeypatch.setattr("adadiff.serving.engine.Engine.start", lambda self: None)
    monkeypatch.delenv("ADADIFF_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("ADADIFF_API_KEY", key)
    run(f"serve {model_folder} --port 0 --host {host} --drain 3")
    ((_, _, listener, drain),) = served
    listener.close()
    assert drain == 3
    assert ("anybody who can reach 0.0.0.0 can use the service" in capsys.readouterr().err) == warns


def test_models_that_make_latents_alone_are_refused(tmp_path, capsys):
    from adadiff import AdaDiffPipeline
    from adadiff.training.config import DiffusionConfig
    from tests.conftest import make_model

    AdaDiffPipeline(make_model(in_channels=4), DiffusionConfig().build()).save_pretrained(tmp_path / "latents")
    with pytest.raises(SystemExit) as stop:
        run(f"serve {tmp_path / 'latents'} --port 0")
    assert stop.value.code == 2
    assert "latents cannot be served: it makes latents of 4 channels" in capsys.readouterr().err


def test_a_policy_that_looks_at_the_batch_is_refused(pipeline, tmp_path, capsys):
    from adadiff import BatchMeanExit
    from adadiff.sampling import SamplingPlan

    pipeline.with_plan(SamplingPlan(4, BatchMeanExit(0.1))).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as stop:
        run(f"serve {tmp_path / 'model'} --port 0")
    assert stop.value.code == 2
    assert "BatchMeanExit" in capsys.readouterr().err


def test_the_help_says_what_a_user_can_choose(capsys):
    with pytest.raises(SystemExit):
        run("serve --help")
    text = capsys.readouterr().out
    for option in (
        "--host",
        "--port",
        "--slots",
        "--width",
        "--max-wait",
        "--drain",
        "--api-key",
        "--jobs",
        "--isolate",
        "--dtype",
        "--device",
    ):
        assert option in text
