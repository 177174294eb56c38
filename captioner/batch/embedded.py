"""Descriptions that a photograph carries inside it: in its XMP, IPTC or EXIF, or as a PNG's own text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from PIL import ExifTags, Image, IptcImagePlugin
from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captioner.batch.xmp import descriptions, parse

__all__ = ["embedded_descriptions"]

XMP_IN_TIFF = 700
CAPTION_ABSTRACT = (2, 120)
CAMERAS = re.compile(
    r"((olympus|minolta|konica minolta|samsung|kodak|vivitar|premier) *)?digital (still )?camera"
    r"|(sony|minolta) dsc|exif[ _]jpeg([ _]picture)?|(dcim[\\/].*)?dji_\d+\.\w+|screenshot|ascii|default"
    r"|untitled|created with (the )?gimp.*|[a-z]*hdr[a-z]*|cof|sdr|oznor\w*|mde|binary comment|\{.shape.: .*",
    re.IGNORECASE,
)
"""What cameras and programs write where nobody has written a description."""


def embedded_descriptions(path: str) -> list[str]:
    """The descriptions that a person may have put into a photograph, those that programs prefer first.

    Pixels are decoded of a PNG alone. What is damaged, or no photograph, has none.
    """
    found: list[str] = []
    with suppress(Exception), open(path, "rb") as file:  # whatever Pillow raises on a damaged file
        head = file.read(32)
        file.seek(0)
        if head.startswith((b"II", b"MM")):  # a TIFF, or a camera's file, whose pixels Pillow need not know
            exif = Image.Exif()
            exif.load_from_fp(file)
            found += _read(_from_document, exif.get(XMP_IN_TIFF)) + _read(_from_exif, exif)
            file.seek(0)
            found += _read(_from_iptc, TiffImageFile(file))
        elif (image := _open(head, file)) is not None:
            document = image.info.get("xmp")
            found += _read(_from_document, document) + _read(_from_iptc, image)
            found += _read(_from_exif, image.getexif()) + _read(_from_png, image)
    return [text for text in found if not CAMERAS.fullmatch(text)]


def _open(head: bytes, file: BinaryIO) -> ImageFile | None:
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImageFile(file)
    if head.startswith(b"\x89PNG"):
        return PngImageFile(file)
    if head.startswith(b"RIFF"):
        return WebPImageFile(file)
    if head[4:8] == b"ftyp" and (b"avif" in head or b"avis" in head):
        return AvifImageFile(file)
    if head[4:8] == b"ftyp":
        from pillow_heif import HeifImageFile  # only who opens a HEIC waits for the import

        return HeifImageFile(file)  # type: ignore[no-untyped-call]
    return None


def _read(read: Callable[[Any], Iterator[str]], source: object) -> list[str]:
    """The texts of one kind; what of them is damaged is none, and the other kinds are read all the same."""
    found = []
    with suppress(Exception):
        for text in read(source):
            text = text.strip(" \t\r\n\0")
            if text and sum(letter.isprintable() or letter.isspace() for letter in text) == len(text):
                found.append(text)
    return found


def _from_document(document: str | bytes | None) -> Iterator[str]:
    if document:
        data = document.encode() if isinstance(document, str) else bytes(document)
        yield from (text for _, text in descriptions(parse(data.strip(b"\0"))))


def _from_iptc(image: ImageFile) -> Iterator[str]:
    text = (IptcImagePlugin.getiptcinfo(image) or {}).get(CAPTION_ABSTRACT, b"")
    yield _decode(text[0] if isinstance(text, list) else text)


def _from_exif(exif: Image.Exif) -> Iterator[str]:
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
