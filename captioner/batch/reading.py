"""The records of a batch, read back: the latest of each photograph, and the photograph itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from captioner.batch.items import Item, find_items, split_member
from captioner.batch.log import place_of
from captioner.batch.records import OURS, Record, decode_record
from captioner.errors import DataError

__all__ = ["RecordFile", "item_of"]

ADVICE = "give what `captioner batch` wrote, or mend the file"
SCORES, WORD = {"caption", "confidence", "logprob"}, {"text", "confidence", "logprob"}


class RecordFile:
    """The records in a file, the latest of each photograph, at the place of its first one.

    The file is only read, also while a run adds to it: a last line that is not whole yet is left out. What it
    takes of memory is the photographs' paths.

    Args:
        path: of the file, or of a table that was made of it.

    Raises:
        DataError: it cannot be read, or holds something else than records, or none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = _file_of(Path(path))
            self._file = open(self.path, "rb")  # noqa: SIM115
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        self._offsets = self._latest()
        if not self._offsets:
            raise DataError(f"{self.path} has no records")

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Record]:
        return map(self.at, self.offsets())

    def offsets(self) -> Iterator[int]:
        """Where each record begins, in bytes."""
        return iter(self._offsets.values())

    def at(self, offset: int) -> Record:
        """The record that begins there.

        Raises:
            DataError: it lacks what Captioner's records have.
        """
        self._file.seek(offset)
        record = decode_record(self._file.readline(), f"{self.path} at byte {offset}", ADVICE)
        if not _is_whole(record):
            raise DataError(f"{self.path} at byte {offset} is another program's record: {ADVICE}")
        return record

    def _latest(self) -> dict[str, int]:
        """By photograph, where its latest record begins."""
        offsets: dict[str, int] = {}
        offset = 0
        for number, line in enumerate(self._file, 1):
            try:
                offsets[place_of(decode_record(line, f"{self.path}, line {number},", ADVICE))] = offset
            except DataError:
                if line.endswith(b"\n"):
                    raise
            offset += len(line)
        return offsets


def item_of(record: Record) -> Item:
    """A record's photograph, wherever its path is relative to; with a ``problem`` if a shard lacks it now."""
    key, place = record["file"], place_of(record)
    shard, member = split_member(place)
    if not member:
        return Item(key, place)
    item = _members(shard).get(place)
    return replace(item, key=key) if item else Item(key, place, 0, problem="is not there any more")


@lru_cache(maxsize=4)  # records come shard by shard
def _members(shard: str) -> Mapping[str, Item]:
    return {item.key: item for item in find_items([shard], all_files=True)}


def _file_of(path: Path) -> Path:
    """The file itself, or the records beside it from which a table was made."""
    with open(path, "rb") as file:
        if file.read(1) in (b"{", b""):
            return path
    records = path.with_name(f"{path.name}.jsonl")
    if not records.exists():
        raise DataError(
            f"{path} holds no records: give the JSON Lines of `captioner batch`, which are beside a table, "
            "such as captions.csv.jsonl for captions.csv"
        )
    return records


def _is_whole(record: Record) -> bool:
    """Whether a record has all that a run gives one, in its types."""
    if "caption" not in record:
        return isinstance(record["error"], str)
    return (
        record.keys() >= OURS
        and all(isinstance(record[name], str) for name in ("caption", "model"))
        and all(isinstance(record[name], int) for name in ("width", "height"))
        and all(_is_number(record[name]) for name in ("confidence", "logprob"))
        and _are_parts(record.get("words", []), WORD, "text")
        and _are_parts(record.get("alternatives", []), SCORES, "caption")
        and _are_parts([record["unhedged"]] if "unhedged" in record else [], SCORES, "caption")
    )


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _are_parts(value: Any, names: set[str], text: str) -> bool:
    """Whether a value is a list of objects that have these names, one of which is that of a text."""
    return isinstance(value, list) and all(
        isinstance(part, dict) and part.keys() >= names and isinstance(part[text], str) for part in value
    )
