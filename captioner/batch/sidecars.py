"""Sidecars: the caption of a photograph in a small file beside it, as other programs read it.

Nothing that somebody else wrote is lost or hidden unless the user asks for it: see :class:`Sidecars`.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from captioner.batch.items import PHOTO_SUFFIXES, RAW_SUFFIXES
from captioner.batch.log import Existing
from captioner.batch.records import OURS, Record
from captioner.batch.replacing import replacing
from captioner.batch.texts import append_line, is_blank, lines_of
from captioner.batch.xmp import DEFAULT, describe, descriptions, parse
from captioner.errors import DataError, OptionsError

__all__ = [
    "CAPTION_FIELD",
    "ELSEWHERE",
    "FOREIGN",
    "UNCERTAIN",
    "Left",
    "SidecarKind",
    "SidecarNaming",
    "Sidecars",
    "text_form",
]

SidecarKind = Literal["txt", "caption", "xmp", "json"]
SidecarNaming = Literal["stem", "full"]

CAPTION_FIELD = "{caption}"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class Left(NamedTuple):
    """Why a caption was not written beside its photograph.

    Attributes:
        name: what is in the way: the name of a sidecar or of the photograph, or the caption itself.
        reason: a phrase about it.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


FOREIGN = "is another program's"
HAS_TEXT = "has a text already"
HAS_CAPTION = "has a caption already"
HAS_DESCRIPTION = "has a description already"
UNCERTAIN = "is uncertain"
ELSEWHERE = "is in a shard or an object store, where nothing can stand beside it"


def text_form(kind: str | None, template: str, prefix: str, suffix: str, *, option: str) -> str:
    """What a text sidecar says, with :data:`CAPTION_FIELD` where the caption is to be.

    Args:
        kind: of the sidecars; None where there are none.
        template: with that field in it.
        prefix: what stands before it.
        suffix: what stands after it.
        option: which chooses the kind, for the error.

    Raises:
        OptionsError: they do not fit.
    """
    form = f"{prefix}{template}{suffix}"
    if form != CAPTION_FIELD and kind not in ("txt", "caption"):
        raise OptionsError(f"--prefix, --suffix and --template are for {option} txt or caption")
    if CAPTION_FIELD not in template:
        raise OptionsError(
            f"--template {template!r} has no {CAPTION_FIELD} in it, where the caption is to be"
        )
    if not form.isprintable():
        raise OptionsError("--prefix, --suffix and --template are one line, without tabs and the like")
    return form


class Sidecars:
    """Writes a caption beside each photograph; the photograph itself is never touched.

    Its sidecar is ``dog.xmp`` for ``dog.jpg``, as Adobe's XMP specification (part 3) has it, as Lightroom and
    PhotoPrism read it and captions for training are named; or ``dog.jpg.xmp``, as digiKam, darktable and
    PhotoPrism do. One of the full name that is there already is used in any case, and an XMP of either name:
    a second one would hide what the first one says. The full name is also used where photographs of one
    folder share a stem, as ``dog.heic`` and ``dog.jpg`` do; of ``dog.cr2`` and ``dog.jpg``, ``dog.xmp`` is
    the RAW file's. Suffixes may be written ``.XMP`` or ``.Xmp``.

    Args:
        kind: ``txt`` and ``caption``: the caption, on a line; ``json``: the record; ``xmp``:
            ``dc:description``.
        existing: what becomes of what is there. "skip" leaves it as it is, except that an XMP without a
            description gets one, unless the other name's XMP or the photograph itself has a description, in
            whatever language; "overwrite" replaces it, of an XMP only the default description; "append" adds
            a line or a record, unless it is there already. A JSON of another program is never touched. With
            "skip" as well, what is just as this program wrote it before is brought up to date.
        naming: of new sidecars.
        form: what a text says, with :data:`CAPTION_FIELD` where the caption is to be.
        ours: absolute paths of files that no sidecar may replace, such as the output.

    Attributes:
        written: how many files it has written.
    """

    def __init__(
        self,
        kind: SidecarKind,
        *,
        existing: Existing = "skip",
        naming: SidecarNaming = "stem",
        form: str = CAPTION_FIELD,
        ours: Collection[str] = (),
    ) -> None:
        self.kind, self.existing, self.naming = kind, existing, naming
        self.form, self.ours = form, ours
        self.written = 0
        # photographs come folder by folder
        self._folder = lru_cache(maxsize=16)(lambda folder: _Folder(folder, kind))

    def path(self, photo: str) -> Path:
        """Where a photograph's sidecar is, or will be."""
        return self._places(photo)[0]

    def attempt(self, photo: str, record: Record, *, previous: Record | None = None) -> Left | str | None:
        """The same as :meth:`write`, but what is wrong with this sidecar alone is returned, as a phrase.

        Raises:
            DataError: there is no room for it, nor for any other.
        """
        try:
            return self.write(photo, record, previous=previous)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DataError(
                    f"{photo}: its sidecar cannot be written: {error.strerror}. The records so far are safe: "
                    "make room, and the same command goes on"
                ) from error
            return f"cannot be written: {error.strerror}"
        except DataError as error:
            return str(error)

    def write(self, photo: str, record: Record, *, previous: Record | None = None) -> Left | None:
        """Write a photograph's sidecar, in one step: whoever reads it sees the old one or the new one.

        Args:
            photo: its path.
            record: with its caption.
            previous: the photograph's record until now: a sidecar that says just that is ours.

        Returns:
            Why nothing was written; None if the caption is there now.

        Raises:
            OSError: it cannot be written.
            DataError: what is there is damaged or another program's, so that nothing can be added to it.
        """
        if record.get("uncertain"):
            return Left("its caption", UNCERTAIN)
        path, others = self._places(photo)
        if os.path.abspath(path) in self.ours:
            raise DataError(f"{path.name} would take the place of a file of this run: rename one of them")
        old = path.read_bytes() if os.path.lexists(path) else None
        if old is not None and is_blank(old):
            old = None
        try:
            if self.kind == "xmp":
                new = self._xmp(photo, path, others, old, record, previous)
            else:
                new = (self._json if self.kind == "json" else self._text)(path, old, record, previous)
        except DataError as error:
            raise DataError(f"{path.name} {error}") from error
        if isinstance(new, Left):
            return new
        if new is not None and new != old:
            self._replace(path, new)
        return None

    def _replace(self, path: Path, new: bytes) -> None:
        if path.exists() and not path.stat().st_mode & 0o222:
            raise DataError(f"{path.name} is read-only, and stays as it is")
        with replacing(path) as file:
            file.write(new)
        self.written += 1

    def _places(self, photo: str) -> tuple[Path, list[Path]]:
        """Where a photograph's sidecar belongs, and other XMPs that say something of it."""
        folder, name = os.path.split(photo)
        names, stem = self._folder(folder), os.path.splitext(name)[0]
        is_raw = os.path.splitext(name)[1].lower() in RAW_SUFFIXES
        is_shared = names.stems[stem.casefold()] > 1
        full = names.find(f"{name}.{self.kind}", any_case=names.photos[name.casefold()] == 1)
        short = names.find(f"{stem}.{self.kind}", any_case=not is_shared)
        short_is_there = self.kind == "xmp" and os.path.lexists(short)
        needs_full = is_shared and not (is_raw and short_is_there)
        wants_full = self.naming == "full" and not short_is_there
        if os.path.lexists(full) or needs_full or wants_full:
            return full, [short] if short_is_there else []
        return short, []

    def _line(self, record: Record) -> str:
        return self.form.replace(CAPTION_FIELD, str(record["caption"]))

    def _text(self, path: Path, old: bytes | None, record: Record, previous: Record | None) -> _Result:
        line = self._line(record)
        whole = f"{line}\n".encode()
        if old is None or self.existing == "overwrite":
            return whole
        if line in lines_of(old):
            return None
        if self.existing == "append":
            return append_line(old, line)
        is_ours = previous is not None and old == f"{self._line(previous)}\n".encode()
        return whole if is_ours else Left(path.name, HAS_TEXT)

    def _json(self, path: Path, old: bytes | None, record: Record, previous: Record | None) -> _Result:
        known = [] if old is None else _our_records(old)
        if old is not None and not known:
            if self.existing == "skip":
                return Left(path.name, FOREIGN)
            raise DataError("is no JSON of ours, and stays as it is: move it, or use another kind of sidecar")
        content: Any = record
        is_ours = self.existing == "skip" and known == [previous]
        if known and self.existing != "overwrite" and not is_ours:
            if _key(record) in map(_key, known):
                return None
            if self.existing == "skip":
                return Left(path.name, HAS_CAPTION)
            content = [*known, record]
        return json.dumps(content, ensure_ascii=False, indent=2).encode(errors="backslashreplace") + b"\n"

    def _xmp(
        self,
        photo: str,
        path: Path,
        others: Sequence[Path],
        old: bytes | None,
        record: Record,
        previous: Record | None,
    ) -> _Result:
        caption = str(record["caption"])
        if self.existing == "overwrite":
            return describe(old, caption)
        texts = [] if old is None else descriptions(parse(old))
        if self.existing == "skip" and texts:
            if (DEFAULT, caption) in texts:
                return None
            is_ours = previous is not None and texts == [(DEFAULT, str(previous["caption"]))]
            return describe(old, caption) if is_ours else Left(path.name, HAS_DESCRIPTION)
        elsewhere = [] if texts else [*_in_others(others), *_inside(photo)]
        if self.existing == "append":
            return describe(old, caption, "append", [text for _, text in elsewhere])
        return elsewhere[0][0] if elsewhere else describe(old, caption)


_Result: TypeAlias = bytes | Left | None
"""A sidecar's new content, why it is left, or None where the caption is in it."""


class _Folder:
    """The names in a folder.

    Attributes:
        photos: how many photographs have a name, in whatever case.
        stems: how many have a stem, likewise.
    """

    def __init__(self, path: str, kind: str) -> None:
        self.path = path
        self.photos: Counter[str] = Counter()
        self.stems: Counter[str] = Counter()
        self._sidecars: dict[str, list[str]] = {}
        for name in os.listdir(path or "."):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in PHOTO_SUFFIXES:
                self.photos[name.casefold()] += 1
                self.stems[stem.casefold()] += 1
            elif suffix.lower() == f".{kind}":
                self._sidecars.setdefault(name.casefold(), []).append(name)

    def find(self, name: str, *, any_case: bool) -> Path:
        """The path of a sidecar: of this name, or else of one that is there and differs in case alone.

        Args:
            any_case: whether all of it may differ; else only the suffix.
        """
        path = Path(self.path, name)
        if os.path.lexists(path):
            return path
        found = sorted(self._sidecars.get(name.casefold(), ()))
        same = [other for other in found if os.path.splitext(other)[0] == path.stem]
        return path.with_name(next(iter(same or (found if any_case else ())), name))


def _our_records(data: bytes) -> list[Record]:
    """The records of a JSON that this program wrote; none where another one did."""
    try:
        content = json.loads(data)
    except ValueError:
        return []
    records = content if isinstance(content, list) else [content]
    return records if all(isinstance(each, dict) and each.keys() >= OURS for each in records) else []


def _key(record: Record) -> tuple[str, str]:
    return record["model"], record["caption"]


def _in_others(paths: Iterable[Path]) -> Iterator[tuple[Left, str]]:
    """The descriptions of other sidecars; one that is damaged tells nobody anything."""
    for path in paths:
        with suppress(DataError, OSError):
            for _, text in descriptions(parse(path.read_bytes())):
                yield Left(path.name, HAS_DESCRIPTION), text


def _inside(photo: str) -> Iterator[tuple[Left, str]]:
    from captioner.batch.embedded import embedded_descriptions  # with it comes Pillow, which --help can spare

    for text in embedded_descriptions(photo):
        yield Left(os.path.basename(photo), HAS_DESCRIPTION), text
