"""What requests bring: photos as form files, base64, data: URIs or URLs, and how to caption them."""

from __future__ import annotations

import asyncio
import base64
import re
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote, unquote_to_bytes

from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from captioner import Captioner, OptionsError, SearchOptions
from service.engine import Engine, Upload
from service.errors import Problem
from service.fetch import Fetcher
from service.forms import read_form
from service.models import Model
from service.schemas import MAX_IMAGES, CaptionOptions, CaptionsRequest, ChoiceOptions, ImageRef
from service.settings import Settings
from service.validation import shown

__all__ = [
    "ImageIn",
    "ImageText",
    "Service",
    "body_type",
    "load_each",
    "load_images",
    "read_captions_request",
    "read_json",
    "service_of",
    "until_gone",
]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

ADDRESS = re.compile(r"(?!data:)[a-z][a-z0-9+.-]*:", re.IGNORECASE)
URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True)
class ImageText:
    """A photo that a request brings as a text.

    Attributes:
        text: base64, a data: URI or an address.
        field: where in the request it stands.
        name: shown as the caption's ``file``; "" for the photo's number.
    """

    text: str
    field: str
    name: str = ""


ImageIn: TypeAlias = Upload | ImageText
"""A photo as a request brings it."""


@dataclass(frozen=True)
class Service:
    """What routes work with."""

    settings: Settings
    engine: Engine
    fetcher: Fetcher

    def options(self, given: CaptionOptions, captioner: Captioner, *, json_schema: str = "") -> SearchOptions:
        """All options of a request; OptionsError if they cannot be followed, or ask for too many beams."""
        options = captioner.resolve(replace(given.to_options(), json_schema=json_schema))
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


async def read_json(request: Request, model: type[M], *, whatever_it_is_called: bool = False) -> M:
    """The request's JSON body.

    Raises:
        Problem: status 415, the body is called something else, and that counts.
        pydantic.ValidationError: it is not valid.
    """
    if body_type(request) != "application/json" and not whatever_it_is_called:
        raise _strange_body(request, "application/json")
    body = (await request.body()).removeprefix(BOM_UTF8)  # which Windows' programs begin their files with
    # in a thread, for there can be megabytes of base64 in it
    return await asyncio.to_thread(model.model_validate_json, body, strict=True)


async def read_captions_request(
    request: Request, *, max_images: int = MAX_IMAGES
) -> tuple[Model, Sequence[ImageIn], ChoiceOptions]:
    """The model, photos and options of a form or a JSON body.

    Raises:
        Problem: 400 if it is not valid or has too many photos, 415 if it is neither form nor JSON.
        UnknownModelError: there is no such model.
        OptionsError, pydantic.ValidationError: the options are not valid.
    """
    service = service_of(request)
    service.engine.check_room()
    kind = body_type(request)
    given: ChoiceOptions
    images: Sequence[ImageIn]
    if kind == "application/json":
        body = await read_json(request, CaptionsRequest)
        given, images = body, [_text_of(image, number) for number, image in enumerate(body.images)]
    elif kind == "multipart/form-data":
        images, fields = await read_form(request)
        given = ChoiceOptions.model_validate(fields)
        if not images:
            raise _invalid("the form brings no photo: send it as a file called `image`")
    else:
        raise _strange_body(request, "multipart/form-data or application/json")
    limit = min(max_images, service.engine.queue_size)
    if len(images) > limit:
        raise _invalid(f"send {limit} photos at most in a request, not {len(images)}")
    return service.engine.models.find(given.model), images, given


async def load_images(service: Service, images: Sequence[ImageIn]) -> list[Upload]:
    """The bytes of photos, wherever they are; raises the Problem of the first that cannot be had."""
    uploads = []
    async for item in load_each(service, images):
        if isinstance(item, Problem):
            raise item
        uploads.append(item)
    return uploads


async def load_each(service: Service, images: Sequence[ImageIn]) -> AsyncIterator[Upload | Problem]:
    """The bytes of each photo, wherever it is, or why they cannot be had.

    Those of URLs together may be as large as a request's body.
    """
    budget = service.settings.max_upload_bytes
    for number, image in enumerate(images, 1):
        if isinstance(image, Upload):
            yield image
            continue
        try:
            if ADDRESS.match(image.text[:40]):
                data = await service.fetcher.fetch(image.text, max_bytes=budget)
                budget -= len(data)
            else:
                data = await asyncio.to_thread(_decode, image)
        except Problem as problem:
            yield problem
        else:
            yield Upload(data, image.name or f"image {number}")


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


def _text_of(image: ImageRef, number: int) -> ImageText:
    field = "base64" if image.base64 else "url"
    return ImageText(image.base64 or image.url, f"images.{number}.{field}", image.name)


def _strange_body(request: Request, wanted: str) -> Problem:
    came = body_type(request)
    detail = f"the body came {f'as {came[:100]}' if came else 'without a Content-Type'}: send {wanted}"
    return Problem(415, "body-type", "Not a body that is read", detail)


def _invalid(detail: str) -> Problem:
    return Problem(400, "invalid", "The request is not valid", detail)


def _decode(image: ImageText) -> bytes:
    """The bytes of base64 or of a data: URI (RFC 2397), which may be percent-encoded."""
    text = unquote(image.text) if image.text[:7].lower() == "data%3a" else image.text
    if text[:5].lower() != "data:":
        return _from_base64(text.encode(), image)
    head, comma, rest = text.partition(",")
    if not comma:
        raise _not_base64(image)
    data = unquote_to_bytes(rest)
    return _from_base64(data, image) if head.replace(" ", "").lower().endswith(";base64") else data


def _from_base64(data: bytes, image: ImageText) -> bytes:
    """With or without padding and line breaks, in the standard or the URL-safe alphabet (RFC 4648)."""
    data = data.translate(URL_SAFE, b" \t\r\n").rstrip(b"=")
    if not data:
        raise _not_base64(image)
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except ValueError as error:
        raise _not_base64(image) from error


def _not_base64(image: ImageText) -> Problem:
    detail = (
        f"`{image.field}` is {shown(image.text)}, which is neither base64 nor an address: "
        "send the photo's bytes as base64 or as `data:image/jpeg;base64,…`"
    )
    return Problem(400, "base64", "Not base64", detail)
