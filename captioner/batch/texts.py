"""Text files that other people wrote: their lines, and one more in the same encoding, with the same end."""

from __future__ import annotations

import codecs
import re

from captioner.errors import DataError

__all__ = ["append_line", "is_blank", "lines_of"]

MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
LINE_END = re.compile(r"\r\n|\r|\n")


def is_blank(data: bytes) -> bool:
    """Whether a file holds nothing that anybody wrote: no byte, a byte-order mark, or white space."""
    return not data.strip(b" \t\r\n\0\xef\xbb\xbf\xff\xfe")


def lines_of(data: bytes) -> list[str]:
    """The lines of a text; where its encoding is not known, as many as are the same in most encodings."""
    return LINE_END.split(_decode(data)[0])


def append_line(data: bytes, line: str) -> bytes:
    """A text with one more line; what it had stays to the byte.

    Raises:
        DataError: it is in an encoding that is not known, in which the line cannot be written.
    """
    text, encoding = _decode(data)
    if not encoding and (b"\0" in data or not line.isascii()):
        raise DataError("is in an encoding that is not known: save it as UTF-8, and the line can be added")
    end = next(iter(LINE_END.findall(text)), "\n")
    begin = "" if text.endswith(("\r", "\n")) else end
    return data + f"{begin}{line}{end}".encode(encoding or "ascii")


def _decode(data: bytes) -> tuple[str, str]:
    """A text and its encoding; an empty one where that is not known, as of old Windows code pages."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return data.removeprefix(mark).decode(encoding, "replace"), encoding
    try:
        return data.decode(), "utf-8" if b"\0" not in data else ""
    except UnicodeDecodeError:
        return data.decode("latin-1"), ""
