"""WebP, also where the end of the file is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

from PIL import ImageChops
from PIL.WebPImagePlugin import WebPImageFile

from captioner.image.opened import LEAST_ROWS, Decoded, Opened, PillowImage, incomplete

__all__ = ["open_webp"]

_FILLERS = (b"\0", b"\x55", b"\xaa")


def open_webp(data: bytes) -> Opened:
    """A WebP; one that is cut is opened as far as it goes."""
    if int.from_bytes(data[4:8], "little") + 8 <= len(data):
        return PillowImage(WebPImageFile(BytesIO(data)))
    chunks = list(_chunks(data))
    kind, length, start = chunks[-1]
    if kind not in (b"VP8 ", b"VP8L") or start + length <= len(data):
        # what is cut is metadata or a further frame: without it, the file is whole
        end = next((start - 8 for _, length, start in chunks if start + length > len(data)), len(data))
        return PillowImage(WebPImageFile(BytesIO(_riff(data[12:end]))))
    return _CutWebp(data[: start - 8], kind, data[start:], length)


class _CutWebp:
    """A WebP that ends within its pixels.

    Its decoder takes whole files only, so the missing bytes are made up, several times differently: the rows
    on which the results agree came from the file. More bytes are made up than are missing, for other pixels
    than the photograph's may need more.
    """

    def __init__(self, before: bytes, kind: bytes, pixels: bytes, length: int) -> None:
        if length > 4 * len(pixels):
            raise ValueError(f"{len(pixels)} of {length} bytes are there")
        self.is_half = 2 * len(pixels) >= length  # a lossy file's first bytes are not of its first rows
        filled = (pixels + filler * (2 * length - len(pixels)) for filler in _FILLERS)
        self.images = [
            PillowImage(WebPImageFile(BytesIO(_riff(before[12:] + kind + _u32(len(body)) + body))))
            for body in filled
        ]

    @property
    def size(self) -> tuple[int, int]:
        """See :class:`~captioner.image.opened.Opened`."""
        return self.images[0].size

    def decode(self, side: int | None) -> Decoded:
        """See :class:`~captioner.image.opened.Opened`."""
        first, *others = (image.decode(side) for image in self.images)
        boxes = [
            ImageChops.difference(first.image, other.image).getbbox(alpha_only=False) for other in others
        ]
        rows = min(box[1] if box else first.image.height for box in boxes) / first.image.height
        if rows == 0 or (rows < LEAST_ROWS and not self.is_half):
            raise EOFError(f"only {100 * rows:.0f} % of the rows are there")
        return replace(first, rows=rows, warning=incomplete(rows)) if rows < 1 else first


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's name, its bytes as announced, and where they start; the last one may be cut."""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], length, at + 8
        at += 8 + length + length % 2


def _riff(chunks: bytes) -> bytes:
    return b"RIFF" + _u32(len(chunks) + 4) + b"WEBP" + chunks


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")
