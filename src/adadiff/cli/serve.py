"""`adadiff serve`: serve a model over HTTP."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field
from tyro.conf import Positional

from adadiff.cli.options import Dtype, ModelFolder
from adadiff.cli.output import console
from adadiff.utils.errors import InputError
from adadiff.utils.files import is_stock, read_json
from adadiff.utils.ranges import Count, NonNegative, Positive, checked

logger = logging.getLogger(__name__)

EXTRA = ("fastapi", "uvicorn", "prometheus_client")
KEY = "ADADIFF_API_KEY"
Port = Annotated[int, Field(ge=0, le=65535)]


@checked
def serve_command(
    model: Positional[ModelFolder],
    host: str = "127.0.0.1",
    port: Port = 8000,
    slots: Count = 32,
    width: Count = 16,
    max_wait: Positive = 30.0,
    drain: NonNegative = 30.0,
    api_key: str | None = None,
    jobs: Path | None = None,
    isolate: bool = False,
    replicas: Count | None = None,
    address: str | None = None,
    policy: Path | None = None,
    dtype: Dtype = "float32",
    device: str = "auto",
) -> None:
    """Serve a model over HTTP: a page to try it on, the API of OpenAI's images, and figures for Prometheus.

    Requests run together, each at its own step and depth, and each image depends only on its seed. Steps, scheduler,
    guidance scale and exit policy default to the model's own. SIGTERM or Ctrl-C lets running requests finish.

    Args:
        model: Model folder, as `adadiff train` makes it, or the name of a packaged model.
        host: Address to take requests at: 127.0.0.1 for this machine alone, 0.0.0.0 for all.
        port: Port; 0 for any free one.
        slots: Images that are being made at a time; further ones wait.
        width: Images in one call of the model, at most.
        max_wait: Seconds that a request may have to wait before it is turned away.
        drain: Seconds that running requests may take after SIGTERM or Ctrl-C.
        api_key: Key that requests have to send as `Authorization: Bearer KEY`; better given as the environment
            variable ADADIFF_API_KEY, as other users of the machine see command lines.
        jobs: Folder for jobs of many images, which go on after a restart; without it there are none.
        isolate: Run the model in a process of its own, which is started again if it dies: running requests are made
            again, with the same images.
        replicas: Run so many engines under Ray Serve, each with a GPU, or cores where there are none; one that dies is
            replaced, and its requests are made again, with the same images. Needs adadiff[cluster].
        address: Ray cluster for the replicas: HOST:PORT, or auto for the one that this machine is part of; by default
            one is started of this machine.
        policy: Folder of the plans to offer, as `calibrate --out` or `tune --out` made it; by default the model's own.
        dtype: Precision of the model.
        device: Device: cpu, cuda, ..., or auto for cuda if available.
    """
    _require_extra()
    if address is not None and replicas is None:
        raise InputError("--address names a cluster for replicas: give --replicas too")
    if isolate and replicas is not None:
        raise InputError("give either --isolate or --replicas: replicas are processes of their own")
    if is_stock(model):
        raise InputError(f"{model} cannot be served: it is {_stock_class(model)}, and only adadiff's own models are")
    from adadiff.cli.shared import load_pipeline
    from adadiff.policies.stored import policy_folder
    from adadiff.sampling.folder import describe_pipeline
    from adadiff.serving.app import create_app
    from adadiff.serving.cluster import ClusterEngine
    from adadiff.serving.engine import Engine
    from adadiff.serving.isolation import IsolatedEngine
    from adadiff.serving.job_store import JobStore
    from adadiff.serving.jobs import Jobs
    from adadiff.serving.requests import ImageEngine
    from adadiff.serving.served import ServedModel
    from adadiff.serving.server import address_of, bind, is_loopback, listen, run

    key = _chosen_key(api_key)
    listener = bind(host, port)
    if key is None and not is_loopback(listener):
        logger.warning(f"anybody who can reach {host} can use the service: set {KEY} to require a key")
    plans = None if policy is None else policy_folder(policy).resolve()
    load = partial(load_pipeline, model.resolve(), dtype, device=device, policy=plans)
    sizes = slots, width, max_wait
    with _cluster(address, replicas):
        pipeline = load() if replicas is None and not isolate else load(device="cpu")
        served = ServedModel(model.resolve().name, pipeline, created=int(model.stat().st_mtime))
        engine: ImageEngine
        if replicas is not None:
            application = f"adadiff-{served.name}-{socket.gethostname()}-{listener.getsockname()[1]}"
            engine = ClusterEngine(pipeline, load, replicas, application, *sizes, device != "cpu")
        else:
            engine = IsolatedEngine(pipeline, load, *sizes) if isolate else Engine(pipeline, *sizes)
        runner = None if jobs is None else Jobs(JobStore(jobs, describe_pipeline(pipeline)), engine)
        engine.start()
        listen(listener)  # a client that goes by the line below is not refused
        where = f"{served.name} is served at {address_of(listener)}"
        console.print(f"{where} (API: /docs, figures: /metrics); Ctrl-C ends it")
        with runner or nullcontext():
            run(create_app(engine, served, key, runner), engine, listener, drain)


def _cluster(address: str | None, replicas: int | None) -> AbstractContextManager[None]:
    """Connect to the cluster of the replicas, if there are any."""
    if replicas is None:
        return nullcontext()
    from adadiff.utils.clusters import connected

    return connected(address, cpus=max(replicas, os.cpu_count() or 1))


def _chosen_key(given: str | None) -> str | None:
    """Return the API key of the option or of the environment, if there is one."""
    key = os.environ.get(KEY) if given is None else given
    if key == "":
        raise InputError(f"the API key is empty: give one, or leave --api-key and {KEY} out")
    return key


def _require_extra() -> None:
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} is not installed, which serving needs: pip install 'adadiff[serve]'")


def _stock_class(model: Path) -> str:
    """Return the class of a stock pipeline in words, if its folder is here."""
    index = model / "model_index.json"
    name = read_json(index).get("_class_name") if index.is_file() else None
    return f"a stock diffusers pipeline{f' ({name})' if name else ''}"
