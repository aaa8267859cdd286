"""What every HTTP request passes through: the count of responses, the API key, and the limit on the body."""

from __future__ import annotations

import hmac
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adadiff.serving.errors import ApiError, api_error
from adadiff.serving.metrics import ServiceMetrics
from adadiff.serving.protocol import LARGEST_BODY
from adadiff.serving.requests import ImageEngine, Overloaded, Stopped

API = "/v1/"
GENERATIONS = f"{API}images/generations"


class CountResponses:
    """Counts the responses of the API by status, and times those that made images.

    Args:
        app: The application.
        metrics: Where they are counted.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, counting)
        finally:
            status = scope.get("state", {}).get("outcome", status)  # a stream that broke off has sent 200 before
            made_images = scope["path"].startswith(f"{API}images/")
            self.metrics.response(status, time.perf_counter() - begin if made_images else None)


class RequireKey:
    """Answers 401 to requests to the API without the key, which is compared in constant time.

    Args:
        app: The application.
        key: The key; None if everybody may send requests.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app, self.expected = app, None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.expected is not None and scope["type"] == "http" and scope["path"].startswith(API):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                message = "the API key is missing or wrong: send it in the header Authorization: Bearer KEY"
                await ApiError(401, message, "invalid_api_key").response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


class RefuseEarly:
    """Answers requests for images that no body could save: before it is read, as a flood of them is to cost little.

    Args:
        app: The application.
        engine: The engine.
    """

    def __init__(self, app: ASGIApp, engine: ImageEngine) -> None:
        self.app, self.engine = app, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == GENERATIONS and scope["method"] == "POST":
            try:
                self.engine.require_room()
            except (Overloaded, Stopped) as error:
                await api_error(error).response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


class LimitBody:
    """Answers 413 to requests with a large body, before it is read where its length is declared.

    Args:
        app: The application.
        limit: Bytes.
    """

    def __init__(self, app: ASGIApp, limit: int = LARGEST_BODY) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # the one kind of error that FastAPI lets through while it reads
        too_large = HTTPException(413, f"the body is larger than {self.limit} bytes: send a smaller one")
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limit:
            await api_error(too_large).response()(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            part = await receive()
            received += len(part.get("body", b""))
            if received > self.limit:
                raise too_large
            return part

        await self.app(scope, limited, send)
