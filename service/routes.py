"""The service's own routes: captions, whole or as a stream, models, health and metrics, and the page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from captioner import Caption, ImageError, SearchOptions, StreamEvent
from service.docs import body_of, events_of, problems
from service.engine import NotReadyError, Upload
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

__all__ = ["BUSY", "STATIC", "STRANGERS", "caption_images", "check_model", "router", "stream_image"]

STATIC = Path(__file__).parent / "static"

router = APIRouter()

STRANGERS = (401, 421)
"""What a route can answer with to clients that have no key, or none that is right."""

BUSY = (408, 413, 415, 422, 429, 500, 502, 503)
"""What every route that captions photos can answer with, besides what its own input can be wrong in."""


@router.post(
    "/v1/captions",
    tags=["captions"],
    summary="Caption photos",
    response_model=CaptionsOut,
    responses=problems(400, *STRANGERS, *BUSY),
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
    images, options = await read_captions_request(request)
    service = service_of(request)
    if partial:
        captions = await until_gone(request, caption_each(service, images, options))
    else:
        found = await until_gone(request, caption_images(service, images, options))
        captions = [caption.to_dict() for caption in found]
    return JSONResponse({"model": service.engine.captioner.name, "captions": captions})


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
        **problems(400, *STRANGERS, *BUSY),
    },
    response_class=Response,
    openapi_extra=body_of({"multipart/form-data": StreamForm, "application/json": StreamRequest}),
)
async def stream_caption(request: Request) -> Response:
    """The words of one photo's caption as soon as they are decided, as server-sent events."""
    (image,), options = await read_captions_request(request, max_images=1)
    events = await stream_image(request, image, options)
    return EventStream(request, _as_sse(events))


@router.get("/v1/models", tags=["models"], response_model=ModelsOut, responses=problems(*STRANGERS, 503))
async def list_models(request: Request) -> Response:
    """The model that this server has, by each of its names, and its own options."""
    service = service_of(request)
    data = [_model(service, name) for name in service.model_names]
    return JSONResponse(ModelsOut(data=data).model_dump())


@router.get(
    "/v1/models/{model:path}",
    tags=["models"],
    response_model=ModelOut,
    responses=problems(*STRANGERS, 404, 503),
)
async def get_model(request: Request, model: str) -> Response:
    """One model by its name."""
    service = service_of(request)
    check_model(service, model)
    name = model if model in service.model_names else service.engine.captioner.name
    return JSONResponse(_model(service, name).model_dump())


@router.get("/healthz", tags=["operations"], response_model=StatusOut, responses=problems(421, 503))
async def health(request: Request) -> Response:
    """Whether the process is alive; if not, only a new one helps."""
    if not service_of(request).engine.alive:
        raise NotReadyError("the inference thread has ended: restart the server")
    return JSONResponse({"status": "alive"})


@router.get("/readyz", tags=["operations"], response_model=StatusOut, responses=problems(421, 503))
async def ready(request: Request) -> Response:
    """Whether photos are taken on: the model is loaded and warm, and the server is not shutting down."""
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
    service: Service, images: Sequence[ImageIn], options: SearchOptions
) -> list[Caption]:
    """Fetch or decode what the request brought, and caption it; errors are those of both."""
    return await service.engine.caption(await load_images(service, images), options)


async def caption_each(
    service: Service, images: Sequence[ImageIn], options: SearchOptions
) -> list[dict[str, Any]]:
    """:func:`caption_images`, but with what is wrong in the place of a photo that cannot be used."""
    names = [image.name or f"image {number}" for number, image in enumerate(images, 1)]
    service.engine.check_room(len(images))

    async def caption(upload: Upload | Problem) -> Caption | Problem:
        if isinstance(upload, Problem):
            return upload
        try:
            (found,) = await service.engine.caption([upload], options)
        except ImageError as error:
            return problem_of(error)
        return found

    tasks = [asyncio.create_task(caption(item)) async for item in load_each(service, images)]
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
    request: Request, image: ImageIn, options: SearchOptions
) -> AsyncGenerator[StreamEvent]:
    """The events of one photo's caption, once the first is there: until then, errors still have a status."""
    service = service_of(request)

    async def begin() -> tuple[StreamEvent, AsyncGenerator[StreamEvent]]:
        (upload,) = await load_images(service, [image])
        events = service.engine.stream(upload, options)
        return await anext(events), events

    first, events = await until_gone(request, begin())

    async def all_events() -> AsyncGenerator[StreamEvent]:
        async with contextlib.aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_events()


def check_model(service: Service, name: str) -> None:
    """Raise a Problem with status 404 if another model is asked for than the one that is served."""
    if name not in (*service.model_names, "default"):
        detail = f"this server has {service.engine.captioner.name!r}, not {name[:100]!r}"
        raise Problem(404, "model", "No such model", detail)


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


def _model(service: Service, name: str) -> ModelOut:
    captioner = service.engine.captioner
    lacks = captioner.lacks.to_dict()
    return ModelOut(
        id=name,
        created=service.engine.started_at,
        owned_by="captioner",
        description=captioner.description,
        parameters=captioner.parameters,
        device=None if captioner.sends_photos_to else str(captioner.device),
        dtype=str(captioner.dtype).removeprefix("torch.") if captioner.dtype else None,
        sends_photos_to=captioner.sends_photos_to,
        default_options=captioner.default_options.to_dict(),
        gives={name: None if reason else True for name, reason in lacks.items()},
        reasons={name: reason for name, reason in lacks.items() if reason},
        max_beams=service.settings.max_beams,
        max_upload_bytes=service.settings.max_upload_bytes,
        max_pixels=service.settings.max_pixels,
    )
