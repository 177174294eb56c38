"""Descriptions that a photograph carries inside it: in its XMP, IPTC or EXIF, or as a PNG's own text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from PIL import ExifTags, IptcImagePlugin
from PIL.ImageFile import ImageFile

from captioner.batch.xmp import descriptions, parse
from captioner.formats import image_class

__all__ = ["embedded_descriptions"]

XMP_IN_TIFF = 700
CAPTION_ABSTRACT = (2, 120)
CAMERAS = re.compile(
    r"(olympus|minolta|konica minolta|samsung|kodak|vivitar|premier|a)? *digital (still )?camera"
    r"|sony dsc|minolta dsc|exif[ _]jpeg.*|dcim[\\/].*|dji[ _\d].*|screenshot|ascii|default|untitled"
    r"|created (with|by) .*|[a-z]*hdr[a-z]*|cof|sdr|oznor\w*|mde|binary comment",
    re.IGNORECASE,
)
"""What cameras and programs write where nobody has written a description."""


def embedded_descriptions(path: str) -> list[str]:
    """The descriptions that a person may have put into a photograph, those that programs prefer first.

    Only the file's head is decoded, of a PNG all. What is damaged, or no photograph, has none.
    """
    try:
        with open(path, "rb") as file:
            image = image_class(file.read(512), path)(path)
    except Exception:  # whatever Pillow raises on a damaged file; the record of it says what is wrong
        return []
    found: list[str] = []
    with image:
        for read in (_from_xmp, _from_iptc, _from_exif, _from_png):
            found += _read(read, image)
    return [text for text in found if not CAMERAS.fullmatch(text)]


def _read(read: Callable[[ImageFile], Iterator[str]], image: ImageFile) -> list[str]:
    found = []
    with suppress(Exception):  # likewise
        for text in read(image):
            text = text.strip(" \t\r\n\0")
            if text and sum(letter.isprintable() or letter.isspace() for letter in text) == len(text):
                found.append(text)
    return found


def _from_xmp(image: ImageFile) -> Iterator[str]:
    document: Any = image.info.get("xmp") or getattr(image, "tag_v2", {}).get(XMP_IN_TIFF)
    if document:
        data = document.encode() if isinstance(document, str) else bytes(document)
        yield from (text for _, text in descriptions(parse(data.strip(b"\0"))))


def _from_iptc(image: ImageFile) -> Iterator[str]:
    text = (IptcImagePlugin.getiptcinfo(image) or {}).get(CAPTION_ABSTRACT, b"")
    yield _decode(text[0] if isinstance(text, list) else text)


def _from_exif(image: ImageFile) -> Iterator[str]:
    exif = image.getexif()
    yield _decode(str(exif.get(ExifTags.Base.ImageDescription, "")).encode("latin-1", "replace"))
    comment = bytes(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b""))
    code, text = comment[:8].rstrip(b"\0 "), comment[8:]
    if code == b"UNICODE":
        order = "big" if exif.endian == ">" else "little"
        # in the file's byte order by the standard, in the other one by some programs
        zeros = {"big": text[::2].count(0), "little": text[1::2].count(0)}
        order = max(zeros, key=lambda name: (zeros[name], name == order))
        yield text.decode("utf-16-be" if order == "big" else "utf-16-le")
    elif code in (b"ASCII", b""):
        yield _decode(text)
    yield bytes(exif.get(ExifTags.Base.XPComment, b"")).decode("utf-16-le")


def _from_png(image: ImageFile) -> Iterator[str]:
    texts = getattr(image, "text", None)  # decodes it: the text may stand behind the pixels
    yield from [texts["Description"]] if texts and "Description" in texts else []


def _decode(data: bytes) -> str:
    """UTF-8, or else Latin-1, in which older programs write."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")
