"""The first bytes of a file -> what reads its format.

Pillow's format classes are used directly rather than through ``Image.open``: a closed list of formats can be
reached (a PostScript file never starts Ghostscript), nothing is registered globally, and our pixel limit
stands in place of the process-wide ``Image.MAX_IMAGE_PIXELS``.
"""

from __future__ import annotations

from io import BytesIO

from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captioner.errors import ImageTypeError
from captioner.image.jpeg import JpegImage
from captioner.image.jxl import JXL_MAGICS, open_jxl
from captioner.image.opened import Opened, PillowImage
from captioner.image.png import PngImage
from captioner.image.raw import RAW_MAGICS, RawImage
from captioner.image.tiff import TIFF_MAGICS, open_tiff
from captioner.image.webp import open_webp

__all__ = ["open_file"]

_FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC, AVIF, JPEG XL and cameras' RAW formats"
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_STRANGERS = {
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript file",
    b"\xc5\xd0\xd3\xc6": "an EPS file",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 image",
    b"<svg": "an SVG drawing",
    b"<?xml": "an SVG drawing or another XML file",
    b"<!doctype html": "a web page",
}


def open_file(data: bytes, label: str) -> Opened:
    """Read the header of a file.

    Args:
        data: the file's bytes.
        label: what to call the file in errors.

    Raises:
        ImageTypeError: not an image, or of a format or a kind of pixels that is not read.
        Exception: of any other kind, where the header is damaged.
    """
    if data.startswith(RAW_MAGICS) or data[4:12] == b"ftypcrx ":
        return RawImage(data, label)
    if data.startswith(JXL_MAGICS):
        return open_jxl(data, label)
    pillow = _image_class(data[:512], label)
    if pillow is JpegImageFile:
        return JpegImage(data, label)
    if pillow is PngImageFile:
        return PngImage(data)
    if pillow is WebPImageFile:
        return open_webp(data)
    if pillow is TiffImageFile:
        return open_tiff(data, label)
    return PillowImage(pillow(BytesIO(data)))


def _image_class(head: bytes, label: str) -> type[ImageFile]:
    """The Pillow class of the format that the first 512 bytes tell; ImageTypeError for any other."""
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImageFile  # MPO as well: its first frame is a plain JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImageFile
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GifImageFile
    if head.startswith(TIFF_MAGICS):
        return TiffImageFile
    if head.startswith(b"BM"):
        return BmpImageFile
    if head[4:8] == b"ftyp":
        end = int.from_bytes(head[:4], "big")
        # ISO 14496-12, 4.3: under the general brand mif1, only the compatible brands say what is in the file
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(end, len(head)), 4))}
        if brands & {b"avif", b"avis"}:
            return AvifImageFile
        if brands & _HEIF_BRANDS:
            from pillow_heif import HeifImageFile  # only who opens a HEIC waits for the import

            return HeifImageFile
        raise ImageTypeError(label, f"is a video or another ISO media file; {_FORMATS} are read")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, kind in _STRANGERS.items():
        if head.startswith(magic) or text.startswith(magic):
            raise ImageTypeError(label, f"is {kind}; {_FORMATS} are read")
    raise ImageTypeError(label, f"is not an image of a format that is read: {_FORMATS}")
