"""Captions in forms that existing clients know: OpenAI's chat completions, Hugging Face's image-to-text.

Of a chat, a captioning model reads the photo alone, and a model that follows instructions the question too.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator
from time import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import format_sse_event

from captioner import Alternative, Caption, StreamEvent
from service.compat_schemas import ChatCompletion, ChatRequest, GeneratedText, InferenceRequest
from service.docs import body_of, problems
from service.engine import Upload
from service.errors import Problem, problem_of
from service.inputs import ImageIn, ImageText, body_type, read_json, service_of, until_gone
from service.logs import REQUEST_ID
from service.metrics import count_tokens
from service.models import Model
from service.replies import Reply
from service.routes import BUSY, STRANGERS, caption_images, stream_image
from service.schemas import CaptionOptions
from service.sse import EventStream, format_event

__all__ = ["router"]

HUGGING_FACE_DUMMY = "dummy"
"""The model that huggingface_hub asks for where it was given a URL in place of one."""

EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
"""The schema of an event, whose data is a chunk's JSON or ``[DONE]``."""

router = APIRouter(tags=["compatible"])


@router.post(
    "/v1/chat/completions",
    summary="Caption a photo: OpenAI's form",
    response_model=ChatCompletion,
    responses={
        200: {
            "description": "A completion; with `stream`, its chunks as server-sent events.",
            "content": {"text/event-stream": {"itemSchema": EVENT}},
        },
        **problems(400, *STRANGERS, 404, *BUSY),
    },
    openapi_extra=body_of({"application/json": ChatRequest}),
)
async def create_chat_completion(request: Request) -> Response:
    """A caption of the last photo in the messages, as the assistant's answer."""
    return await _complete(request)


@router.post("/models/{model:path}/v1/chat/completions", include_in_schema=False)
async def complete_chat_of_model(request: Request, model: str) -> Response:
    """The same, as huggingface_hub asks for it if its `model` is the URL of a model here."""
    return await _complete(request, model)


async def _complete(request: Request, name: str | None = None) -> Response:
    service = service_of(request)
    service.engine.check_room()
    chat = await read_json(request, ChatRequest)
    if name is None:
        name = "" if chat.model == HUGGING_FACE_DUMMY else chat.model
    model, image = service.engine.models.find(name), _last_image(chat)
    reply = _reply(chat, model)
    options = functools.partial(reply.options, service)
    head = {"id": f"chatcmpl-{REQUEST_ID.get()}", "created": int(time()), "model": model.name}
    if chat.stream:
        events = await stream_image(request, model, image, options)
        include_usage = chat.stream_options is not None and chat.stream_options.include_usage
        return EventStream(request, _chunks(events, head, reply, include_usage=include_usage))
    (caption,) = await until_gone(request, caption_images(service, model, [image], options))
    found = _all_of(caption)
    choices = [_choice(index, item, reply) for index, item in enumerate(found)]
    choices[0] |= reply.doubt(caption)
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": _usage(found)})


@router.post(
    "/", include_in_schema=False
)  # where huggingface_hub posts to if its `model` is the server's URL
@router.post(
    "/image-to-text",
    summary="Caption a photo: Hugging Face's form",
    response_model=list[GeneratedText],
    responses=problems(400, *STRANGERS, 404, *BUSY),
    openapi_extra=body_of({"application/octet-stream": bytes, "application/json": InferenceRequest}),
)
@router.post(
    "/models/{model:path}",
    summary="Caption a photo by a model: Hugging Face's form",
    response_model=list[GeneratedText],
    responses=problems(400, *STRANGERS, 404, *BUSY),
    openapi_extra=body_of({"application/octet-stream": bytes, "application/json": InferenceRequest}),
)
async def image_to_text(request: Request, model: str = "") -> Response:
    """The caption of the photo that is the body; or, as JSON, of `inputs` with `parameters`."""
    service = service_of(request)
    service.engine.check_room()
    chosen = service.engine.models.find(model)
    image: ImageIn
    if body_type(request) == "application/json":
        body = await read_json(request, InferenceRequest)
        image, given = ImageText(body.inputs, "inputs"), body.options()
    else:
        image, given = Upload(await request.body(), "image"), CaptionOptions()
    options = functools.partial(service.options, given)
    (caption,) = await until_gone(request, caption_images(service, chosen, [image], options))
    return JSONResponse([{"generated_text": item.caption} for item in _all_of(caption)])


def _last_image(chat: ChatRequest) -> ImageText:
    for message in reversed(chat.messages):
        urls = message.image_urls()
        if len(urls) > 1:
            raise Problem(400, "chat", "The chat cannot be followed", "send one photo in a message, not more")
        if urls:
            return ImageText(urls[0], "image_url.url")
    raise Problem(400, "chat", "The chat cannot be followed", "there is no photo: send one as an image_url")


def _reply(chat: ChatRequest, model: Model) -> Reply:
    """What OpenAI's fields mean here."""
    return Reply(
        model=model,
        text=chat.last_text(),
        limit=chat.max_completion_tokens or chat.max_tokens,
        samples=bool(chat.temperature or (chat.temperature is None and chat.top_p is not None)),
        temperature=chat.temperature,
        top_p=chat.top_p,
        seed=chat.seed,
        alternatives=(chat.n or 1) - 1,
        stop=chat.stop or (),
        schema=chat.response_format.wanted() if chat.response_format else None,
        min_confidence=chat.min_confidence,
        hedge=chat.hedge,
        detail=chat.detail,
    )


async def _chunks(
    events: AsyncGenerator[StreamEvent], head: dict[str, Any], reply: Reply, *, include_usage: bool
) -> AsyncGenerator[bytes]:
    def chunk(delta: dict[str, str], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, **more}
        return format_event({**head, "object": "chat.completion.chunk", "choices": [choice]})

    async with contextlib.aclosing(reply.pieces(events)) as pieces:
        try:
            yield chunk({"role": "assistant", "content": ""})
            async for text, caption in pieces:
                if caption is None:
                    yield chunk({"content": text})
                    continue
                yield chunk({}, _finish_reason(caption, reply), **reply.doubt(caption))
                if include_usage:
                    usage = _usage([caption])
                    yield format_event(
                        {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
                    )
        except Exception as error:
            yield format_event(problem_of(error).document)
    yield format_sse_event(data_str="[DONE]")


def _all_of(caption: Caption) -> list[Caption | Alternative]:
    return [caption, *caption.alternatives]


def _choice(index: int, item: Caption | Alternative, reply: Reply) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": reply.whole(item), "refusal": None},
        "logprobs": None,
        "finish_reason": _finish_reason(item, reply),
    }


def _finish_reason(caption: Caption | Alternative, reply: Reply) -> str:
    return "length" if reply.was_cut(caption) else "stop"


def _usage(captions: list[Caption | Alternative]) -> dict[str, int]:
    """Tokens of the captions; a photo has none."""
    count = sum(map(count_tokens, captions))
    return {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}
