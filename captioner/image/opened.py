"""A file whose header was read, and what decoding gives of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from PIL import ExifTags, Image

__all__ = ["LEAST_ROWS", "Decoded", "Opened", "PillowImage", "incomplete"]

LEAST_ROWS = 1 / 3
"""Share of the rows that a cut file must have: half of a photograph's bytes hold 0.38 to 0.7 of its rows."""


@dataclass(frozen=True)
class Decoded:
    """Pixels as they are stored: in any mode, not upright.

    Attributes:
        image: the pixels.
        extent: width and height of what ``image`` shows, in its pixels. Where 3001 columns were decoded at an
            eighth it is 375.125 wide and ``image`` 376, as the last column stands for one in eight.
        orientation: EXIF's, 1…8.
        icc: the ICC profile of the colours; empty for none.
        rows: share of the rows that are there, from the top.
        warning: what is missing, for the user.
    """

    image: Image.Image
    extent: tuple[float, float]
    orientation: int = 1
    icc: bytes = b""
    rows: float = 1.0
    warning: str | None = None


class Opened(Protocol):
    """A file whose header was read, and none of its pixels."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored; where a format turns pixels itself, sure only once they are decoded."""

    def decode(self, side: int | None) -> Decoded:
        """Decode, smaller where that is cheap: down to ``side`` pixels on the shorter side; None: not at all.

        Raises:
            Exception: of any kind, where the file is damaged.
        """


class PillowImage:
    """What Pillow reads as it should.

    Args:
        image: as opened.
        icc: the colour profile; None for the one that Pillow found.
        upright: whether the decoder turns it itself, and its EXIF orientation is out of date.
        draft: whether it may be changed for good, to decode fewer pixels.
    """

    def __init__(
        self, image: Image.Image, *, icc: bytes | None = None, upright: bool = False, draft: bool = True
    ) -> None:
        self.image, self.icc, self.upright, self.draft = image, icc, upright, draft
        self.size = image.size  # a draft changes the image's own

    def decode(self, side: int | None) -> Decoded:
        """See :class:`Opened`."""
        found = self.image.draft(None, (side, side)) if side and self.draft else None
        self.image.load()
        extent = found[1][2:] if found else self.image.size
        icc = self.image.info.get("icc_profile") if self.icc is None else self.icc
        orientation = 1 if self.upright else _orientation(self.image)
        return Decoded(self.image, extent, orientation, icc if isinstance(icc, bytes) else b"")


def incomplete(rows: float) -> str:
    """The warning for a file of which only this share of the rows is there."""
    return f"incomplete: the last {max(1, round(100 * (1 - rows)))} % of the photo is missing"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1…8, of a loaded image; 1 where loading turned it already (HEIC)."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata, of any kind, spoils no pixel
        return 1
