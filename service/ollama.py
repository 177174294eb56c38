"""Ollama's API, as far as clients need it that send photos: PhotoPrism, Open WebUI, the package `ollama`.

``/api/generate`` and ``/api/chat`` caption the last photo that comes; a model that follows instructions reads
the prompt as well. The forms are those of https://docs.ollama.com/api.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from time import perf_counter_ns
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from captioner import Caption, SearchOptions, StreamEvent
from service.compat import certain_length
from service.docs import body_of, problems
from service.errors import Problem, problem_of
from service.inputs import ImageText, Service, read_json, service_of, until_gone
from service.metrics import count_tokens
from service.ollama_schemas import (
    OllamaAnswer,
    OllamaChat,
    OllamaGenerate,
    OllamaModels,
    OllamaOptions,
    OllamaRequest,
    OllamaShow,
)
from service.routes import BUSY, STRANGERS, caption_images, check_model, stream_image
from service.schemas import CaptionOptions
from service.sse import EventStream

__all__ = ["router"]

R = TypeVar("R", bound=OllamaRequest)
Put = Callable[[str], dict[str, Any]]
"""Where a text stands in an answer."""

router = APIRouter(tags=["compatible"])

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; unless `stream` is false, in pieces, a JSON object a line.",
        "content": {"application/x-ndjson": {"schema": {"type": "object"}}},
    },
    **problems(400, *STRANGERS, 404, *BUSY),
}


class Lines(EventStream):
    """JSON objects, a line each."""

    media_type = "application/x-ndjson"


@router.post(
    "/api/generate",
    summary="Caption a photo: Ollama's form",
    response_model=OllamaAnswer,
    responses=ANSWERS,
    openapi_extra=body_of({"application/json": OllamaGenerate}),
)
async def generate(request: Request) -> Response:
    """The caption of the last photo in `images`."""
    body = await _read(request, OllamaGenerate)

    def put(text: str) -> dict[str, Any]:
        return {"response": text}

    if not body.images and not body.prompt:
        return _loaded(body, put)
    return await _answer(request, body, body.images or (), body.prompt, put)


@router.post(
    "/api/chat",
    summary="Caption a photo: Ollama's chat form",
    response_model=OllamaAnswer,
    responses=ANSWERS,
    openapi_extra=body_of({"application/json": OllamaChat}),
)
async def chat(request: Request) -> Response:
    """The caption of the last photo in the messages, as the assistant's answer."""
    body = await _read(request, OllamaChat)

    def put(text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    if not body.messages:
        return _loaded(body, put)
    latest = body.messages[::-1]
    images = next((message.images for message in latest if message.images), ())
    prompt = next((message.content for message in latest if message.role == "user"), "")
    return await _answer(request, body, images, prompt, put)


@router.get(
    "/api/tags",
    summary="Models: Ollama's form",
    response_model=OllamaModels,
    responses=problems(*STRANGERS, 503),
)
async def tags(request: Request) -> Response:
    """The model that this server has, by each of its names."""
    service = service_of(request)
    captioner = service.engine.captioner
    about = {
        "modified_at": _time(service.engine.started_at),
        "size": 0,
        "digest": hashlib.sha256(f"{captioner.name} {captioner.description}".encode()).hexdigest(),
        "details": _details(service),
    }
    return JSONResponse({"models": [{"name": name, "model": name, **about} for name in service.model_names]})


@router.post(
    "/api/show",
    summary="A model: Ollama's form",
    response_model=dict[str, Any],
    responses=problems(400, *STRANGERS, 404, 415, 503),
    openapi_extra=body_of({"application/json": OllamaShow}),
)
async def show(request: Request) -> Response:
    """What the model is and can do."""
    service = service_of(request)
    body = await read_json(request, OllamaShow)
    check_model(service, (body.model or body.name).removesuffix(":latest"))
    parameters = service.engine.captioner.parameters
    return JSONResponse(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _details(service),
            "model_info": {"general.architecture": "captioner", "general.parameter_count": parameters},
            "capabilities": ["completion", "vision"],
            "modified_at": _time(service.engine.started_at),
        }
    )


@router.get(
    "/api/version",
    summary="Version: Ollama's form",
    response_model=dict[str, str],
    responses=problems(*STRANGERS),
)
async def get_version() -> Response:
    """The version of Captioner."""
    return JSONResponse({"version": version("captioner")})


async def _read(request: Request, kind: type[R]) -> R:
    service = service_of(request)
    service.engine.check_room()
    body = await read_json(request, kind)
    check_model(service, body.model.removesuffix(":latest"))
    return body


def _loaded(body: OllamaRequest, put: Put) -> Response:
    """The answer to a request without photo and prompt, by which clients have a model loaded."""
    return JSONResponse({**_head(body), **put(""), "done": True, "done_reason": "load"})


async def _answer(
    request: Request, body: OllamaRequest, images: Sequence[str], prompt: str, put: Put
) -> Response:
    if not images:
        raise Problem(400, "chat", "The chat cannot be followed", "there is no photo: send one in images")
    begun, service = perf_counter_ns(), service_of(request)
    how = body.options or OllamaOptions()
    image, options = ImageText(images[-1], "images"), _options(service, how, prompt)
    if body.stream is not False:
        events = await stream_image(request, image, options)
        return Lines(request, _lines(events, body, put, begun))
    (caption,) = await until_gone(request, caption_images(service, [image], options))
    text = caption.caption[: certain_length(caption.caption, how.stop or (), ended=True)]
    return JSONResponse({**_head(body), **put(text), **_end(caption, begun)})


async def _lines(
    events: AsyncGenerator[StreamEvent], body: OllamaRequest, put: Put, begun: int
) -> AsyncGenerator[bytes]:
    stop = (body.options and body.options.stop) or ()
    text, sent = "", 0
    async with contextlib.aclosing(events):
        try:
            async for event in events:
                text += event.text
                certain = certain_length(text, stop, ended=event.caption is not None)
                if certain > sent:
                    yield _line({**_head(body), **put(text[sent:certain]), "done": False})
                    sent = certain
                if event.caption:
                    yield _line({**_head(body), **put(""), **_end(event.caption, begun)})
        except Exception as error:
            yield _line({"error": problem_of(error).document["detail"]})


def _options(service: Service, how: OllamaOptions, prompt: str) -> SearchOptions:
    """What Ollama's options mean here. The caption's length is the model's, or less if that is asked for."""
    longest = service.engine.captioner.default_options.max_length
    limit = how.num_predict if how.num_predict and how.num_predict > 0 else longest
    given: dict[str, Any] = {"max_length": min(limit, longest), **service.instruction(prompt)}
    if how.temperature:
        given |= {"do_sample": True, "temperature": min(100.0, max(0.01, how.temperature))}
        if how.top_p not in (None, 1):
            given["top_p"] = max(0.001, how.top_p)
        given["seed"] = None if how.seed is None else how.seed % 2**63
    return service.options(CaptionOptions(**given))


def _head(body: OllamaRequest) -> dict[str, Any]:
    return {"model": body.model, "created_at": datetime.now(UTC).isoformat()}


def _end(caption: Caption, begun: int) -> dict[str, Any]:
    """The last piece's counts; durations are in nanoseconds."""
    count, took = count_tokens(caption), perf_counter_ns() - begun
    return {
        "done": True,
        "done_reason": "length" if caption.finished is False else "stop",
        "total_duration": took,
        "load_duration": 0,
        "prompt_eval_count": 0,
        "prompt_eval_duration": 0,
        "eval_count": count,
        "eval_duration": took,
    }


def _details(service: Service) -> dict[str, Any]:
    parameters = service.engine.captioner.parameters
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": "captioner",
        "families": ["captioner"],
        "parameter_size": "" if parameters is None else f"{parameters / 1e6:.0f}M",
        "quantization_level": "",
    }


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False).encode() + b"\n"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
