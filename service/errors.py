"""Every answer that is not a success, as an RFC 9457 problem document.

====== ==============================================================
status means
====== ==============================================================
400    the request or its options cannot be understood or followed
401    no API key, or a wrong one
403    a page of another site asks a server without API keys
404    no such path or model
405    the path has other methods
408    the body took too long to arrive
413    too many bytes or pixels
415    not a photo that is read, or not a body that is read
421    a server without API keys was asked by another name than localhost
422    a photo is damaged, or cannot be fetched from its URL
429    too many photos are being worked on; Retry-After says when to come back
500    the model failed, or the server has a bug
502    the server that the model runs on failed on this photo
503    not ready yet, shutting down, or too slow, or a model cannot be loaded; Retry-After likewise
====== ==============================================================
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from captioner import (
    ImageDecodeError,
    ImageError,
    ImageSizeError,
    ImageTypeError,
    OptionsError,
    RemoteError,
    RemoteUnavailableError,
)
from service.engine import DeadlineError, NotReadyError, QueueFullError
from service.models import LoadError, UnknownModelError
from service.validation import complaints
from service.work import InferenceError

__all__ = ["Problem", "problem_of", "problem_response", "register_handlers"]

EXCEPTIONS: dict[type[Exception], tuple[int, str, str]] = {
    UnknownModelError: (404, "model", "No such model"),
    OptionsError: (400, "options", "The options cannot be followed"),
    ImageSizeError: (413, "image-size", "The photo is too large"),
    ImageTypeError: (415, "image-type", "Not a photo of a format that is read"),
    ImageDecodeError: (422, "image-damaged", "The photo cannot be decoded"),
    ImageError: (422, "image", "The photo cannot be used"),
    QueueFullError: (429, "queue-full", "Too many photos at once"),
    RemoteUnavailableError: (503, "remote-unavailable", "The model's server is not available"),
    RemoteError: (502, "remote", "The model's server failed"),
    InferenceError: (500, "inference", "The model failed"),
    LoadError: (503, "model-unavailable", "The model cannot be loaded"),
    NotReadyError: (503, "not-ready", "Not ready"),
    DeadlineError: (503, "deadline", "Too slow"),
}
"""Status, kind and title of the exceptions that have an answer of their own; the first that fits counts."""


class Problem(Exception):  # noqa: N818 - what RFC 9457 calls it
    """An answer other than success.

    Args:
        status: the HTTP status.
        kind: names the problem for programs, in its ``type``.
        title: says the same to people, the same text whenever this kind occurs.
        detail: what is wrong this time, and what to do about it.
        headers: of the response.
        members: further members of the document.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str,
        *,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(f"{status} {kind}: {detail}")
        self.status = status
        self.headers = headers or {}
        self.document = {
            "type": f"urn:captioner:problem:{kind}",
            "title": title,
            "status": status,
            "detail": detail,
            "error": {"message": detail, "type": kind},  # where OpenAI's and Hugging Face's clients look
            **members,
        }


def problem_of(error: Exception) -> Problem:
    """The problem that an exception is to the client; a 500 that tells nothing for any other."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError | ValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        status, headers = HTTPStatus(error.status_code), dict(error.headers or {})
        kind, detail = status.phrase.lower().replace(" ", "-"), error.detail
        if status == HTTPStatus.NOT_FOUND:
            detail = "there is nothing at this path: `/docs` tells what there is"
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f"this path does not take this method: use {headers.get('Allow', 'another one')}"
        return Problem(status, kind, status.phrase, detail, headers=headers)
    for type_, (code, kind, title) in EXCEPTIONS.items():
        if isinstance(error, type_):
            retry = 1 if code == 503 else None
            retry = error.retry_after if isinstance(error, QueueFullError) else retry
            headers = {} if retry is None else {"Retry-After": str(retry)}
            return Problem(code, kind, title, str(error), headers=headers)
    return Problem(
        500, "internal", "The server has a bug", "this was not your fault; the server's log has more"
    )


def problem_response(error: Exception) -> JSONResponse:
    """The response for an exception."""
    problem = problem_of(error)
    return JSONResponse(
        problem.document, problem.status, headers=problem.headers, media_type="application/problem+json"
    )


def register_handlers(app: FastAPI) -> None:
    """Answer the exceptions of routes; what is not expected goes on to the middleware, which logs it."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return problem_response(error)

    for type_ in (Problem, HTTPException, RequestValidationError, ValidationError, *EXCEPTIONS):
        app.add_exception_handler(type_, handle)


def _invalid(error: RequestValidationError | ValidationError) -> Problem:
    found = complaints(error.errors()[:10])
    detail = "; ".join(
        f"`{item['where']}` {item['reason']}" if item["where"] else item["reason"] for item in found
    )
    return Problem(400, "invalid", "The request is not valid", detail, errors=found)
