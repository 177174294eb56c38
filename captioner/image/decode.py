"""A photograph in, upright RGB pixels out.

Files come from strangers, so the order of work is part of the contract: the first bytes name the format, the
header gives the size, the size is held against a limit, and only then is a pixel decoded.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from captioner.errors import (
    ImageDecodeError,
    ImageError,
    ImageSizeError,
    ImageTypeError,
    OptionsError,
)
from captioner.image.colour import to_rgb
from captioner.image.formats import open_file
from captioner.image.opened import Opened, PillowImage
from captioner.image.processor import PixelBox

__all__ = ["MAX_BYTES", "MAX_PIXELS", "ImageSource", "Photo", "decode_image"]

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""A path, a file's bytes, a PIL image or uint8 array ``(H, W)``, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA."""

MAX_PIXELS = 200_000_000
"""Default limit on an image's pixels: room for any camera and for phone panoramas.

A pixel takes 4 bytes of memory in a JPEG, up to 16 in a WebP: lower the limit where strangers send files.
"""

MAX_BYTES = 1 << 30
"""Limit on a file's bytes, which are read into memory: an uncompressed photo of MAX_PIXELS fits."""

_UPRIGHT = {  # EXIF 2.32, tag 0x0112
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LOST_AT_LEFT, _LOST_AT_TOP = (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations by which the right or the bottom of what is stored comes to the left, or to the top."""

_GAP = 2
"""How many times larger than asked for pixels stay when they are reduced by a cheap method.

The last step to a model's size is then a resize with antialiasing of at least so much, which leaves little of
what the cheap method does to the edges of things; ``scripts/resize_error.py`` measures it.
"""

_MISSING = (128, 128, 128)
"""The colour of rows that are missing: of several that were tried, captions fared best with it."""


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    Attributes:
        pixels: the upright photo in mode RGB; smaller than the original where ``min_side`` allowed it.
        width: pixels of the upright original, whatever the size of ``pixels``.
        height: likewise.
        file: the path or name it came with; None for nameless bytes, arrays and PIL images.
        box: the part of ``pixels`` that the original fills: where three columns became one, the last one may
            stand for one or two.
        warning: what is missing of the photo, such as ``"incomplete: …"``; None where nothing is.
    """

    pixels: Image.Image
    width: int
    height: int
    file: str | None
    box: PixelBox
    warning: str | None = None


def decode_image(
    source: ImageSource, *, name: str | None = None, max_pixels: int = MAX_PIXELS, min_side: int | None = None
) -> Photo:
    """Decode a photograph to upright RGB.

    The orientation is applied, colours of an ICC profile become sRGB, transparency is composed on white, and
    more than eight bits are scaled to eight. The first frame stands for an animation, the largest image for a
    TIFF, the preview for a camera's RAW file. A JPEG, PNG or WebP whose end is missing is decoded as far as
    it goes if that is about half, and the rest is grey. Safe to call from several threads; the source is
    never changed.

    Args:
        source: what to decode, see :data:`ImageSource`.
        name: what to call it in errors and in :attr:`Photo.file`, for sources other than paths.
        max_pixels: width × height above which the image is refused, before any pixel is decoded. For GIF
            and WebP, Pillow's process-wide ``Image.MAX_IMAGE_PIXELS`` holds as well: a warning above it,
            an ImageSizeError above twice that (179 million).
        min_side: pixels that the shorter side is to be resized to; a larger image may come back smaller, down
            to twice that. JPEG is then decoded at 1/2, 1/4 or 1/8 by scaling its DCT, which is much faster.

    Raises:
        ImageTypeError: not an image, or of a format or a kind of pixels that is not read.
        ImageSizeError: more than ``max_pixels`` or ``MAX_BYTES``, or more than the memory holds.
        ImageDecodeError: empty, truncated or damaged.
        ImageError: a file that cannot be opened, or is no regular file.
        OptionsError: ``min_side`` is below 1.
    """
    if min_side is not None and min_side < 1:
        raise OptionsError(f"min_side must be at least 1, not {min_side}")
    if name is None and isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
    label = name or "image"
    side = None if min_side is None else _GAP * min_side
    # Everything is caught here: on a damaged file Pillow and the C libraries under it raise whatever their
    # arithmetic makes of the damage. OSError, SyntaxError, ValueError, EOFError and RuntimeError were seen; a
    # list would be out of date with their next release.
    try:
        opened = _open(source, label)
        width, height = opened.size
        if not width * height:
            raise ImageDecodeError(label, f"is empty: {width} × {height} pixels")
        if width * height > max_pixels:
            limit = f"max_pixels allows {max_pixels / 1e6:g} million"
            raise ImageSizeError(label, f"is too large: {width} × {height} pixels, {limit}")
        decoded = opened.decode(side)
        width, height = opened.size
        factor = max(1, min(decoded.image.size) // side) if side else 1
        pixels = to_rgb(decoded.image, icc=decoded.icc, factor=factor)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageSizeError(label, "needs more memory than there is; make it smaller") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageSizeError(label, f"is too large: {error}") from error
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageDecodeError(label, f"is truncated or damaged ({cause})") from error
    extent = decoded.extent[0] / factor, decoded.extent[1] / factor
    if decoded.rows < 1:
        pixels.paste(_MISSING, (0, round(decoded.rows * extent[1]), *pixels.size))
    orientation = decoded.orientation
    lost = pixels.width - extent[0], pixels.height - extent[1]
    if orientation in _UPRIGHT:
        pixels = pixels.transpose(_UPRIGHT[orientation])
    if orientation in (5, 6, 7, 8):
        (width, height), lost = (height, width), lost[::-1]
    left, top = lost[0] * (orientation in _LOST_AT_LEFT), lost[1] * (orientation in _LOST_AT_TOP)
    box = left, top, pixels.width - lost[0] + left, pixels.height - lost[1] + top
    return Photo(pixels, width, height, name, box, decoded.warning)


def _open(source: object, label: str) -> Opened:
    """Of a file, only the header is decoded."""
    if isinstance(source, Image.Image):
        return PillowImage(source, draft=False)
    if isinstance(source, np.ndarray):
        return PillowImage(_from_array(source, label), draft=False)
    if isinstance(source, str | os.PathLike):
        source = _read(source, label)
    if not isinstance(source, bytes):
        kind = type(source).__name__
        raise ImageTypeError(label, f"is of type {kind}; give a path, bytes, a PIL image or a uint8 array")
    if not source:
        raise ImageDecodeError(label, "is empty")
    return open_file(source, label)


def _read(path: str | os.PathLike[str], label: str) -> bytes:
    """The bytes of a regular file: a pipe or a device could block for ever, or never end."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(label, "is a directory; give the photos in it")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(label, "is not a regular file but a pipe, a socket or a device")
        if status.st_size > MAX_BYTES:
            size, limit = status.st_size / 1e6, MAX_BYTES / 1e6
            raise ImageSizeError(label, f"is too large: {size:.0f} MB, the limit is {limit:.0f} MB")
        with open(path, "rb") as file:
            return file.read(status.st_size)  # no more: /proc has files that claim 0 bytes and block
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageError(label, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _from_array(array: npt.NDArray[Any], label: str) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        wanted = "give uint8 of shape (H, W), (H, W, 3) or (H, W, 4)"
        raise ImageTypeError(label, f"is an array of {array.dtype} with shape {array.shape}; {wanted}")
    return Image.fromarray(array)
