"""Captions in forms that existing clients know: OpenAI's chat completions, Hugging Face's image-to-text.

Of a chat, a captioning model reads the photo alone, and a model that follows instructions the question too.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from time import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import format_sse_event

from captioner import Alternative, Caption, SearchOptions, StreamEvent
from service.compat_schemas import ChatCompletion, ChatRequest, GeneratedText, InferenceRequest
from service.docs import body_of, problems
from service.engine import Upload
from service.errors import Problem, problem_of
from service.inputs import ImageIn, ImageText, Service, body_type, read_json, service_of, until_gone
from service.logs import REQUEST_ID
from service.metrics import count_tokens
from service.routes import BUSY, STRANGERS, caption_images, check_model, stream_image
from service.schemas import CaptionOptions
from service.sse import EventStream, format_event

__all__ = ["certain_length", "router"]

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
    service = service_of(request)
    service.engine.check_room()
    chat = await read_json(request, ChatRequest)
    if chat.model != HUGGING_FACE_DUMMY:
        check_model(service, chat.model)
    image, options = _last_image(chat), _chat_options(service, chat)
    head = {
        "id": f"chatcmpl-{REQUEST_ID.get()}",
        "created": int(time()),
        "model": service.engine.captioner.name,
    }
    if chat.stream:
        events = await stream_image(request, image, options)
        include_usage = chat.stream_options is not None and chat.stream_options.include_usage
        chunks = _chunks(events, head, options, chat.stop or (), include_usage=include_usage)
        return EventStream(request, chunks)
    (caption,) = await until_gone(request, caption_images(service, [image], options))
    found = _all_of(caption)
    choices = [_choice(index, item, chat.stop or ()) for index, item in enumerate(found)]
    choices[0] |= _doubt(caption, options)
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": _usage(found)})


@router.post(
    "/", include_in_schema=False
)  # where huggingface_hub posts to if its `model` is the server's URL
@router.post(
    "/image-to-text",
    summary="Caption a photo: Hugging Face's form",
    response_model=list[GeneratedText],
    responses=problems(400, *STRANGERS, *BUSY),
    openapi_extra=body_of({"application/octet-stream": bytes, "application/json": InferenceRequest}),
)
async def image_to_text(request: Request) -> Response:
    """The caption of the photo that is the body; or, as JSON, of `inputs` with `parameters`."""
    service = service_of(request)
    service.engine.check_room()
    image: ImageIn
    if body_type(request) == "application/json":
        body = await read_json(request, InferenceRequest)
        image, given = ImageText(body.inputs, "inputs"), body.options()
    else:
        image, given = Upload(await request.body(), "image"), CaptionOptions()
    (caption,) = await until_gone(request, caption_images(service, [image], service.options(given)))
    return JSONResponse([{"generated_text": item.caption} for item in _all_of(caption)])


def _last_image(chat: ChatRequest) -> ImageText:
    for message in reversed(chat.messages):
        urls = message.image_urls()
        if len(urls) > 1:
            raise Problem(400, "chat", "The chat cannot be followed", "send one photo in a message, not more")
        if urls:
            return ImageText(urls[0], "image_url.url")
    raise Problem(400, "chat", "The chat cannot be followed", "there is no photo: send one as an image_url")


def _chat_options(service: Service, chat: ChatRequest) -> SearchOptions:
    """What OpenAI's fields mean here. The caption's length is the model's, or less if that is asked for."""
    longest = service.engine.captioner.default_options.max_length
    limit = chat.max_completion_tokens or chat.max_tokens or longest
    given: dict[str, Any] = {"max_length": min(limit, longest), "alternatives": (chat.n or 1) - 1}
    given |= service.instruction(chat.last_text())
    given |= {"min_confidence": chat.min_confidence, "hedge": chat.hedge}
    if chat.temperature or (chat.temperature is None and chat.top_p is not None):
        given |= {"do_sample": True, "temperature": max(0.01, chat.temperature or 1.0)}
        if chat.top_p not in (None, 1):  # clients send OpenAI's default by habit
            given["top_p"] = max(0.001, chat.top_p)
        given["seed"] = None if chat.seed is None else chat.seed % 2**63
    return service.options(CaptionOptions(**given))


async def _chunks(
    events: AsyncGenerator[StreamEvent],
    head: dict[str, Any],
    options: SearchOptions,
    stop: Sequence[str],
    *,
    include_usage: bool,
) -> AsyncGenerator[bytes]:
    def chunk(delta: dict[str, str], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, **more}
        return format_event({**head, "object": "chat.completion.chunk", "choices": [choice]})

    async with contextlib.aclosing(events):
        try:
            yield chunk({"role": "assistant", "content": ""})
            text, sent = "", 0
            async for event in events:
                text += event.text
                certain = certain_length(text, stop, ended=event.caption is not None)
                if certain > sent:
                    yield chunk({"content": text[sent:certain]})
                    sent = certain
                if event.caption:
                    yield chunk({}, _finish_reason(event.caption, stop), **_doubt(event.caption, options))
                    if include_usage:
                        usage = _usage([event.caption])
                        yield format_event(
                            {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
                        )
        except Exception as error:
            yield format_event(problem_of(error).document)
    yield format_sse_event(data_str="[DONE]")


def _all_of(caption: Caption) -> list[Caption | Alternative]:
    return [caption, *caption.alternatives]


def _choice(index: int, item: Caption | Alternative, stop: Sequence[str]) -> dict[str, Any]:
    text = item.caption[: certain_length(item.caption, stop, ended=True)]
    return {
        "index": index,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": _finish_reason(item, stop),
    }


def _doubt(caption: Caption, options: SearchOptions) -> dict[str, Any]:
    """What OpenAI's form has no field for, and who set a least confidence waits for."""
    if not options.min_confidence:
        return {}
    found = caption.to_dict()
    wanted = ("confidence", "calibrated", "uncertain", "unhedged")
    return {"uncertain": False, **{name: found[name] for name in wanted if name in found}}


def certain_length(text: str, stop: Sequence[str], *, ended: bool) -> int:
    """How many characters of a text come before the first of the texts to stop at that is complete.

    While it has not ended, its last characters may be the beginning of one.
    """
    ends = [(place + len(each), place) for each in stop if (place := text.find(each)) >= 0]
    if ends:
        return min(ends)[1]
    begun = [length for each in stop for length in range(1, len(each)) if text.endswith(each[:length])]
    return len(text) - max(begun, default=0) * (not ended)


def _finish_reason(caption: Caption | Alternative, stop: Sequence[str]) -> str:
    stopped = any(each in caption.caption for each in stop)
    return "length" if caption.finished is False and not stopped else "stop"


def _usage(captions: list[Caption | Alternative]) -> dict[str, int]:
    """Tokens of the captions; a photo has none."""
    count = sum(map(count_tokens, captions))
    return {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}
