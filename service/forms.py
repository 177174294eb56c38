"""Photos and options as a form brings them: multipart/form-data (RFC 7578)."""

from __future__ import annotations

import sys
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.engine import Upload
from service.errors import Problem
from service.schemas import MAX_IMAGES

__all__ = ["read_form"]

MAX_FIELDS = 100
MAX_FIELD_BYTES = 16_384
"""Of a form field that is no file."""

IMAGE = "image"
"""What the field of a photo is called."""


async def read_form(request: Request) -> tuple[list[Upload], dict[str, Any]]:
    """The photos of a form, and its other fields; one that is repeated, or may be, is a list.

    Raises:
        Problem: status 400, the form cannot be read, or a photo stands where none is looked for.
    """
    parser = _Parser(
        request.headers,
        request.stream(),
        max_files=MAX_IMAGES,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _invalid(_in_our_words(error.message, parser.field)) from error
    fields = {key: form.getlist(key) for key in form if key != IMAGE}
    for key, items in fields.items():
        if any(isinstance(item, UploadFile) for item in items):
            raise _invalid(f"the file came as `{key}`: call its field `{IMAGE}`")
    options = {key: item if len(item) > 1 or key == "bad_words" else item[0] for key, item in fields.items()}
    return await _photos(form), options


class _Parser(MultiPartParser):
    """Starlette's, which takes a photo without a file name for a text, and writes large ones to the disk."""

    spool_max_size = sys.maxsize  # photos stay off the disk; LimitBody bounds what they take

    @property
    def field(self) -> str:
        """The field that is being read."""
        return self._current_part.field_name

    def on_headers_finished(self) -> None:
        """What is called as a photo is, or is of another type than text, is a file even without a name."""
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        kind = dict(part.item_headers).get(b"content-type", b"text/plain")
        is_file = options.get(b"name") == IMAGE.encode() or not kind.lower().startswith(b"text/")
        if part.content_disposition and b"filename" not in options and is_file:
            part.content_disposition += b'; filename=""'
        super().on_headers_finished()


async def _photos(form: FormData) -> list[Upload]:
    uploads = []
    for number, file in enumerate(form.getlist(IMAGE), 1):
        assert isinstance(file, UploadFile), "the parser makes a file of each"
        data = await file.read()
        if not file.filename and data.isascii() and b"\0" not in data:
            raise _invalid(
                f"`{IMAGE}` came as a text of {len(data)} characters: send the photo as a file, as `curl -F "
                f"{IMAGE}=@photo.jpg` does"
            )
        uploads.append(Upload(data, (file.filename or f"image {number}")[:255]))
    return uploads


def _in_our_words(message: str, field: str) -> str:
    """What Starlette's parser says, with the field and what to do."""
    if message.startswith("Part exceeded"):
        limit = MAX_FIELD_BYTES // 1024
        return f"`{field}` came as a text of more than {limit} KB: send photos as files called `{IMAGE}`"
    if message.startswith("Too many files"):
        return f"more than {MAX_IMAGES} files came: send {MAX_IMAGES} photos at most in a request"
    if message.startswith("Too many fields"):
        return f"more than {MAX_FIELDS} fields came: send the options once each"
    if "Content-Disposition" in message:
        return "a part came without a name: send each with `Content-Disposition: form-data; name=…`"
    if "boundary" in message:
        return "the form came without a boundary: let the client set Content-Type, which names it"
    return "the form is cut off or damaged: send multipart/form-data, as `curl -F` or a browser's FormData do"


def _invalid(detail: str) -> Problem:
    return Problem(400, "invalid", "The request is not valid", detail)
