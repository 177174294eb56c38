"""JPEG, also where the end of the file is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from io import BytesIO

from PIL import ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from captioner.errors import ImageDecodeError
from captioner.image.opened import LEAST_ROWS, Decoded, PillowImage, incomplete

__all__ = ["JpegImage", "check_markers"]

MAX_SCANS, MAX_MARKERS, MAX_PADDING = 100, 10_000, 1 << 16
"""Of a photo, of which programs write ten or twenty scans and some hundred segments at most, and no padding.

A scan of ten bytes can go over all pixels, so that libjpeg takes hours for a small file; libtiff has the same
limit (``LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER``). Pillow reads segments one by one, and padding byte by byte.
"""

_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # neither a byte of pixels, nor a restart, nor filling
_EOI, _SOS, _ALONE = 0xD9, 0xDA, (0x01, 0xD8)  # ITU-T T.81, table B.1: the last are followed by no length

_END = b"\xff\xd9"
_LEAST_SCANS = 3
"""Of a progressive file that is cut: usually it has ten, and the third begins at a fifth of its bytes."""

_FILLER = b"\x55" * 4096  # codes of no particular meaning, and no marker


def check_markers(data: bytes, label: str) -> None:
    """Raise ImageDecodeError where the first image of a JPEG is made to keep a program busy."""
    place = markers = scans = padding = 0
    while found := _MARKER.search(data, place):
        kind = found[1][0]
        padding += 0 if scans else found.start() - place
        markers += 1
        scans += kind == _SOS
        place = found.end()
        if kind not in _ALONE:
            place += int.from_bytes(data[place : place + 2])
        if kind == _EOI or scans > MAX_SCANS or markers > MAX_MARKERS:
            break
    else:
        padding += 0 if scans else len(data) - place
    if scans > MAX_SCANS or markers > MAX_MARKERS or padding > MAX_PADDING:
        limits = f"{MAX_SCANS} scans, {MAX_MARKERS} segments or {MAX_PADDING >> 10} KB between them"
        raise ImageDecodeError(label, f"has more than {limits}, as no photo has: save it anew")


class JpegImage:
    """A JPEG; of an MPO, the first frame, which is a plain JPEG.

    Of a file that is cut, the rows that are there are told from the rest by decoding it twice, once with
    other bytes put in place of what is missing: where both agree, they came from the file.

    Raises:
        ImageDecodeError: see :func:`check_markers`.
    """

    def __init__(self, data: bytes, label: str) -> None:
        check_markers(data, label)
        self.data = data
        self.whole = PillowImage(JpegImageFile(BytesIO(data)))

    @property
    def size(self) -> tuple[int, int]:
        """See :class:`~captioner.image.opened.Opened`."""
        return self.whole.size

    def decode(self, side: int | None) -> Decoded:
        """See :class:`~captioner.image.opened.Opened`."""
        try:
            return self.whole.decode(side)
        except OSError as error:
            there = self.data.rstrip(b"\0\xff")  # a download that broke off may be filled up with zeros
            ended, filled = (
                PillowImage(JpegImageFile(BytesIO(there + end))).decode(side)
                for end in (_END, _FILLER + _END)
            )
            box = ImageChops.difference(ended.image, filled.image).getbbox()
            if box is None:
                return ended  # only the end marker is missing
            if (
                "progressive" in ended.image.info
            ):  # all rows come with the first scan, and detail with the others
                if there.count(b"\xff\xda", there.rfind(b"\xff\xc2")) < _LEAST_SCANS:
                    raise error
                return replace(ended, warning="incomplete: the fine detail of the photo is missing")
            rows = box[1] / ended.extent[1]
            if rows < LEAST_ROWS:
                raise error
            return replace(ended, rows=rows, warning=incomplete(rows))
