"""OpenAI's Responses API, whole and streamed: https://platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator
from time import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from captioner import Caption, StreamEvent
from service.docs import body_of, problems
from service.errors import Problem, problem_of
from service.inputs import ImageText, read_json, service_of, until_gone
from service.logs import REQUEST_ID
from service.metrics import count_tokens
from service.models import Model
from service.replies import Reply
from service.responses_schemas import ResponseOut, ResponsesRequest
from service.routes import BUSY, STRANGERS, caption_images, stream_image
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
    model, url = service.engine.models.find(body.model), body.last_image()
    if url is None:
        detail = "there is no photo: send one as an input_image"
        raise Problem(400, "chat", "The input cannot be followed", detail)
    image, reply = ImageText(url, "image_url"), _reply(body, model)
    options, draft = functools.partial(reply.options, service), _Draft(body, reply, model.name)
    if body.stream:
        return EventStream(request, draft.events(await stream_image(request, model, image, options)))
    (caption,) = await until_gone(request, caption_images(service, model, [image], options))
    return JSONResponse(draft.whole(caption))


def _reply(body: ResponsesRequest, model: Model) -> Reply:
    """What the fields mean here."""
    return Reply(
        model=model,
        text=body.last_text() or body.instructions or "",
        limit=body.max_output_tokens,
        samples=bool(body.temperature or (body.temperature is None and body.top_p is not None)),
        temperature=body.temperature,
        top_p=body.top_p,
        schema=body.text.format.wanted() if body.text and body.text.format else None,
        min_confidence=body.min_confidence,
        hedge=body.hedge,
        detail=body.detail,
    )


class _Draft:
    """A response on its way: its ids, and the events that tell of it."""

    def __init__(self, body: ResponsesRequest, reply: Reply, model: str) -> None:
        self.body, self.reply, self.model, self.created = body, reply, model, int(time())
        self.id, self.item_id = f"resp_{REQUEST_ID.get()}", f"msg_{REQUEST_ID.get()}"
        self._number = 0

    def whole(self, caption: Caption | None = None) -> dict[str, Any]:
        """The response; without a caption, as it is before there is one."""
        count = 0 if caption is None else count_tokens(caption)
        cut = caption is not None and self.reply.was_cut(caption)
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
            "model": self.body.model or self.model,
            "output": [] if caption is None else [self._message(self.reply.whole(caption), status)],
            "parallel_tool_calls": False,
            "temperature": self.body.temperature,
            "text": self._text_format(),
            "tool_choice": "none",
            "tools": [],
            "top_p": self.body.top_p,
            "usage": None if caption is None else usage,
            **({} if caption is None else self.reply.doubt(caption)),
        }

    async def events(self, steps: AsyncGenerator[StreamEvent]) -> AsyncGenerator[bytes]:
        """The response as server-sent events, whose generator this closes."""
        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        async with contextlib.aclosing(self.reply.pieces(steps)) as pieces:
            try:
                yield self._event("created", response=self.whole())
                yield self._event("in_progress", response=self.whole())
                item = {**self._message("", "in_progress"), "content": []}
                yield self._event("output_item.added", output_index=0, item=item)
                yield self._event("content_part.added", **place, part=_part(""))
                async for piece, caption in pieces:
                    if piece:
                        yield self._event("output_text.delta", **place, delta=piece, logprobs=[])
                    if caption:
                        text, whole = self.reply.whole(caption), self.whole(caption)
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

    def _text_format(self) -> dict[str, Any]:
        given = self.body.text and self.body.text.format
        if given is None:
            return {"format": {"type": "text"}}
        return {"format": given.model_dump(by_alias=True, exclude_none=True)}

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
