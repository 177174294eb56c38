"""JPEG, also where the end of the file is missing."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

from PIL import ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from captioner.image.opened import LEAST_ROWS, Decoded, PillowImage, incomplete

__all__ = ["JpegImage"]

_END = b"\xff\xd9"
_LEAST_SCANS = 3
"""Of a progressive file that is cut: usually it has ten, and the third begins at a fifth of its bytes."""

_FILLER = b"\x55" * 4096  # codes of no particular meaning, and no marker


class JpegImage:
    """A JPEG; of an MPO, the first frame, which is a plain JPEG.

    Of a file that is cut, the rows that are there are told from the rest by decoding it twice, once with
    other bytes put in place of what is missing: where both agree, they came from the file.
    """

    def __init__(self, data: bytes) -> None:
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
