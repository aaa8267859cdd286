"""What is sent back for a request: one response, or a stream of server-sent events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.datastructures import State
from starlette.types import Receive, Scope, Send

from adadiff.serving.errors import CLIENT_CLOSED, ApiError, api_error
from adadiff.serving.generation import Generation
from adadiff.serving.images import as_base64
from adadiff.serving.metrics import ServiceMetrics
from adadiff.serving.protocol import (
    Completed,
    Cost,
    EngineStatus,
    GeneratedImage,
    GenerationRequest,
    GenerationResponse,
    PartialImage,
    RunningSample,
)
from adadiff.serving.requests import EngineState, Finished, Preview
from adadiff.serving.served import PlannedRequest, ServedModel

logger = logging.getLogger(__name__)

KEEP_ALIVE = 15.0  # seconds without an event after which a comment is sent, so that no proxy closes the connection


def cost_of(image: Finished, planned: PlannedRequest, model: ServedModel) -> Cost:
    """Return what a finished image took."""
    return Cost(
        seed=planned.images.seeds[image.image],
        seconds=round(image.seconds, 4),
        layer_fraction=round(sum(image.exit_layers) / (model.depth * len(image.exit_layers)), 4),
        compute_fraction=round(image.flops / model.full_flops, 4),
        exit_layers=list(image.exit_layers),
    )


def generation_response(
    images: Sequence[Finished], request: GenerationRequest, planned: PlannedRequest, model: ServedModel
) -> str:
    """Return the response without streaming, as JSON; encodes the images, so that it takes a while."""
    data = [
        GeneratedImage(
            b64_json=as_base64(image.pixels, request.output_format, request.output_compression),
            **cost_of(image, planned, model).model_dump(),
        )
        for image in images
    ]
    plan = planned.images.plan
    response = GenerationResponse(
        created=int(time.time()),
        data=data,
        output_format=request.output_format,
        size=model.size,
        model=model.name,
        plan=planned.plan,
        steps=plan.steps,
        guidance_scale=plan.guidance.scale,
        seed=planned.images.seeds[0],
        seconds=max(image.seconds for image in data),
        layer_fraction=round(sum(image.layer_fraction for image in data) / len(data), 4),
        compute_fraction=round(sum(image.compute_fraction for image in data) / len(data), 4),
        warning=planned.warning,
    )
    return response.model_dump_json()


class EventStream(StreamingResponse):
    """Sends previews and finished images as server-sent events; a client that leaves cancels its request.

    Args:
        generation: The request on the engine.
        request: The request as it came.
        planned: What the engine runs for it.
        model: The model.
        metrics: Where finished images are counted.
        state: The state of the HTTP request, which keeps how the stream ended as its `outcome`.
    """

    def __init__(
        self,
        generation: Generation,
        request: GenerationRequest,
        planned: PlannedRequest,
        model: ServedModel,
        metrics: ServiceMetrics,
        state: State,
    ) -> None:
        self._generation, self._request, self._planned = generation, request, planned
        self._model, self._metrics, self._state = model, metrics, state
        headers = {
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",  # nginx would hold events back
            "X-Request-Id": str(generation.ticket.number),
        }
        super().__init__(self._events(), media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._generation:
            await super().__call__(scope, receive, send)
            if not self._generation.complete and not hasattr(self._state, "outcome"):
                self._state.outcome = CLIENT_CLOSED

    async def _events(self) -> AsyncIterator[str]:
        previews = Counter[int]()
        try:
            while not self._generation.complete:
                event = await self._generation.event(KEEP_ALIVE)
                if event is None:
                    yield ": the image is being made\n\n"
                    continue
                if isinstance(event, Finished):
                    self._metrics.image(self._planned.plan, event, self._model.full_flops)
                yield await asyncio.to_thread(self._event, event, previews[event.image])
                previews[event.image] += 1
        except Exception as error:  # the status has been sent: the error has to be an event
            failure = api_error(error)
            if not isinstance(error, ApiError):
                logger.exception("a stream failed")
            self._state.outcome = failure.status
            yield f"event: error\ndata: {failure.body.model_dump_json()}\n\n"

    def _event(self, event: Preview | Finished, previews: int) -> str:
        """Return a preview or a finished image as the text of an event; so many previews of the image came before."""
        kind, quality = self._request.output_format, self._request.output_compression
        common: dict[str, Any] = {
            "b64_json": as_base64(event.pixels, kind, quality),
            "created_at": int(time.time()),
            "output_format": kind,
            "size": self._model.size,
            "image_index": event.image,
        }
        if isinstance(event, Preview):
            return _server_sent(
                PartialImage(**common, partial_image_index=previews, step=event.step, steps=event.steps)
            )
        cost = cost_of(event, self._planned, self._model).model_dump()
        return _server_sent(Completed(**common, **cost, warning=self._planned.warning))


def _server_sent(event: PartialImage | Completed) -> str:
    return f"event: {event.type}\ndata: {event.model_dump_json()}\n\n"


def status_of(state: EngineState) -> EngineStatus:
    """Return the engine's state as the page shows it."""
    return EngineStatus(
        ready=state.alive and state.ready,
        slots=state.slots,
        waiting=state.waiting,
        running=[RunningSample(**vars(sample)) for sample in state.running],
        rows_of_last_tick=state.rows_of_last_tick,
        ticks=state.ticks,
        images_done=state.images_done,
        images_per_second=state.images_per_second,
        layer_fraction=state.layers_run / state.layers_full if state.layers_full else None,
        rejected=state.rejected,
    )
