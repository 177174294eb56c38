"""Records: what a batch says of a photograph, as a line of JSON holds it.

Either a caption, with the keys of :meth:`Caption.to_dict`, or ``{"file", "error", "error_kind"}``. With both
a caption and an error, the caption is right but its sidecar could not be written; ``sidecar`` says why one
was left as it is.

A run adds what its successors go by: ``photo``, the ``bytes`` of the file and when it was ``modified``, in
seconds since 1970, with its absolute ``folder`` where ``file`` is relative; and ``made_with``, see
:func:`~captioner.batch.origin.made_with`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeAlias

from captioner.batch.items import identity, split_member
from captioner.caption import Caption
from captioner.errors import DataError, ImageDecodeError, ImageError, ImageSizeError, ImageTypeError

__all__ = [
    "OURS",
    "Record",
    "caption_record",
    "decode_record",
    "encode_record",
    "error_record",
    "image_error_record",
    "parse_record",
    "place_of",
    "version_of",
    "without_sidecar",
]

Record: TypeAlias = dict[str, Any]

OURS = {"file", "model", "width", "height", "caption", "confidence", "logprob"}
"""What every record with a caption has, and no other program's JSON."""

SCORES = ("confidence", "logprob")
"""What a record has also where it is not known."""

_NO_FLOATS: dict[str, Callable[[float], Any]] = {
    **dict.fromkeys(("width", "height"), int),
    **dict.fromkeys(("calibrated", "uncertain"), bool),
}

OF_THE_SIDECAR = ("sidecar", "error", "error_kind")
"""What a record with a caption may say of its sidecar."""

_KINDS = {
    ImageTypeError: "type",
    ImageSizeError: "size",
    ImageDecodeError: "damaged",
    ImageError: "unreadable",
}


def caption_record(key: str, caption: Caption) -> Record:
    """The record of a captioned photograph."""
    return {**caption.to_dict(), "file": key}


def error_record(key: str, reason: str, kind: str) -> Record:
    """The record of a photograph without a caption.

    Args:
        key: the item's.
        reason: what is wrong, as a phrase.
        kind: ``unreadable``, ``type``, ``size``, ``damaged``, ``memory``, ``model`` or ``crash``.
    """
    return {"file": key, "error": reason, "error_kind": kind}


def image_error_record(key: str, error: ImageError) -> Record:
    """The record of a photograph that cannot be used."""
    return error_record(key, error.reason, _KINDS[type(error)])


def encode_record(record: Record) -> bytes:
    """A record as one line of UTF-8, its line feed included.

    A file name that is no UTF-8 is written with escapes, from which JSON readers restore it.
    """
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def decode_record(line: bytes, where: str, advice: str) -> Record:
    """The record of a line. What another version of this program adds to records is no matter.

    Args:
        line: of the file.
        where: which file and line it is, for the error.
        advice: what to do about it, likewise.

    Raises:
        DataError: the line is no record, or lacks what this program's records have, in its types.
    """
    try:
        record = parse_record(line)
    except (ValueError, RecursionError, AttributeError):
        record = {}
    if not _is_record(record):
        raise DataError(f"{where} is not a record of a batch: {advice}")
    return record


def parse_record(line: bytes) -> Record:
    """The record of a line that holds one, also if a dataframe wrote it, with null for what there is not and
    numbers with a point in columns that have it.
    """
    parts = json.loads(line).items()
    record = {name: value for name, value in parts if value is not None or name in SCORES}
    for name, kind in _NO_FLOATS.items():
        if isinstance(value := record.get(name), float) and value.is_integer():
            record[name] = kind(value)
    return record


def without_sidecar(record: Record) -> Record:
    """A record without what it says of its sidecar."""
    return {name: value for name, value in record.items() if name not in OF_THE_SIDECAR}


def place_of(record: Record) -> str:
    """The identity of a record's photograph, also where its path is relative to another folder than ours."""
    here, folder = identity(record["file"]), record.get("photo", {}).get("folder")
    if folder is None or folder == os.path.dirname(here):
        return here
    there = os.path.join(folder, os.path.basename(record["file"]))
    file, _ = split_member(there)
    return there if os.path.lexists(file) else here  # or else the library has moved


def version_of(record: Record) -> tuple[int, float] | None:
    """Bytes and time of modification of a record's photograph as it was captioned; None where it has none."""
    photo = record.get("photo", {})
    version = photo.get("bytes"), photo.get("modified")
    return None if None in version else version


def _is_record(record: Record) -> bool:
    if not record.keys() >= (OURS if "caption" in record else {"file", "error"}):
        return False
    return all(_TYPES[name](value) for name, value in record.items() if name in _TYPES)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_pixels(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_score(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_photo(value: Any) -> bool:
    return isinstance(value, dict) and (
        type(value.get("bytes", 0)) is int
        and type(value.get("modified", 0)) in (int, float)
        and isinstance(value.get("folder", ""), str)
    )


def _is_scored(value: Any, text: str) -> bool:
    """Whether it is an object with a text and its scores."""
    return (
        isinstance(value, dict)
        and isinstance(value.get(text), str)
        and _is_score(value.get("confidence", ""))
        and _is_score(value.get("logprob", ""))
    )


def _is_word(value: Any) -> bool:
    if not _is_scored(value, "text"):
        return False
    attention, box = value.get("attention"), value.get("box")
    return (attention is None or _is_list(attention, lambda row: isinstance(row, list))) and (
        box is None or (_is_list(box, _is_pixels) and len(box) == 4)
    )


def _is_alternative(value: Any) -> bool:
    return _is_scored(value, "caption")


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(of, value))


_TEXTS = ("caption", "model", "error", "error_kind", "warning", "sidecar", "sha256", "duplicate_of")
_TYPES: dict[str, Callable[[Any], bool]] = {
    "file": lambda value: isinstance(value, str) and value != "",
    **dict.fromkeys(_TEXTS, _is_text),
    **dict.fromkeys(("width", "height"), _is_pixels),
    **dict.fromkeys(SCORES, _is_score),
    **dict.fromkeys(("calibrated", "uncertain"), lambda value: isinstance(value, bool)),
    "words": lambda value: _is_list(value, _is_word),
    "alternatives": lambda value: _is_list(value, _is_alternative),
    "unhedged": _is_alternative,
    "photo": _is_photo,
    "made_with": _is_object,
}
"""What each part of a record is, where it has it."""
