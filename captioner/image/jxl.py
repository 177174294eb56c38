"""JPEG XL, where ``pillow-jxl-plugin`` is installed."""

from __future__ import annotations

from io import BytesIO

from captioner.errors import ImageTypeError
from captioner.image.opened import Decoded, PillowImage

__all__ = ["JXL_MAGICS", "open_jxl"]

JXL_MAGICS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


class JxlImage:
    """A JPEG XL: its header is read here, for the plugin decodes all pixels as soon as it opens a file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = _size(_codestream(data))

    def decode(self, side: int | None) -> Decoded:
        """See :class:`~captioner.image.opened.Opened`."""
        from pillow_jxl.JpegXLImagePlugin import JXLImageFile  # type: ignore[import-not-found,unused-ignore]

        image = JXLImageFile(BytesIO(self.data))
        self.size = image.size  # which the orientation may have swapped
        # The codestream's own orientation counts (ISO 18181-2), and the decoder obeys it; a JPEG that was
        # packed without loss comes back as it was
        return PillowImage(image, upright=not image.jpeg, draft=False).decode(side)


def open_jxl(data: bytes, label: str) -> JxlImage:
    """Raises ImageTypeError where the plugin is not installed."""
    try:
        import pillow_jxl  # type: ignore[import-not-found,unused-ignore] # noqa: F401
    except ImportError as error:
        reason = "is a JPEG XL image; to read it: pip install pillow-jxl-plugin"
        raise ImageTypeError(label, reason) from error
    return JxlImage(data)


def _codestream(data: bytes) -> bytes:
    """The beginning of the codestream, which may be in a box, or in several."""
    at = 0 if data.startswith(JXL_MAGICS[1]) else len(data)
    while at + 16 <= len(data):
        length, kind, start = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if length == 1:
            length, start = int.from_bytes(data[start : start + 8], "big"), at + 16
        if kind in (b"jxlc", b"jxlp"):
            start += 4 * (kind == b"jxlp")  # the number of the part
            return data[start : start + 16]
        if length < 8:
            break
        at += length
    return data[:16]


def _size(codestream: bytes) -> tuple[int, int]:
    """Width and height (ISO 18181-1, size header): numbers of bits, the lowest first."""
    if not codestream.startswith(JXL_MAGICS[0]):
        raise ValueError("no codestream")
    bits, at = int.from_bytes(codestream[2:], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & ((1 << count) - 1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    small = take(1)
    height = side()
    ratio = take(3)
    if not ratio:
        return side(), height
    numerator, denominator = _RATIOS[ratio - 1]
    return height * numerator // denominator, height
