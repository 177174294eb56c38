"""Pixels of any mode -> RGB of eight bits in sRGB, on white where they are transparent."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

__all__ = ["MAX_PROFILE_BYTES", "eight_bits", "to_rgb"]

MAX_PROFILE_BYTES = 4_000_000
"""Of an ICC profile; those of presses, the largest, have up to 3 MB. A larger one is left out of account."""

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_SRGB_ERROR = 1
"""Levels by which a profile may change a colour that is taken for sRGB: so much is rounding."""


def to_rgb(image: Image.Image, *, icc: bytes = b"", factor: int = 1) -> Image.Image:
    """The pixels in mode RGB, in a new image, without metadata.

    Args:
        image: in any of Pillow's modes; it is not changed.
        icc: the profile of its colours; one that is broken, or of other colours than the image's, is ignored.
        factor: how many pixels in a row, and rows, become one by averaging; ICC conversion comes after it.
    """
    if image.mode.startswith(("I", "F")):
        image = eight_bits(np.array(image))
    if image.has_transparency_data:
        colours, alpha = ("L", "LA") if image.mode in ("L", "LA", "La") else ("RGB", "RGBA")
        image = image.convert(alpha)
        paper = Image.new(colours, image.size, "white")
        paper.paste(image.convert(colours), mask=image.getchannel("A"))
        image = paper
    elif image.mode not in _SPACES:
        image = image.convert("RGB")
    # reduce copies even at 1, as it should: the pixels share nothing and keep no file or decoder alive
    image = image.reduce(factor)
    converted = _to_srgb(image, icc) or (image if image.mode == "RGB" else image.convert("RGB"))
    converted.info.clear()  # else a later exif_transpose would turn them once more
    return converted


def eight_bits(values: npt.NDArray[Any]) -> Image.Image:
    """Grey of any number type, ``(H, W)``, scaled to mode L; Pillow's own conversion would clip it.

    White is the least of 1, 8 bits, 12 bits (many sensors and scanners) and 16 bits that holds every value;
    for floats it is 1. Values beyond that or below 0 have no agreed white: their range is stretched to 0…255.
    """
    whites = [1.0] if values.dtype.kind == "f" else [1.0, 255.0, 4095.0, 65535.0]
    values = values.astype(np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= whites[-1]:
        low, high = 0.0, next(white for white in whites if white >= high)
    with np.errstate(all="ignore"):  # a hostile range may overflow: then it is a picture of nothing
        values -= low
        values *= 255 / (high - low or 1.0)
        return Image.fromarray(np.rint(values, out=values).clip(0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image, icc: bytes) -> Image.Image | None:
    """By the profile; None where it changes nothing."""
    if not 128 < len(icc) <= MAX_PROFILE_BYTES:
        return None
    if icc[16:20].decode("latin-1").strip() != _SPACES[image.mode]:
        return None
    transform = _transform(icc, image.mode)
    return ImageCms.applyTransform(image, transform) if transform else None


@lru_cache(maxsize=16)  # a folder's photographs share a few
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB; None where it is broken, or sRGB itself."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(icc)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception:  # whatever Little CMS and Pillow make of its damage
        return None
    if mode == "CMYK":
        return transform
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(64, 64, 3)
    probe = Image.fromarray(colours).convert(mode)
    changed = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
    return transform if abs(changed - np.asarray(probe.convert("RGB"))).max() > _SRGB_ERROR else None
