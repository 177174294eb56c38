"""TIFF: the largest image of the file, decoded by libtiff; pixels of a kind that is not known are refused.

The directories are read here, since what is in them decides: a file may begin with a thumbnail, be a camera's
RAW, or hold pixels that Pillow's own reader garbles (planes of 16 bits, 16 bits of white as 0, compressed
big-endian floats). The tests compare each kind in :data:`_LAYOUTS` with what tifffile reads.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageOps, ImagePalette, _imaging
from PIL.TiffImagePlugin import COMPRESSION_INFO

from captioner.errors import ImageTypeError
from captioner.image.colour import eight_bits
from captioner.image.opened import Decoded, Opened
from captioner.image.raw import RawImage

__all__ = ["TIFF_MAGICS", "open_tiff"]

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_DIRECTORIES = 1000
_MAX_ENTRIES = 100_000
_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR, _COLOUR_MAP, _SUB_DIRECTORIES = 274, 277, 284, 320, 330
_INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _ICC, _DNG_VERSION = 332, 338, 339, 34675, 50706
_DEFAULT_IS_ONE = {_BITS, _COMPRESSION, _SAMPLES, _PLANAR, _SAMPLE_FORMAT, _ORIENTATION, _INK_SET}

_REDUCED, _MASK = 1, 4  # bits of _SUBFILE
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_NAMES = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
_RAW = {32803, 34892}  # a colour filter array, and what was interpolated from one
_OLD_JPEG, _JPEG = 6, 7
_FORMATS = {1: "unsigned", 2: "signed", 3: "float", 4: "unsigned"}
_UNTOLD, _PREMULTIPLIED, _ALPHA, _COREL_ALPHA = 0, 1, 2, 999  # of _EXTRA_SAMPLES

_LAYOUTS: dict[tuple[str, str, int, tuple[int, ...]], tuple[str, str, str]] = {
    # colours, format, bits, extra samples -> Pillow's mode and raw mode, and NumPy's type of wider samples
    ("grey", "unsigned", 1, ()): ("1", "1", ""),
    ("grey", "unsigned", 2, ()): ("L", "L;2", ""),
    ("grey", "unsigned", 4, ()): ("L", "L;4", ""),
    ("grey", "unsigned", 8, ()): ("L", "L", ""),
    ("grey", "signed", 8, ()): ("L", "L", "i1"),
    ("grey", "unsigned", 12, ()): ("I;16", "I;12", "u2"),
    ("grey", "unsigned", 16, ()): ("I;16", "I;16N", "u2"),
    ("grey", "signed", 16, ()): ("I;16", "I;16N", "i2"),
    ("grey", "unsigned", 32, ()): ("I", "I;32N", "u4"),
    ("grey", "signed", 32, ()): ("I", "I;32N", "i4"),
    ("grey", "float", 32, ()): ("F", "F;32NF", "f4"),
    ("grey", "float", 64, ()): ("F", "F;64NF", "f4"),
    ("grey", "unsigned", 8, (_UNTOLD,)): ("L", "LX", ""),
    ("grey", "unsigned", 8, (_PREMULTIPLIED,)): ("La", "La", ""),
    ("grey", "unsigned", 8, (_ALPHA,)): ("LA", "LA", ""),
    ("palette", "unsigned", 1, ()): ("P", "P;1", ""),
    ("palette", "unsigned", 2, ()): ("P", "P;2", ""),
    ("palette", "unsigned", 4, ()): ("P", "P;4", ""),
    ("palette", "unsigned", 8, ()): ("P", "P", ""),
    ("palette", "unsigned", 8, (_UNTOLD,)): ("P", "PX", ""),
    ("palette", "unsigned", 8, (_ALPHA,)): ("PA", "PA", ""),
    ("RGB", "unsigned", 16, ()): ("RGB", "RGB;16N", ""),
    ("RGB", "unsigned", 16, (_UNTOLD,)): ("RGB", "RGBX;16N", ""),
    ("RGB", "unsigned", 16, (_PREMULTIPLIED,)): ("RGBA", "RGBa;16N", ""),
    ("RGB", "unsigned", 16, (_ALPHA,)): ("RGBA", "RGBA;16N", ""),
    ("CMYK", "unsigned", 16, ()): ("CMYK", "CMYK;16N", ""),
    ("YCbCr", "unsigned", 8, ()): ("RGB", "RGBX", ""),
    ("Lab", "unsigned", 8, ()): ("LAB", "LAB", ""),
}
for _more in range(4):  # samples of no known meaning, after those that count
    _LAYOUTS["RGB", "unsigned", 8, (_UNTOLD,) * _more] = ("RGB", "RGB" + "X" * _more, "")
for _more in range(3):
    _others, _unread = (_UNTOLD,) * _more, "X" * _more
    _LAYOUTS["RGB", "unsigned", 8, (_PREMULTIPLIED, *_others)] = ("RGBA", "RGBa" + _unread, "")
    _LAYOUTS["RGB", "unsigned", 8, (_ALPHA, *_others)] = ("RGBA", "RGBA" + _unread, "")
    _LAYOUTS["CMYK", "unsigned", 8, _others] = ("CMYK", "CMYK" + _unread, "")


@dataclass(frozen=True)
class _Directory:
    """One image of a file: where its directory is, and each tag's type, count and offset of the values."""

    data: bytes
    offset: int
    order: str
    tags: dict[int, tuple[int, int, int]]

    def numbers(self, tag: int, most: int = 64) -> tuple[int, ...]:
        """The whole numbers of a tag, its default, or none."""
        kind, count, at = self.tags.get(tag, (0, 0, 0))
        if kind not in _TYPES or not count:
            return (1,) if tag in _DEFAULT_IS_ONE else ()
        return struct.unpack_from(f"{self.order}{min(count, most)}{_TYPES[kind]}", self.data, at)

    def number(self, tag: int) -> int:
        """The first of them; 0 for none."""
        return next(iter(self.numbers(tag)), 0)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self.number(_WIDTH), self.number(_HEIGHT)


class TiffImage:
    """The image of one directory.

    Raises:
        ImageTypeError: its pixels are of a kind that is not read.
    """

    def __init__(self, directory: _Directory, label: str) -> None:
        self.directory, self.size = directory, directory.size
        layout = _layout(directory)
        if layout is None:
            kind = _describe(directory)
            raise ImageTypeError(
                label, f"is a TIFF of a kind that is not read ({kind}); save it as 8-bit RGB"
            )
        self.mode, self.rawmode, self.dtype = layout

    def decode(self, side: int | None) -> Decoded:
        """See :class:`~captioner.image.opened.Opened`."""
        _silence_libtiff()
        directory = self.directory
        arguments = (self.rawmode, False, directory.offset)
        image = Image.frombytes(self.mode, self.size, directory.data, "libtiff", arguments)
        if self.mode in ("P", "PA"):
            levels = directory.numbers(_COLOUR_MAP, 3 << 8)
            shift = 8 if max(levels) > 255 else 0  # some programs wrote eight bits
            image.palette = ImagePalette.raw("RGB;L", bytes(level >> shift for level in levels))
            image.load()
        if self.dtype:
            image = eight_bits(np.asarray(image).view(self.dtype))
        if directory.number(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            image = ImageOps.invert(image.convert("L"))
        _, length, at = directory.tags.get(_ICC, (0, 0, 0))
        return Decoded(image, self.size, directory.number(_ORIENTATION), directory.data[at : at + length])


def open_tiff(data: bytes, label: str) -> Opened:
    """The largest image that a file has in full; a camera's RAW file goes to its own reader.

    Raises:
        ImageTypeError: its pixels are of a kind that is not read.
    """
    directories = list(_directories(data))
    if data[8:10] == b"CR" or any(
        _DNG_VERSION in each.tags or each.number(_PHOTOMETRIC) in _RAW for each in directories
    ):
        return RawImage(data, label)
    full = [each for each in directories if not each.number(_SUBFILE) & (_REDUCED | _MASK)]
    return TiffImage(max(full or directories, key=lambda each: each.size[0] * each.size[1]), label)


def _directories(data: bytes) -> Iterator[_Directory]:
    """All images of a file, the first one first; what cannot be followed after it is left out."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count_format, entry, offset_format = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    inline, (first,) = (
        struct.calcsize(offset_format),
        struct.unpack_from(order + offset_format, data, 8 if big else 4),
    )
    waiting, seen, entries = [first], {0}, 0
    while waiting and len(seen) <= _MAX_DIRECTORIES:
        offset = waiting.pop(0)
        if offset in seen:
            continue
        seen.add(offset)
        try:
            (count,) = struct.unpack_from(order + count_format, data, offset)
            at, step = offset + struct.calcsize(count_format), 4 + 2 * inline
            entries += count
            if entries > _MAX_ENTRIES:
                raise ValueError("far too many tags")
            tags: dict[int, tuple[int, int, int]] = {}
            for start in range(at, at + count * step, step):
                tag, kind, length = struct.unpack_from(order + entry, data, start)
                value = start + 4 + inline
                if length * struct.calcsize(_TYPES.get(kind, "d")) > inline:
                    (value,) = struct.unpack_from(order + offset_format, data, value)
                tags.setdefault(tag, (kind, length, value))
            found = _Directory(data, offset, order, tags)
            waiting += found.numbers(_SUB_DIRECTORIES)
            waiting += struct.unpack_from(order + offset_format, data, at + count * step)
        except struct.error:
            if offset == first:
                raise
            continue
        yield found


def _layout(directory: _Directory) -> tuple[str, str, str] | None:
    """How the pixels of a directory are unpacked, from :data:`_LAYOUTS`; None for those that are not read."""
    number, numbers = directory.number, directory.numbers
    photometric, compression, planes = number(_PHOTOMETRIC), number(_COMPRESSION), number(_PLANAR) == 2
    depths, formats = set(numbers(_BITS)), set(numbers(_SAMPLE_FORMAT))
    samples, extra = number(_SAMPLES), numbers(_EXTRA_SAMPLES)
    if compression not in COMPRESSION_INFO or len(depths) != 1 or len(formats) != 1:
        return None
    if compression == _OLD_JPEG:  # which libtiff makes RGB of by itself
        return "RGB", "RGBX", ""
    colours, depth, kind = _NAMES.get(photometric, ""), depths.pop(), _FORMATS.get(formats.pop(), "")
    if colours == "RGB" and samples == 4 and not extra:
        extra = (_ALPHA,)  # as those meant it who did not say it
    if samples != {"RGB": 3, "CMYK": 4, "YCbCr": 3, "Lab": 3}.get(colours, 1) + len(extra):
        return None
    extra = tuple(_ALPHA if each == _COREL_ALPHA else each for each in extra)
    if planes and not any(extra):
        extra = ()  # each in a plane of its own, which need not be read
    unlike = [  # what the decoder would take for something else
        planes and (colours == "Lab" or (extra and colours != "RGB")),
        any(extra) and photometric == _WHITE_IS_ZERO,
        colours == "CMYK" and number(_INK_SET) != 1,
        depth == 12 and directory.order == ">",
    ]
    if any(unlike):
        return None
    if colours == "YCbCr" and compression == _JPEG and not planes and (depth, extra) == (8, ()):
        return "RGB", "RGB", ""
    return _LAYOUTS.get((colours, kind, depth, extra))


def _describe(directory: _Directory) -> str:
    """The kind of a directory's pixels, for the user: ``3 × 32-bit float, RGB, in planes, compression 5``."""
    photometric, compression = directory.number(_PHOTOMETRIC), directory.number(_COMPRESSION)
    bits = "/".join(map(str, sorted(set(directory.numbers(_BITS)))))
    kind = _FORMATS.get(directory.number(_SAMPLE_FORMAT), "of an unknown number type")
    parts = [
        f"{directory.number(_SAMPLES)} × {bits}-bit {kind}",
        _NAMES.get(photometric, f"photometric interpretation {photometric}"),
        "in planes" if directory.number(_PLANAR) == 2 else "",
        "" if compression == 1 else f"compression {COMPRESSION_INFO.get(compression, compression)}",
    ]
    return ", ".join(part for part in parts if part)


@cache
def _silence_libtiff() -> None:
    """Keep libtiff from printing to stderr what is wrong with a file; Pillow raises it as well."""
    set_handler = getattr(ctypes.CDLL(_imaging.__file__), "TIFFSetErrorHandler", None)
    if set_handler is not None:  # where libtiff is linked in statically, its names may be out of reach
        set_handler(None)
