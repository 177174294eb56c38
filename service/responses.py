"""OpenAI's Responses API, whole and streamed: https://platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from time import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from captioner import Caption, SearchOptions, StreamEvent
from service.docs import body_of, problems
from service.errors import Problem, problem_of
from service.inputs import ImageText, Service, read_json, service_of, until_gone
from service.logs import REQUEST_ID
from service.metrics import count_tokens
from service.responses_schemas import ResponseOut, ResponsesRequest
from service.routes import BUSY, STRANGERS, caption_images, check_model, stream_image
from service.schemas import CaptionOptions
from service.sse import EventStream, format_event

__all__ = ["router"]

router = APIRouter(tags=["compatible"])


@router.post(
    "/v1/responses",
    summary="Caption a photo: OpenAI's Responses",
    response_model=ResponseOut,
    responses={
        200: {
            "description": "The response; with `stream`, its events.",
            "content": {"text/event-stream": {"schema": {"type": "object"}}},
        },
        **problems(400, *STRANGERS, 404, *BUSY),
    },
    openapi_extra=body_of({"application/json": ResponsesRequest}),
)
async def create_response(request: Request) -> Response:
    """A caption of the last photo of the input, as the assistant's message."""
    service = service_of(request)
    service.engine.check_room()
    body = await read_json(request, ResponsesRequest)
    check_model(service, body.model)
    url, text = body.last_image(), body.last_text()
    if url is None:
        detail = "there is no photo: send one as an input_image"
        raise Problem(400, "chat", "The input cannot be followed", detail)
    image, options = ImageText(url, "image_url"), _options(service, body, text)
    draft = _Draft(body)
    if body.stream:
        return EventStream(request, draft.events(await stream_image(request, image, options)))
    (caption,) = await until_gone(request, caption_images(service, [image], options))
    return JSONResponse(draft.whole(caption))


def _options(service: Service, body: ResponsesRequest, text: str) -> SearchOptions:
    longest = service.engine.captioner.default_options.max_length
    given: dict[str, Any] = {"max_length": min(body.max_output_tokens or longest, longest)}
    given |= service.instruction(text or body.instructions or "")
    if body.temperature or (body.temperature is None and body.top_p is not None):
        given |= {"do_sample": True, "temperature": max(0.01, body.temperature or 1.0)}
        if body.top_p not in (None, 1):
            given["top_p"] = max(0.001, body.top_p)
    return service.options(CaptionOptions(**given))


class _Draft:
    """A response on its way: its ids, and the events that tell of it."""

    def __init__(self, body: ResponsesRequest) -> None:
        self.body, self.created = body, int(time())
        self.id, self.item_id = f"resp_{REQUEST_ID.get()}", f"msg_{REQUEST_ID.get()}"
        self._number = 0

    def whole(self, caption: Caption | None = None) -> dict[str, Any]:
        """The response; without a caption, as it is before there is one."""
        count = 0 if caption is None else count_tokens(caption)
        cut = caption is not None and caption.finished is False
        status = "in_progress" if caption is None else "incomplete" if cut else "completed"
        usage = {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": count,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": count,
        }
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_output_tokens,
            "metadata": self.body.metadata or {},
            "model": self.body.model,
            "output": [] if caption is None else [self._message(caption.caption, status)],
            "parallel_tool_calls": False,
            "temperature": self.body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": self.body.top_p,
            "usage": None if caption is None else usage,
        }

    async def events(self, steps: AsyncGenerator[StreamEvent]) -> AsyncGenerator[bytes]:
        """The response as server-sent events, whose generator this closes."""
        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        async with contextlib.aclosing(steps):
            try:
                yield self._event("created", response=self.whole())
                yield self._event("in_progress", response=self.whole())
                item = {**self._message("", "in_progress"), "content": []}
                yield self._event("output_item.added", output_index=0, item=item)
                yield self._event("content_part.added", **place, part=_part(""))
                async for step in steps:
                    if step.text:
                        yield self._event("output_text.delta", **place, delta=step.text, logprobs=[])
                    if step.caption:
                        text, whole = step.caption.caption, self.whole(step.caption)
                        yield self._event("output_text.done", **place, text=text, logprobs=[])
                        yield self._event("content_part.done", **place, part=_part(text))
                        yield self._event("output_item.done", output_index=0, item=whole["output"][0])
                        yield self._event(whole["status"], response=whole)
            except Exception as error:
                problem = problem_of(error).document["error"]
                self._number += 1
                yield format_event(
                    {
                        "type": "error",
                        "code": problem["type"],
                        "message": problem["message"],
                        "param": None,
                        "sequence_number": self._number,
                    },
                    name="error",
                )

    def _event(self, name: str, **data: Any) -> bytes:
        kind = f"response.{name}"
        event = {"type": kind, "sequence_number": self._number, **data}
        self._number += 1
        return format_event(event, name=kind)

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self.item_id,
            "status": status,
            "role": "assistant",
            "content": [_part(text)],
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
