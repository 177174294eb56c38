"""Ollama's API, as far as clients need it that send photos: PhotoPrism, Open WebUI, the package `ollama`.

``/api/generate`` and ``/api/chat`` caption the last photo that comes; a model that follows instructions reads
the prompt as well. The forms are those of https://docs.ollama.com/api.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from time import perf_counter_ns
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from captioner import Caption, StreamEvent
from service.docs import body_of, problems
from service.errors import Problem, problem_of
from service.inputs import ImageText, Service, read_json, service_of, until_gone
from service.metrics import count_tokens
from service.models import Model
from service.ollama_schemas import (
    OllamaAnswer,
    OllamaChat,
    OllamaFormat,
    OllamaGenerate,
    OllamaModels,
    OllamaOptions,
    OllamaRequest,
    OllamaShow,
)
from service.replies import Reply
from service.routes import BUSY, STRANGERS, caption_images, stream_image
from service.sse import EventStream

__all__ = ["router"]

M = TypeVar("M", bound=BaseModel)
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
    body, model = await _read(request, OllamaGenerate)

    def put(text: str) -> dict[str, Any]:
        return {"response": text}

    if not body.images and not body.prompt:
        return await _loaded(request, body, model, put)
    return await _answer(request, body, model, body.images or (), body.prompt, put)


@router.post(
    "/api/chat",
    summary="Caption a photo: Ollama's chat form",
    response_model=OllamaAnswer,
    responses=ANSWERS,
    openapi_extra=body_of({"application/json": OllamaChat}),
)
async def chat(request: Request) -> Response:
    """The caption of the last photo in the messages, as the assistant's answer."""
    body, model = await _read(request, OllamaChat)

    def put(text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    if not body.messages:
        return await _loaded(request, body, model, put)
    latest = body.messages[::-1]
    images = next((message.images for message in latest if message.images), ())
    prompt = next((message.content for message in latest if message.role == "user"), "")
    return await _answer(request, body, model, images, prompt, put)


@router.get(
    "/api/tags",
    summary="Models: Ollama's form",
    response_model=OllamaModels,
    responses=problems(*STRANGERS, 503),
)
async def tags(request: Request) -> Response:
    """The models that this server has, by each of their names."""
    service = service_of(request)
    found = [
        {
            "name": name,
            "model": name,
            "modified_at": _time(service.engine.started_at),
            "size": model.size,
            "digest": hashlib.sha256(f"{model.name} {model.place}".encode()).hexdigest(),
            "details": _details(model),
        }
        for name, model in service.engine.models.names.items()
    ]
    return JSONResponse({"models": found})


@router.post(
    "/api/show",
    summary="A model: Ollama's form",
    response_model=dict[str, Any],
    responses=problems(400, *STRANGERS, 403, 404, 408, 413, 415, 429, 503),
    openapi_extra=body_of({"application/json": OllamaShow}),
)
async def show(request: Request) -> Response:
    """What the model is and can do."""
    service = service_of(request)
    body = await _read_json(request, OllamaShow)
    model = _find(service, body.model or body.name)
    parameters = model.about and model.about.parameters
    return JSONResponse(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _details(model),
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


async def _read(request: Request, kind: type[R]) -> tuple[R, Model]:
    service = service_of(request)
    service.engine.check_room()
    body = await _read_json(request, kind)
    return body, _find(service, body.model)


async def _read_json(request: Request, kind: type[M]) -> M:
    """The body, which Ollama takes for JSON whatever it is called: its own examples are `curl -d '{…}'`."""
    return await read_json(request, kind, whatever_it_is_called=True)


def _find(service: Service, name: str) -> Model:
    """The model of a name, which Ollama's clients may give a tag."""
    models = service.engine.models
    return models.find(name if name in models.names else name.removesuffix(":latest"))


async def _loaded(request: Request, body: OllamaRequest, model: Model, put: Put) -> Response:
    """The answer to a request without photo and prompt, by which clients have a model loaded."""
    service = service_of(request)

    async def load() -> None:
        async with service.engine.admit(model, 1):
            pass

    await until_gone(request, load())
    return JSONResponse({**_head(body), **put(""), "done": True, "done_reason": "load"})


async def _answer(
    request: Request, body: OllamaRequest, model: Model, images: Sequence[str], prompt: str, put: Put
) -> Response:
    if not images:
        raise Problem(400, "chat", "The chat cannot be followed", "there is no photo: send one in images")
    begun, service, image = perf_counter_ns(), service_of(request), ImageText(images[-1], "images")
    reply = _reply(body.options or OllamaOptions(), model, prompt, body.format)
    options = functools.partial(reply.options, service)
    if body.stream is not False:
        events = await stream_image(request, model, image, options)
        return Lines(request, _lines(events, body, reply, put, begun))
    (caption,) = await until_gone(request, caption_images(service, model, [image], options))
    return JSONResponse({**_head(body), **put(reply.whole(caption)), **_end(caption, reply, begun)})


async def _lines(
    events: AsyncGenerator[StreamEvent], body: OllamaRequest, reply: Reply, put: Put, begun: int
) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(reply.pieces(events)) as pieces:
        try:
            async for text, caption in pieces:
                end = {"done": False} if caption is None else _end(caption, reply, begun)
                yield _line({**_head(body), **put(text), **end})
        except Exception as error:
            yield _line({"error": problem_of(error).document["detail"]})


def _reply(how: OllamaOptions, model: Model, prompt: str, form: OllamaFormat) -> Reply:
    """What Ollama's options mean here."""
    return Reply(
        model=model,
        text=prompt,
        limit=how.num_predict if how.num_predict and how.num_predict > 0 else None,
        samples=bool(how.temperature),
        temperature=how.temperature,
        top_p=how.top_p,
        seed=how.seed,
        stop=how.stop or (),
        schema={"type": "object"} if form == "json" else form or None,
        min_confidence=how.min_confidence,
        hedge=how.hedge,
        detail=how.detail,
    )


def _head(body: OllamaRequest) -> dict[str, Any]:
    return {"model": body.model, "created_at": datetime.now(UTC).isoformat()}


def _end(caption: Caption, reply: Reply, begun: int) -> dict[str, Any]:
    """The last piece's counts; durations are in nanoseconds."""
    count, took = count_tokens(caption), perf_counter_ns() - begun
    return {
        "done": True,
        "done_reason": "length" if reply.was_cut(caption) else "stop",
        "total_duration": took,
        "load_duration": 0,
        "prompt_eval_count": 0,
        "prompt_eval_duration": 0,
        "eval_count": count,
        "eval_duration": took,
        **reply.doubt(caption),
    }


def _details(model: Model) -> dict[str, Any]:
    parameters = model.about.parameters if model.about else None
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
