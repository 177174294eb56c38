"""PNG: whole pixels are read whatever its metadata are like, and of a cut file the rows that are there."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

from PIL.PngImagePlugin import PngImageFile

from captioner.image.colour import MAX_PROFILE_BYTES
from captioner.image.opened import LEAST_ROWS, Decoded, PillowImage, incomplete

__all__ = ["PngImage"]

_MAX_CHUNKS = 1_000_000
_MAX_TEXT_BYTES = 1 << 20
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT"}
_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # may give the orientation
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a colour type


class PngImage:
    """A PNG, rebuilt of the chunks that its pixels, its colours and its orientation need.

    Raises:
        ValueError: a wrong checksum of what the pixels need, or far too many chunks.
    """

    def __init__(self, data: bytes) -> None:
        self.cut, self.header = True, data[16:29]
        self.pixels: list[memoryview] = []
        head: list[bytes | memoryview] = [data[:8]]
        metadata: dict[bytes, memoryview] = {}  # the first of each kind
        for kind, body, sound in _chunks(data):
            if kind == b"IEND":
                self.cut = False
                break
            if kind in _CRITICAL and not sound:
                raise ValueError(f"wrong checksum of its {kind.decode()} chunk")
            if kind == b"IDAT":
                self.pixels.append(body)
            elif kind in _CRITICAL or (kind == b"tRNS" and sound):
                head += _chunk(kind, body)
            elif sound and (kind in (b"iCCP", b"eXIf") or _may_turn(body)):
                metadata.setdefault(kind, body)
        icc = _profile(bytes(metadata.pop(b"iCCP", b"")))
        tail = [part for body in self.pixels for part in _chunk(b"IDAT", body)]
        tail += _chunk(b"IEND", b"")
        try:
            extras = [part for item in metadata.items() for part in _chunk(*item)]
            self.whole = _open([*head, *extras, *tail], icc)
        except Exception:  # by the metadata, or else it comes again
            self.whole = _open([*head, *tail], icc)

    @property
    def size(self) -> tuple[int, int]:
        """See :class:`~captioner.image.opened.Opened`."""
        return self.whole.size

    def decode(self, side: int | None) -> Decoded:
        """See :class:`~captioner.image.opened.Opened`."""
        image = self.whole.image
        try:
            return self.whole.decode(side)
        except OSError as error:
            rows = self._rows() if self.cut else 0.0
            if rows < LEAST_ROWS:
                raise error
        image.tile = []  # type: ignore[attr-defined]  # what could be decoded is in it
        return replace(self.whole.decode(side), rows=rows, warning=incomplete(rows))

    def _rows(self) -> float:
        """Share of the rows in a cut file; 0 where they do not come in order."""
        width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", self.header)
        inflate, length = zlib.decompressobj(), 0
        for data in self.pixels:
            rest = bytes(data)
            while rest:
                length += len(inflate.decompress(rest, 1 << 20))
                rest = inflate.unconsumed_tail
        stride = 1 + (width * depth * _CHANNELS[colours] + 7) // 8
        return 0.0 if interlaced else min(length // stride / height, 1.0)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Each chunk's name and data, and whether the checksum is right; of a cut one, there is none to check."""
    view, at = memoryview(data), 8
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            return
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        end = at + 8 + length
        if not kind.isalpha() or (end > len(data) and kind != b"IDAT"):
            return
        sound = end + 4 > len(data) or zlib.crc32(view[at + 4 : end]) == int.from_bytes(
            data[end : end + 4], "big"
        )
        yield kind, view[at + 8 : end], sound
        at = end + 4
    raise ValueError(f"more than {_MAX_CHUNKS} chunks")


def _chunk(kind: bytes, data: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind, data, struct.pack(">I", checksum)


def _open(parts: list[bytes | memoryview], icc: bytes) -> PillowImage:
    return PillowImage(PngImageFile(BytesIO(b"".join(parts))), icc=icc)


def _may_turn(text: memoryview) -> bool:
    return len(text) <= _MAX_TEXT_BYTES and bytes(text[:32]).startswith(_TEXTS)


def _profile(chunk: bytes) -> bytes:
    """The profile in an iCCP chunk: a name, a null byte, the method 0, and what it compressed."""
    try:
        found = zlib.decompressobj().decompress(chunk.partition(b"\0")[2][1:], MAX_PROFILE_BYTES + 1)
    except zlib.error:
        return b""
    return found if len(found) <= MAX_PROFILE_BYTES else b""
