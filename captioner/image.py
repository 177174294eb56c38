"""A photograph in, upright RGB pixels out; pixels in, the model's ``pixel_values``; regions back to pixels.

Files come from strangers, so the order of work is part of the contract: the first bytes name the format, the
header gives the size, the size is held against a limit, and only then is a pixel decoded.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from captioner.caption import Box
from captioner.errors import (
    CheckpointError,
    ImageDecodeError,
    ImageError,
    ImageSizeError,
    ImageTypeError,
    OptionsError,
)
from captioner.formats import image_class

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_BYTES", "MAX_PIXELS", "ImageProcessor", "ImageSource", "Photo", "decode_image", "region_box"]

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
_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    Attributes:
        pixels: the upright photo in mode RGB; smaller than the original where ``min_side`` allowed it.
        width: pixels of the upright original, whatever the size of ``pixels``.
        height: likewise.
        file: the path or name it came with; None for nameless bytes, arrays and PIL images.
    """

    pixels: Image.Image
    width: int
    height: int
    file: str | None


def decode_image(
    source: ImageSource, *, name: str | None = None, max_pixels: int = MAX_PIXELS, min_side: int | None = None
) -> Photo:
    """Decode a photograph to upright RGB.

    The EXIF orientation is applied, transparency composed on white, more than eight bits scaled to eight; the
    first frame or page stands for the file. Safe to call from several threads; the source is never changed.

    Args:
        source: what to decode, see :data:`ImageSource`.
        name: what to call it in errors and in :attr:`Photo.file`, for sources other than paths.
        max_pixels: width × height above which the image is refused, before any pixel is decoded. For GIF,
            TIFF and WebP, Pillow's process-wide ``Image.MAX_IMAGE_PIXELS`` holds as well: a warning above it,
            an ImageSizeError above twice that (179 million).
        min_side: pixels that the shorter side needs at least; a larger image may come back smaller, down to
            that. JPEG is then decoded at 1/2, 1/4 or 1/8 by scaling its DCT, in a fraction of the time.

    Raises:
        ImageTypeError: not an image, or of a format that is not read.
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
    # Everything is caught here: on a damaged file Pillow and the C libraries under it raise whatever their
    # arithmetic makes of the damage. OSError, SyntaxError, ValueError, EOFError and RuntimeError were seen; a
    # list would be out of date with their next release.
    try:
        image = source if isinstance(source, Image.Image) else _open(source, label)
        width, height = image.size
        if not width * height:
            raise ImageDecodeError(label, f"is empty: {width} × {height} pixels")
        if width * height > max_pixels:
            limit = f"max_pixels allows {max_pixels / 1e6:g} million"
            raise ImageSizeError(label, f"is too large: {width} × {height} pixels, {limit}")
        if min_side is not None and image is not source:  # draft changes the image for good
            image.draft(None, (min_side, min_side))
        image.load()
        orientation = _orientation(image)
        factor = max(1, min(image.size) // min_side) if min_side is not None else 1
        # reduce copies even at 1, as it should: the pixels share nothing and keep no file or decoder alive
        pixels = _to_rgb(image).reduce(factor)
        pixels.info.clear()  # else a later exif_transpose would turn them once more
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageSizeError(label, "needs more memory than there is; make it smaller") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageSizeError(label, f"is too large: {error}") from error
    except Exception as error:
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageDecodeError(label, f"is truncated or damaged ({cause})") from error
    if orientation in _UPRIGHT:
        pixels = pixels.transpose(_UPRIGHT[orientation])
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    return Photo(pixels, width, height, name)


def _open(source: object, label: str) -> ImageFile | Image.Image:
    """Open what is not a PIL image yet; of a file only the header is decoded."""
    if isinstance(source, np.ndarray):
        return _from_array(source, label)
    if isinstance(source, str | os.PathLike):
        source = _read(source, label)
    if not isinstance(source, bytes):
        kind = type(source).__name__
        raise ImageTypeError(label, f"is of type {kind}; give a path, bytes, a PIL image or a uint8 array")
    if not source:
        raise ImageDecodeError(label, "is empty")
    return image_class(source[:512], label)(io.BytesIO(source))


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


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1…8, of a loaded image; 1 where loading turned it already (TIFF, HEIC)."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata, of any kind, spoils no pixel
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        return paper
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of mode I;16, I or F to 8 bits, mode L; Pillow's own conversion would clip it.

    White is the least of 1, 8 bits, 12 bits (many sensors and scanners) and 16 bits that holds every value;
    for floats it is 1. Values beyond that or below 0 have no agreed white: their range is stretched to 0…255.
    """
    values = np.array(image, dtype=np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    whites = [1.0] if image.mode == "F" else [1.0, 255.0, 4095.0, 65535.0]
    if low >= 0 and high <= whites[-1]:
        low, high = 0.0, next(white for white in whites if white >= high)
    with np.errstate(all="ignore"):  # a hostile range may overflow: then it is a picture of nothing
        values -= low
        values *= 255 / (high - low or 1.0)
        return Image.fromarray(np.rint(values, out=values).clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class ImageProcessor:
    """Pixels to ``pixel_values``: squash to a square, then normalise.

    The aspect ratio is given up on purpose: the whole photo is seen, and the model is trained on photos
    squashed likewise. The two steps are apart so that bytes, not floats, travel to the GPU.

    Attributes:
        size: side of the square in pixels.
        mean: of red, green and blue, for values scaled to 0…1.
        std: likewise.
        resample: filter of the resize; with antialiasing, as Pillow's filters have.

    Raises:
        OptionsError: a value is out of range.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Literal["bilinear", "bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1 or len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise OptionsError(f"size must be at least 1, mean and std three values, std above 0: {self}")
        if self.resample not in _RESAMPLE:
            raise OptionsError(f"resample must be one of {', '.join(_RESAMPLE)}, not {self.resample!r}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageProcessor:
        """The inverse of :meth:`to_dict`; CheckpointError where a key is missing or unknown."""
        try:
            return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the image processor's configuration does not fit: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The processor as JSON-ready data."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def __call__(self, pixels: Image.Image) -> torch.Tensor:
        """Squash an RGB image to ``(3, size, size)`` uint8, channels red, green, blue."""
        import torch

        square = pixels.resize((self.size, self.size), _RESAMPLE[self.resample])
        # by numpy: torch would start a team of OpenMP threads for each thread that decodes
        return torch.from_numpy(np.array(np.asarray(square).transpose(2, 0, 1), order="C"))

    def normalize(self, pixel_values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``(pixel_values / 255 - mean) / std`` on the tensor's own device.

        Args:
            pixel_values: ``(B, 3, H, W)`` uint8.
            dtype: the result's floating-point type; the arithmetic is float32 whatever it is.

        Returns:
            ``(B, 3, H, W)`` of ``dtype``.
        """
        import torch

        mean = torch.tensor(self.mean, device=pixel_values.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixel_values.device).view(3, 1, 1)
        return torch.addcmul(-mean / std, pixel_values.float(), 1 / (255 * std)).to(dtype)


def region_box(cells: tuple[int, int, int, int], grid: tuple[int, int], *, width: int, height: int) -> Box:
    """The pixels that a block of region-grid cells covers.

    Args:
        cells: top, left, bottom, right in cells; bottom and right are exclusive.
        grid: the region grid's rows and columns.
        width: pixels of the upright image, which the grid spans from edge to edge.
        height: likewise.

    Returns:
        Left, top, right, bottom: every pixel that a cell touches, so at least one.
    """
    (top, left, bottom, right), (rows, columns) = cells, grid
    assert 0 <= top < bottom <= rows, (cells, grid)
    assert 0 <= left < right <= columns, (cells, grid)
    right, bottom = -(-right * width // columns), -(-bottom * height // rows)  # rounded up
    return left * width // columns, top * height // rows, right, bottom
