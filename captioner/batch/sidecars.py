"""Sidecars: the caption of a photograph in a small file beside it, as other programs read it."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from captioner.batch.items import IMAGE_SUFFIXES
from captioner.batch.log import Existing, replacing
from captioner.batch.records import Record
from captioner.batch.xmp import describe
from captioner.errors import DataError

__all__ = ["SidecarKind", "SidecarNaming", "Sidecars"]

SidecarKind = Literal["txt", "xmp", "json"]
SidecarNaming = Literal["stem", "full"]


class Sidecars:
    """Writes a caption beside each photograph; the photograph itself is never touched.

    Its sidecar is ``dog.xmp`` for ``dog.jpg``, as Adobe's XMP specification (part 3) has it, as Lightroom and
    PhotoPrism read it and captions for training are named; or ``dog.jpg.xmp``, as digiKam, darktable and
    PhotoPrism do. One of the full name that is there already is used in any case. So is the full name where
    photographs of one folder share a stem, as ``dog.heic`` and ``dog.jpg`` do.

    Args:
        kind: ``txt``: the caption, on a line; ``json``: the record; ``xmp``: ``dc:description``.
        existing: what becomes of what is there. "skip" leaves a sidecar as it is, except that an XMP without
            a description gets one; "overwrite" replaces it, of an XMP only the description; "append" adds a
            line or a record, unless it is there already.
        naming: of new sidecars.
    """

    def __init__(
        self, kind: SidecarKind, *, existing: Existing = "skip", naming: SidecarNaming = "stem"
    ) -> None:
        self.kind, self.existing, self.naming = kind, existing, naming

    def path(self, photo: str) -> Path:
        """Where a photograph's sidecar is, or will be."""
        full, stem = Path(f"{photo}.{self.kind}"), Path(photo).with_suffix(f".{self.kind}")
        shared = Path(photo).stem in _shared_stems(os.path.dirname(photo))
        return full if self.naming == "full" or shared or full.exists() else stem

    def write(self, photo: str, record: Record) -> None:
        """Write a photograph's sidecar, in one step: whoever reads it sees the old one or the new one.

        Raises:
            OSError: it cannot be written.
            DataError: what is there is damaged, so that nothing can be added to it.
        """
        path = self.path(photo)
        old = path.read_bytes() if path.exists() else None
        new = _WRITERS[self.kind](old, record, self.existing)
        if new is not None and new != old:
            with replacing(path) as file:
                file.write(new)


def _txt(old: bytes | None, record: Record, existing: Existing) -> bytes | None:
    caption = str(record["caption"])
    if old is None or existing == "overwrite":
        return f"{caption}\n".encode()
    if existing == "skip" or caption.encode() in old.splitlines():
        return None
    return old.removesuffix(b"\n") + f"\n{caption}\n".encode()


def _json(old: bytes | None, record: Record, existing: Existing) -> bytes | None:
    content: Any = record
    if old is not None and existing == "skip":
        return None
    if old is not None and existing == "append":
        try:
            content = json.loads(old)
        except ValueError as error:
            raise DataError(f"is no JSON ({error})") from error
        records = content if isinstance(content, list) else [content]
        known = [(each.get("model"), each.get("caption")) for each in records if isinstance(each, dict)]
        content = records if (record["model"], record["caption"]) in known else [*records, record]
    return json.dumps(content, ensure_ascii=False, indent=2).encode(errors="backslashreplace") + b"\n"


def _xmp(old: bytes | None, record: Record, existing: Existing) -> bytes | None:
    return describe(old, record["caption"], existing)


_WRITERS = {"txt": _txt, "json": _json, "xmp": _xmp}


@lru_cache(maxsize=16)  # photographs come folder by folder
def _shared_stems(folder: str) -> frozenset[str]:
    """The stems that several photographs of a folder have."""
    names = [Path(name) for name in os.listdir(folder or ".")]
    stems = Counter(name.stem for name in names if name.suffix.lower() in IMAGE_SUFFIXES)
    return frozenset(stem for stem, count in stems.items() if count > 1)
