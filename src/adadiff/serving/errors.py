"""Errors of the HTTP API: each is `{"error": {"message", "type", "code"}}` with one clear sentence."""

from __future__ import annotations

import math
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from adadiff.serving.protocol import ErrorDetail, ErrorResponse, validation_message
from adadiff.serving.requests import Overloaded, Restarting, Stopped
from adadiff.utils.errors import InputError

CLIENT_CLOSED = 499  # as nginx logs a client that went away; nobody reads the response
INTERNAL = "something went wrong in the service; its log says what"
TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
CODES = {413: "body_too_large"}  # Python's phrase for it depends on its version


class ApiError(Exception):
    """An error with its HTTP status.

    Args:
        status: HTTP status, 400 to 599.
        message: One sentence.
        code: What programs go by, such as `model_not_found`.
        retry_after: Seconds after which to try again, if that helps.
    """

    def __init__(self, status: int, message: str, code: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after

    @property
    def body(self) -> ErrorResponse:
        """The body of the response."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return ErrorResponse(error=ErrorDetail(message=self.message, type=kind, code=self.code))

    def response(self) -> JSONResponse:
        """Return the error as a response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body.model_dump(), self.status, headers)


def api_error(error: Exception) -> ApiError:
    """Return what the client is sent for an error of the service."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return ApiError(400, validation_message(list(error.errors())), "invalid_value")
    if isinstance(error, InputError):
        return ApiError(400, str(error), "invalid_value")
    if isinstance(error, Overloaded):
        wait = max(1, math.ceil(error.retry_after))
        return ApiError(429, f"the service is busy: try again in {wait} s", "overloaded", error.retry_after)
    if isinstance(error, Restarting):
        wait = max(1, math.ceil(error.retry_after))
        message = f"the engine is being started again: try again in {wait} s"
        return ApiError(503, message, "restarting", error.retry_after)
    if isinstance(error, Stopped):
        return ApiError(503, "the service is stopping, or has failed: try again later", "stopped")
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        message = error.detail if error.detail not in (None, phrase) else f"{phrase.lower()}: see /docs"
        code = CODES.get(error.status_code, phrase.lower().replace(" ", "_"))
        return ApiError(error.status_code, message, code)
    return ApiError(500, INTERNAL, "internal_error")


def add_error_handlers(app: FastAPI) -> None:
    """Make the app answer every error in the form of the API."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    for kind in (ApiError, RequestValidationError, InputError, Overloaded, Stopped, HTTPException, Exception):
        app.add_exception_handler(kind, handle)
