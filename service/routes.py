"""The service's own routes: captions, whole or as a stream, models, health and metrics, and the page."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from captioner import Caption, Captioner, ImageError, SearchOptions, StreamEvent
from service.docs import body_of, events_of, problems
from service.engine import NotReadyError, Turn, Upload
from service.errors import Problem, problem_of
from service.inputs import (
    ImageIn,
    Service,
    load_each,
    load_images,
    read_captions_request,
    service_of,
    until_gone,
)
from service.models import Model
from service.schemas import (
    CaptionOut,
    CaptionsForm,
    CaptionsOut,
    CaptionsRequest,
    ModelOut,
    ModelsOut,
    ProblemOut,
    StatusOut,
    StreamForm,
    StreamRequest,
    TextOut,
)
from service.sse import EventStream, format_event

__all__ = ["BUSY", "STATIC", "STRANGERS", "How", "caption_images", "router", "stream_image"]

How = Callable[[Captioner], SearchOptions]
"""A request's options for the model that it gets; raises OptionsError where they do not suit that."""

STATIC = Path(__file__).parent / "static"

router = APIRouter()

STRANGERS = (401, 421)
"""What a route can answer with to clients that have no key, or none that is right; a POST also with 403."""

BUSY = (403, 408, 413, 415, 422, 429, 500, 502, 503)
"""What every route that captions photos can answer with, besides what its own input can be wrong in."""


@router.post(
    "/v1/captions",
    tags=["captions"],
    summary="Caption photos",
    response_model=CaptionsOut,
    responses=problems(400, *STRANGERS, 404, *BUSY),
    openapi_extra=body_of({"multipart/form-data": CaptionsForm, "application/json": CaptionsRequest}),
)
async def create_captions(
    request: Request,
    partial: Annotated[
        bool,
        Query(description="Answer although a photo cannot be captioned, with an error in its place."),
    ] = False,
) -> Response:
    """A caption for each photo, in order, with the confidence of each word."""
    model, images, given = await read_captions_request(request)
    service = service_of(request)
    options = functools.partial(service.options, given)
    if partial:
        captions = await until_gone(request, caption_each(service, model, images, options))
    else:
        found = await until_gone(request, caption_images(service, model, images, options))
        captions = [caption.to_dict() for caption in found]
    return JSONResponse({"model": model.name, "captions": captions})


@router.post(
    "/v1/captions/stream",
    tags=["captions"],
    summary="Caption a photo word by word",
    responses={
        200: {
            "description": "Events `text`, whose `text` the caption goes on with; then one `caption`, the "
            "whole as `/v1/captions` gives it; or `error`, a problem document.",
            "content": events_of({"text": TextOut, "caption": CaptionOut, "error": ProblemOut}),
        },
        **problems(400, *STRANGERS, 404, *BUSY),
    },
    response_class=Response,
    openapi_extra=body_of({"multipart/form-data": StreamForm, "application/json": StreamRequest}),
)
async def stream_caption(request: Request) -> Response:
    """The words of one photo's caption as soon as they are decided, as server-sent events."""
    model, (image,), given = await read_captions_request(request, max_images=1)
    options = functools.partial(service_of(request).options, given)
    events = await stream_image(request, model, image, options)
    return EventStream(request, _as_sse(events))


@router.get("/v1/models", tags=["models"], response_model=ModelsOut, responses=problems(*STRANGERS, 503))
async def list_models(request: Request) -> Response:
    """The models that this server has, by each of their names, and their own options."""
    service = service_of(request)
    data = [_model(service, name, model) for name, model in service.engine.models.names.items()]
    return JSONResponse(ModelsOut(data=data).model_dump())


@router.get(
    "/v1/models/{model:path}",
    tags=["models"],
    response_model=ModelOut,
    responses=problems(*STRANGERS, 404, 503),
)
async def get_model(request: Request, model: str) -> Response:
    """One model by its name."""
    if not model:  # a slash too many, after which most clients would not follow a redirect
        return await list_models(request)
    service = service_of(request)
    found, names = service.engine.models.find(model), service.engine.models.names
    return JSONResponse(_model(service, model if model in names else found.name, found).model_dump())


@router.get("/healthz", tags=["operations"], response_model=StatusOut, responses=problems(421, 503))
async def health(request: Request) -> Response:
    """Whether the process is alive; if not, only a new one helps."""
    if not service_of(request).engine.alive:
        raise NotReadyError("the inference thread has ended: restart the server")
    return JSONResponse({"status": "alive"})


@router.get("/readyz", tags=["operations"], response_model=StatusOut, responses=problems(421, 503))
async def ready(request: Request) -> Response:
    """Whether photos are taken on: the first model is warm, and the server is not shutting down."""
    service_of(request).engine.check_ready()
    return JSONResponse({"status": "ready"})


@router.get("/metrics", tags=["operations"], response_class=PlainTextResponse, responses=problems(*STRANGERS))
async def metrics(request: Request) -> Response:
    """What happened since the start, in Prometheus's text format."""
    return Response(service_of(request).engine.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The web page."""
    return FileResponse(STATIC / "index.html")


async def caption_images(
    service: Service, model: Model, images: Sequence[ImageIn], options: How
) -> list[Caption]:
    """Fetch or decode what the request brought, and caption it; errors are those of both."""
    async with service.engine.admit(model, len(images)) as turn:
        how = options(turn.captioner)
        return await turn.caption(await load_images(service, images), how)


async def caption_each(
    service: Service, model: Model, images: Sequence[ImageIn], options: How
) -> list[dict[str, Any]]:
    """:func:`caption_images`, but with what is wrong in the place of a photo that cannot be used."""
    names = [image.name or f"image {number}" for number, image in enumerate(images, 1)]

    async def caption(turn: Turn, how: SearchOptions, upload: Upload | Problem) -> Caption | Problem:
        if isinstance(upload, Problem):
            return upload
        try:
            (found,) = await turn.caption([upload], how)
        except ImageError as error:
            return problem_of(error)
        return found

    async with service.engine.admit(model, len(images)) as turn:
        how = options(turn.captioner)
        each = load_each(service, images)
        tasks = [asyncio.create_task(caption(turn, how, item)) async for item in each]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
    return [
        _failed(name, item) if isinstance(item, Problem) else item.to_dict()
        for name, item in zip(names, found, strict=True)
    ]


async def stream_image(
    request: Request, model: Model, image: ImageIn, options: How
) -> AsyncGenerator[StreamEvent]:
    """The events of one photo's caption, once the first is there: until then, errors still have a status."""
    service = service_of(request)

    async def caption() -> AsyncGenerator[StreamEvent]:
        async with service.engine.admit(model, 1) as turn:
            how = options(turn.captioner)
            (upload,) = await load_images(service, [image])
            async with contextlib.aclosing(turn.stream(upload, how)) as events:
                async for event in events:
                    yield event

    events = caption()

    async def begin() -> StreamEvent:
        return await anext(events)

    first = await until_gone(request, begin())

    async def all_events() -> AsyncGenerator[StreamEvent]:
        async with contextlib.aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_events()


def _failed(name: str, problem: Problem) -> dict[str, Any]:
    found = problem.document
    return {"file": name, "error": found["detail"], "type": found["type"], "status": found["status"]}


async def _as_sse(events: AsyncGenerator[StreamEvent]) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(events):
        try:
            async for event in events:
                if event.text:
                    yield format_event({"text": event.text}, name="text")
                if event.caption:
                    yield format_event(event.caption.to_dict(), name="caption")
        except Exception as error:
            yield format_event(problem_of(error).document, name="error")


def _model(service: Service, name: str, model: Model) -> ModelOut:
    about = model.about
    lacks = about.lacks if about else {}
    return ModelOut(
        id=name,
        alias_of=None if name == model.name else model.name,
        created=service.engine.started_at,
        owned_by="captioner",
        loaded=model.captioner is not None,
        description=about.description if about else "",
        parameters=about and about.parameters,
        device=about and about.device,
        dtype=about and about.dtype,
        sends_photos_to=model.sends_photos_to,
        default_options=dict(about.default_options) if about else {},
        gives={name: None if reason else True for name, reason in lacks.items()},
        reasons={name: reason for name, reason in lacks.items() if reason},
        max_beams=service.settings.max_beams,
        max_upload_bytes=service.settings.max_upload_bytes,
        max_pixels=service.settings.max_pixels,
    )
