"""The HTTP service: the API, the page, the figures. It touches no model; the engine does."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

import adadiff
from adadiff.serving.docs import api_docs, describe_api
from adadiff.serving.errors import CLIENT_CLOSED, ApiError, add_error_handlers
from adadiff.serving.generation import Generation, Intake
from adadiff.serving.job_routes import job_routes
from adadiff.serving.jobs import Jobs
from adadiff.serving.metrics import ServiceMetrics
from adadiff.serving.middleware import GENERATIONS, CountResponses, LimitBody, RefuseEarly, RequireKey
from adadiff.serving.protocol import (
    EngineStatus,
    ErrorResponse,
    GenerationRequest,
    GenerationResponse,
    ModelInfo,
    ModelList,
)
from adadiff.serving.requests import STALLED, ImageEngine
from adadiff.serving.responses import EventStream, generation_response, status_of
from adadiff.serving.served import PlannedRequest, ServedModel
from adadiff.utils.ranges import shown

PAGE = Path(__file__).with_name("page.html")
# The page is one file: nothing is fetched from other hosts, nor sent to them.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The request does not fit; the message says how.",
        401: "The API key is missing or wrong.",
        404: "There is no such model or job.",
        413: "The body is too large.",
        429: "The wait would be too long; `Retry-After` says when to try again.",
        500: "The image could not be made.",
        503: "The service is stopping, starting its engine again, or has failed.",
    }.items()
}


def create_app(
    engine: ImageEngine, model: ServedModel, api_key: str | None = None, jobs: Jobs | None = None
) -> FastAPI:
    """Build the HTTP service of one model.

    Args:
        engine: The engine that runs it, started.
        model: Checks the requests.
        api_key: Key that requests to the API have to send as `Authorization: Bearer KEY`; None if they need none.
        jobs: The jobs, running; None turns them off.
    """
    app = FastAPI(title="adadiff", version=adadiff.__version__, docs_url=None, redoc_url=None)
    metrics = ServiceMetrics(lambda: engine.state, model.depth)
    intake = Intake(engine, model)
    add_error_handlers(app)
    _add_generation(app, intake, model, metrics)
    app.include_router(job_routes(jobs, intake.plan, partial(_require_model, model), ERRORS))
    _add_models(app, model)
    _add_operation(app, engine, metrics)
    _add_pages(app, api_docs(describe_api(app)))
    app.add_middleware(LimitBody)
    app.add_middleware(RefuseEarly, engine=engine)
    app.add_middleware(RequireKey, key=api_key)
    app.add_middleware(CountResponses, metrics=metrics)  # the outermost: it sees what the others answer
    return app


def _add_generation(app: FastAPI, intake: Intake, model: ServedModel, metrics: ServiceMetrics) -> None:
    @app.post(GENERATIONS, response_model=GenerationResponse, responses=ERRORS, tags=["images"])
    async def generate(body: GenerationRequest, request: Request) -> Response:
        """Make images, as the OpenAI images API does; with `stream: true`, as server-sent events."""
        _require_model(model, body.model)
        planned, generation = await intake.begin(body)
        if body.stream:
            return EventStream(generation, body, planned, model, metrics, request.state)
        with generation:
            return await _respond(generation, body, planned, model, metrics, request)


async def _respond(
    generation: Generation,
    body: GenerationRequest,
    planned: PlannedRequest,
    model: ServedModel,
    metrics: ServiceMetrics,
    request: Request,
) -> Response:
    """Wait for the images, or until the client has left."""
    work = asyncio.ensure_future(generation.finished())
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=CLIENT_CLOSED)
        images = work.result()
    finally:
        work.cancel()
        left.cancel()
    for image in images:
        metrics.image(planned.plan, image, model.full_flops)
    content = await asyncio.to_thread(generation_response, images, body, planned, model)
    headers = {"X-Request-Id": str(generation.ticket.number)}
    return Response(content, media_type="application/json", headers=headers)


async def _disconnected(request: Request) -> None:
    """Return once the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _require_model(model: ServedModel, name: str | None) -> None:
    if name not in (None, model.name):
        message = f"there is no model {shown(name)} here: leave it out, or ask for {model.name}"
        raise ApiError(404, message, "model_not_found")


def _add_models(app: FastAPI, model: ServedModel) -> None:
    @app.get("/v1/models", tags=["models"])
    def models() -> ModelList:
        """List the model that is served, with what requests to it can choose."""
        return ModelList(data=[model.describe()])

    @app.get("/v1/models/{name:path}", tags=["models"], responses={404: ERRORS[404]})
    def one_model(name: str) -> ModelInfo:
        """Describe the model of that name."""
        _require_model(model, name)
        return model.describe()


def _add_operation(app: FastAPI, engine: ImageEngine, metrics: ServiceMetrics) -> None:
    @app.get("/v1/engine", tags=["operation"])
    async def engine_status() -> EngineStatus:
        """Say who runs, at which step and depth."""
        return status_of(engine.state)

    @app.get("/health", tags=["operation"], responses={503: ERRORS[503]})
    async def health() -> dict[str, str]:
        """Say whether the engine lives and calls the model when there is work, or is being started again."""
        state = engine.state
        if state.restarting:
            return {"status": "restarting"}
        if not state.alive:
            raise ApiError(503, "the engine has stopped: start the service again", "engine_stopped")
        if state.stalled:
            raise ApiError(503, f"the engine has not called the model for {STALLED:.0f} s", "engine_stalled")
        return {"status": "ok"}

    @app.get("/ready", tags=["operation"], responses={503: ERRORS[503]})
    async def ready() -> dict[str, str]:
        """Say whether requests are taken."""
        state = engine.state
        if state.restarting:
            raise ApiError(503, "the engine is being started again", "restarting")
        if not (state.alive and state.ready):
            raise ApiError(503, "the service takes no requests", "not_ready")
        return {"status": "ok"}

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def figures() -> Response:
        """Return figures for Prometheus."""
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)


def _add_pages(app: FastAPI, documentation: str) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(documentation, headers=PAGE_HEADERS)
