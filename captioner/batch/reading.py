"""The records of a batch, read back: the latest of each photograph, and the photograph itself."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from captioner.batch.finding import find_items
from captioner.batch.items import Item, split_member
from captioner.batch.records import Record, decode_record, parse_record, place_of
from captioner.errors import DataError

__all__ = ["RecordFile", "item_of"]

ADVICE = "give what `captioner batch` wrote, or mend the file"
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""The first bytes of what gzip, bzip2, xz and zstd wrote."""


class RecordFile:
    """The records in a file, the latest of each photograph, at the place of its first one.

    The file is only read, also while a run adds to it: a last line that is not whole yet is left out. What it
    takes of memory is the photographs' paths.

    Args:
        path: of the file, or of a table that was made of it.

    Attributes:
        foreign: the numbers of lines that hold something else than records, such as another program's. They
            are left out.

    Raises:
        DataError: it cannot be read, or holds no records.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.foreign: list[int] = []
        try:
            self.path = _file_of(Path(path))
            self._file = open(self.path, "rb")  # noqa: SIM115
            self._offsets = self._latest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        if not self._offsets:
            raise DataError(f"{self.path} has no records{': ' + ADVICE if self.foreign else ''}")

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
        """The record that begins there."""
        self._file.seek(offset)
        return parse_record(self._file.readline())

    def say_what_is_foreign(self) -> Iterator[str]:
        """A sentence about the lines that were left out, which names each of them."""
        if self.foreign:
            yield f"{self.path}: left out what is no record of a batch, in {_lines(self.foreign)}; {ADVICE}"

    def _latest(self) -> dict[str, int]:
        """By photograph, where its latest record begins."""
        offsets: dict[str, int] = {}
        offset = 0
        for number, line in enumerate(self._file, 1):
            try:
                if line.strip():
                    offsets[place_of(decode_record(line, "", ADVICE))] = offset
            except DataError:
                if line.endswith(b"\n"):  # or else a run is still writing it
                    self.foreign.append(number)
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
        head = file.read(64)
    if head.startswith(PACKED):
        raise DataError(f"{path} is compressed: unpack it first")
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b""):
        return path
    records = path.with_name(f"{path.name}.jsonl")
    if not records.exists():
        raise DataError(
            f"{path} holds no records: give the JSON Lines of `captioner batch`, which are beside a table, "
            "such as captions.csv.jsonl for captions.csv"
        )
    return records


def _lines(numbers: Sequence[int]) -> str:
    """``line 4``, or ``lines 4, 7-9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    named = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return f"line{'s' if len(numbers) > 1 else ''} {', '.join(named)}"
