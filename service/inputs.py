"""What requests bring: photos as form files, base64, data: URIs or URLs, and how to caption them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from captioner import OptionsError, SearchOptions
from service.engine import Engine, Upload
from service.errors import Problem
from service.fetch import Fetcher
from service.schemas import MAX_IMAGES, Base64Image, CaptionOptions, CaptionsRequest, UrlImage
from service.settings import Settings

__all__ = [
    "ImageIn",
    "Service",
    "body_type",
    "load_images",
    "read_captions_request",
    "read_json",
    "service_of",
    "until_gone",
]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

ImageIn: TypeAlias = Upload | Base64Image | UrlImage
"""A photo as a request brings it."""

MAX_FIELD_BYTES = 16_384
"""Of a form field that is no file."""


@dataclass(frozen=True)
class Service:
    """What routes work with."""

    settings: Settings
    engine: Engine
    fetcher: Fetcher

    def options(self, given: CaptionOptions) -> SearchOptions:
        """All options of a request; OptionsError if they cannot be followed, or ask for too many beams."""
        options = self.engine.captioner.resolve(given.to_options())
        most = self.settings.max_beams
        if max(options.num_beams, options.alternatives + 1) > most:
            raise OptionsError(f"this server allows {most} beams, and as many captions of a photo, at most")
        return options


def service_of(request: Request) -> Service:
    """The service that the request's application was started with."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def body_type(request: Request) -> str:
    """The media type of the request's body, without parameters; "" if it names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[M]) -> M:
    """The request's JSON body.

    Raises:
        Problem: status 415, the body is called something else.
        pydantic.ValidationError: it is not valid.
    """
    if body_type(request) != "application/json":
        raise Problem(415, "body-type", "Not a body that is read", "send application/json")
    body = await request.body()  # in a thread, for there can be megabytes of base64 in it
    return await asyncio.to_thread(model.model_validate_json, body, strict=True)


async def read_captions_request(
    request: Request, *, max_images: int = MAX_IMAGES
) -> tuple[Sequence[ImageIn], SearchOptions]:
    """The photos and options of a form or a JSON body.

    Raises:
        Problem: 400 if it is not valid or has too many photos, 415 if it is neither form nor JSON.
        OptionsError, pydantic.ValidationError: the options are not valid.
    """
    service = service_of(request)
    service.engine.check_room()
    kind = body_type(request)
    given: CaptionOptions
    images: Sequence[ImageIn]
    if kind == "application/json":
        body = await read_json(request, CaptionsRequest)
        given, images = body, body.images
    elif kind == "multipart/form-data":
        form = await _read_form(request)
        given, images = CaptionOptions.model_validate(_fields(form)), await _files(form)
    else:
        raise Problem(
            415, "body-type", "Not a body that is read", "send multipart/form-data or application/json"
        )
    limit = min(max_images, service.engine.queue_size)
    if len(images) > limit:
        raise _invalid(f"send {limit} photos at most in a request, not {len(images)}")
    return images, service.options(given)


async def load_images(service: Service, images: Sequence[ImageIn]) -> list[Upload]:
    """The bytes of photos, wherever they are; Problem if one cannot be had.

    Those of URLs together may be as large as a request's body.
    """
    uploads, budget = [], service.settings.max_upload_bytes
    for number, image in enumerate(images, 1):
        if isinstance(image, UrlImage) and image.url[:5].lower() != "data:":
            data = await service.fetcher.fetch(image.url, max_bytes=budget)
            budget -= len(data)
            image = Upload(data, image.name or f"image {number}")
        elif not isinstance(image, Upload):
            text = image.base64 if isinstance(image, Base64Image) else image.url
            data = await asyncio.to_thread(_decode, text, number)
            image = Upload(data, image.name or f"image {number}")
        uploads.append(image)
    return uploads


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled as soon as the client goes away.

    The request's body must have been read, or not be wanted.

    Raises:
        ClientDisconnect: it did.
    """

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(watch())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class _MultiPartParser(MultiPartParser):
    spool_max_size = sys.maxsize  # photos stay off the disk; LimitBody bounds what they take


async def _read_form(request: Request) -> FormData:
    """Starlette's ``Request.form``, which would write larger photos to the disk."""
    parser = _MultiPartParser(
        request.headers,
        request.stream(),
        max_files=MAX_IMAGES,
        max_fields=100,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise _invalid(error.message) from error


def _fields(form: FormData) -> dict[str, Any]:
    """Fields that are no photos; one that is repeated, or may be, is a list."""
    found = {key: form.getlist(key) for key in form if key != "image"}
    return {key: item if len(item) > 1 or key == "bad_words" else item[0] for key, item in found.items()}


async def _files(form: FormData) -> list[Upload]:
    uploads = []
    for number, file in enumerate(form.getlist("image"), 1):
        if not isinstance(file, UploadFile):
            raise _invalid(f"image {number} is a text, not a file")
        uploads.append(Upload(await file.read(), (file.filename or f"image {number}")[:255]))
    if not uploads:
        raise _invalid("there is no photo: send one as `image`")
    return uploads


def _invalid(detail: str) -> Problem:
    return Problem(400, "invalid", "The request is not valid", detail)


def _decode(text: str, number: int) -> bytes:
    """Base64, alone or as a data: URI (RFC 2397)."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Problem(400, "base64", "Not base64", f"image {number}: a data: URI must be `…;base64,…`")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(400, "base64", "Not base64", f"image {number}: {error}") from error
