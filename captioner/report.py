"""A gallery of a batch: one HTML page with thumbnails, captions and word attention, to search and to sort.

The page holds each photograph's figure as text in a ``<script>`` of a type that no browser runs, and makes a
figure of it while it is near the window, so that thousands of photographs cost as much as a dozen.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from captioner.caption import Caption
from captioner.errors import DataError, ImageError, OptionsError
from captioner.figure import draw_figure, read_page
from captioner.image import ImageSource, decode_image

__all__ = ["Entry", "check_report_path", "write_report"]

Entry: TypeAlias = tuple[ImageSource | Callable[[], ImageSource], Mapping[str, Any]]
"""A photograph, or what opens it, and its record: the JSON of a caption, or its ``file`` and ``error``.

Several models' captions, or errors, are the record's ``captions``.
"""

THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 320, 72
CHUNK = 64
SPLIT = "<!-- photographs -->"
TITLE = b"<title>Photographs and their captions</title>"
ROOM = 1 << 20
"""Bytes that a disk must have room for before the work begins."""

FAILED = """\
<figure class="failed">
<div class="stage" aria-hidden="true">no picture</div>
<figcaption>
<p class="words">{words}</p>
<p class="error">{error}</p>
<p class="facts"><b>{file}</b></p>
</figcaption>
</figure>"""


def check_report_path(path: str | os.PathLike[str]) -> None:
    """Say before the work what :func:`write_report` would say after it, and more.

    Raises:
        OptionsError: the suffix is not .html or .htm, or the folder does not exist.
        DataError: the page cannot be written there, as on a full or read-only disk, or another one is there.
    """
    path = Path(path)
    _check_name(path)
    part = _part(path)
    try:
        if path.exists():
            with path.open("rb") as page:
                is_ours = TITLE in page.read(4096)
            if not is_ours:
                raise DataError(f"{path} is another page, which the report would replace: give another name")
        try:
            part.write_bytes(bytes(ROOM))
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: the report cannot be written: {error.strerror}") from error


def _check_name(path: Path) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise OptionsError(f"a report is an .html file: {path.name!r} is not")
    if not path.absolute().parent.is_dir():
        raise OptionsError(f"the report's folder does not exist; make it first: {path.parent}")


def _part(path: Path) -> Path:
    """Where a page is until it is whole."""
    return path.with_name(f".captioner-{zlib.crc32(os.fsencode(path.name)):08x}.tmp")


def write_report(path: str | os.PathLike[str], entries: Iterable[Entry]) -> int:
    """Write the gallery, which takes the place of ``path`` once it is whole.

    The entries are taken 64 at a time, and their photographs are decoded in threads: the memory that it takes
    does not grow with their number. A photograph that cannot be read any more is shown by its caption alone,
    and one without attention lights nothing.

    Args:
        path: an ``.html`` or ``.htm`` file.
        entries: photographs with their records, in the order in which they are shown.

    Returns:
        How many entries the page has.

    Raises:
        OptionsError: another suffix, or no such folder.
        OSError: the page cannot be written.
    """
    _check_name(Path(path))
    head, tail = read_page("report.html").split(SPLIT)
    part, count, source = _part(Path(path)), 0, iter(entries)
    try:
        with (
            part.open("w", encoding="utf-8", errors="backslashreplace") as page,
            ThreadPoolExecutor() as pool,
        ):
            page.write(head)
            while chunk := list(islice(source, CHUNK)):
                for text in pool.map(_draw, chunk):
                    page.write(text)
                count += len(chunk)
            page.write(tail)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _draw(entry: Entry) -> str:
    """A photograph's text in the page: what it is found and sorted by, and its figure."""
    source, record = entry
    parts = _parts(record)
    facts = {
        "file": _name(record),
        "caption": "\n".join(part["caption"] for part in parts if "caption" in part),
        "error": "\n".join(part["error"] for part in parts if "error" in part),
    }
    if parts[0].get("confidence") is not None:
        facts["confidence"] = f"{parts[0]['confidence']:.4f}"
    attributes = "".join(f' data-{name}="{escape(value)}"' for name, value in facts.items() if value)
    return f'<script type="text/html"{attributes}>\n{_figure(source, record)}\n</script>\n'


def _name(record: Mapping[str, Any]) -> str:
    return record["file"] or "photograph"


def _parts(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The captions of a record, or what is in place of them; one at least."""
    parts: Sequence[Mapping[str, Any]] = record.get("captions", [record])
    return parts


def _error(part: Mapping[str, Any]) -> str:
    """What went wrong, with the model where there are several."""
    return (
        f"{part['model']}: {part['error']}" if "model" in part and "file" not in part else str(part["error"])
    )


def _figure(source: ImageSource | Callable[[], ImageSource], record: Mapping[str, Any]) -> str:
    """The figure, and what went wrong; a record has both where only its sidecar could not be written."""
    parts = _parts(record)
    error = "; ".join(_error(part) for part in parts if "error" in part)
    captions = [Caption.from_dict(part) for part in parts if "caption" in part]
    if captions:
        try:
            photo = decode_image(source() if callable(source) else source, min_side=THUMBNAIL_SIDE).pixels
        except ImageError as problem:
            error = error or f"the photograph {problem.reason}"
        else:
            figure = draw_figure(photo, captions, side=THUMBNAIL_SIDE, quality=THUMBNAIL_QUALITY)
            return f'{figure}\n<p class="error">{escape(error)}</p>' if error else figure
    return FAILED.format(
        words=escape("\n".join(caption.caption for caption in captions)),
        error=escape(error),
        file=escape(_name(record)),
    )
