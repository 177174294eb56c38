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
from typing import Any, TypeAlias

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
    "without_sidecar",
]

Record: TypeAlias = dict[str, Any]

OURS = {"file", "model", "width", "height", "caption", "confidence", "logprob"}
"""What every record with a caption has, and no other program's JSON."""

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
    """The record of a line.

    Args:
        line: of the file.
        where: which file and line it is, for the error.
        advice: what to do about it, likewise.

    Raises:
        DataError: the line is no record.
    """
    try:
        record: Record = json.loads(line)
        is_ours = isinstance(record["file"], str) and isinstance(record.get("photo", {}), dict)
        if is_ours and ("caption" in record or "error" in record):
            return record
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise DataError(f"{where} is not a record of a batch: {advice}")


def without_sidecar(record: Record) -> Record:
    """A record without what it says of its sidecar."""
    return {name: value for name, value in record.items() if name not in OF_THE_SIDECAR}
