"""Cameras' RAW files, where ``rawpy`` is installed: by the preview in them, or developed at half size."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from captioner.errors import ImageTypeError
from captioner.image.jpeg import check_markers
from captioner.image.opened import Decoded, PillowImage

__all__ = ["RAW_MAGICS", "RawImage"]

RAW_MAGICS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
"""Of RAF, ORF and RW2. CR2, NEF, ARW and DNG are TIFFs by their first bytes, CR3 is an ISO media file."""

_ORIENTATIONS = {0: 1, 3: 3, 5: 8, 6: 6}  # LibRaw's flip -> EXIF's


class RawImage:
    """A RAW file.

    Raises:
        ImageTypeError: ``rawpy`` is not installed, or LibRaw does not know this camera's files.
    """

    def __init__(self, data: bytes, label: str) -> None:
        self.label = label
        try:
            import rawpy
        except ImportError as error:
            reason = "is a camera's RAW file; to read it: pip install 'captioner[raw]'"
            raise ImageTypeError(label, reason) from error
        try:
            self.raw = rawpy.imread(BytesIO(data))
        except rawpy.LibRawFileUnsupportedError as error:
            raise ImageTypeError(label, "is a RAW file of a kind that LibRaw does not read") from error
        self.size: tuple[int, int] = (self.raw.sizes.width, self.raw.sizes.height)

    def decode(self, side: int | None) -> Decoded:
        """See :class:`~captioner.image.opened.Opened`."""
        orientation = _ORIENTATIONS.get(self.raw.sizes.flip, 1)
        with self.raw:
            preview = self._preview(side or min(self.size) // 2)
            if preview is None:
                image = Image.fromarray(self.raw.postprocess(half_size=True, use_camera_wb=True, user_flip=0))
                return Decoded(image, image.size, orientation)
            decoded = preview.decode(side)
        if decoded.orientation > 1 or orientation == 1:
            return decoded
        (width, height), (full_width, full_height) = preview.size, self.size
        if orientation > 4 and (width < height) != (full_width < full_height):
            self.size = full_height, full_width  # the camera turned the preview, and said no more of it
            return decoded
        return replace(decoded, orientation=orientation)

    def _preview(self, least: int) -> PillowImage | None:
        """The photograph as the camera developed it; None where there is none with so many pixels."""
        import rawpy

        try:
            thumbnail = self.raw.extract_thumb()
        except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
            return None
        if thumbnail.format == rawpy.ThumbFormat.JPEG:
            data = bytes(thumbnail.data)
            check_markers(data, self.label)
            preview = PillowImage(JpegImageFile(BytesIO(data)))
        else:
            preview = PillowImage(Image.fromarray(np.asarray(thumbnail.data)), draft=False)
        (width, height), (full_width, full_height) = preview.size, self.size
        is_sane = width * height <= 2 * full_width * full_height
        return preview if is_sane and min(width, height) >= least else None
