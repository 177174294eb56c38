"""The records of a batch on disk: a line of JSON each, whole, once, and safe as soon as it is written."""

from __future__ import annotations

import codecs
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import BinaryIO, Literal

from filelock import FileLock, Timeout

from captioner.batch.items import Item, identity
from captioner.batch.records import Record, decode_record, encode_record, parse_record, place_of, version_of
from captioner.batch.replacing import replacing
from captioner.errors import DataError

__all__ = ["Entry", "Existing", "RecordLog"]

Existing = Literal["skip", "overwrite", "append"]

ADVICE = "choose another output, or mend the file"
SYNC_SECONDS = 5.0
"""A killed process loses nothing; a machine that loses power loses so much work at most."""


@dataclass(slots=True)
class Entry:
    """What is known of a photograph's latest record without reading it again.

    Attributes:
        offset: where its line begins.
        failed: whether it has an error.
        version: :meth:`Item.version` of the photograph as it was then; None where that is not known.
        origin: what it was made with, for :func:`~captioner.batch.origin.what_changed`; None likewise.
        outdated: whether it is to be replaced.
    """

    offset: int
    failed: bool
    version: tuple[int, float] | None
    origin: str | None
    outdated: bool = False

    def has_changed(self, version: tuple[int, float] | None) -> bool:
        """Whether the photograph's file is another one now, or there at last.

        Args:
            version: of the photograph now; None where that is not known.
        """
        return version is not None and version != self.version and (self.version is not None or self.failed)


class RecordLog:
    """A JSON Lines file that one process at a time adds to, and that a killed run's successor goes on with.

    With ``existing="skip"`` the records that are there stand. Otherwise new ones are gathered in a file
    beside it, from which a killed run goes on as well, and which takes its place in :meth:`finish`, in one
    step: with "append" it begins with the old records, with "overwrite" it does not.

    A photograph is the same however its path is spelled, relative or absolute: see
    :func:`~captioner.batch.items.identity`.

    Args:
        path: of the file; made where it is not there yet.
        existing: what becomes of the records that are there.
        retry_errors: whether a record with an ``error`` counts as none until there is a newer one; not so
            where it has a caption as well, since only its sidecar is missing.

    Raises:
        DataError: another run writes to it, it holds something else, or it cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, existing: Existing = "skip", retry_errors: bool = False
    ) -> None:
        self.path = Path(path)
        self.retry_errors = retry_errors
        self.digests: dict[str, str] = {}
        """The keys of photographs by the ``sha256`` of their records."""
        self._target = self.path if existing == "skip" else self._beside(existing)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        self._entries: dict[str, Entry] = {}  # by the photograph's identity
        self._superseded = False
        if not self.path.absolute().parent.is_dir():
            raise DataError(f"the output's folder does not exist; make it first: {self.path.parent}")
        try:
            self._lock.acquire(timeout=0)
            self._check_unfinished()
            self._start = self._begin(existing)
            self._made = not self._target.exists()
            self._writer = open(self._target, "ab", buffering=0)  # noqa: SIM115
            self._reader = open(self._target, "rb")  # noqa: SIM115
            self._size = self._read()
        except Timeout:
            raise DataError(f"{self.path}: another run is writing to it: wait until it has ended") from None
        except BaseException as error:
            self._unlock()
            if isinstance(error, OSError):
                raise DataError(f"{self._target}: cannot be written: {error.strerror}") from error
            raise
        self._synced = monotonic()

    def __enter__(self) -> RecordLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, key: object) -> bool:
        """Whether a photograph needs nothing any more."""
        entry = self.entry(key) if isinstance(key, str) else None
        return entry is not None and not entry.outdated

    def __getitem__(self, key: str) -> Record:
        """The latest record of a photograph, even if it is to be replaced; KeyError if there is none."""
        self._reader.seek(self._entries[identity(key)].offset)
        return parse_record(self._reader.readline())

    def entry(self, key: str) -> Entry | None:
        """What is known of a photograph's latest record; None if it has none."""
        return self._entries.get(identity(key))

    def is_current(self, item: Item) -> bool:
        """Whether a photograph has a record that is of its file as it is now."""
        entry = self.entry(item.key)
        return entry is not None and not entry.outdated and not entry.has_changed(item.version())

    def outdate(self, key: str) -> None:
        """Count a photograph's record as none until there is a newer one."""
        self._entries[identity(key)].outdated = True

    def __iter__(self) -> Iterator[Record]:
        """All records in the order of the file, read anew."""
        with open(self._target, "rb") as file:
            yield from (parse_record(line) for line in file if line.strip())

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def in_place(self) -> bool:
        """Whether the records are in the file itself, not in one that is to take its place."""
        return self._target == self.path

    def append(self, record: Record) -> None:
        """Add a record; it is in the file when this returns.

        Raises:
            DataError: it could not be written whole, as on a full disk, and not a byte of it was; or the file
                is not there any more.
        """
        self.check()
        line = encode_record(record)
        try:
            written = 0
            while written < len(line):
                written += self._writer.write(line[written:])
            if monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._writer.fileno())
                self._synced = monotonic()
        except OSError as error:
            self._writer.truncate(self._size)
            raise DataError(
                f"{self._target}: cannot be written: {error.strerror}. The {len(self)} records in it are "
                "safe: make room, and the same command goes on"
            ) from error
        self._note(record, self._size)
        self._size += len(line)

    def check(self) -> None:
        """Raises DataError if the file has been removed or replaced: what is added now would be lost."""
        with suppress(OSError):
            there = os.stat(self._target)
            # or by its size, since not all network folders number a file always alike
            if os.path.samestat(there, os.fstat(self._writer.fileno())) or there.st_size == self._size:
                return
        raise DataError(
            f"{self._target} was removed or replaced while this run was writing to it: leave it alone, and "
            "the same command goes on from what is there"
        )

    def finish(self) -> None:
        """All is done: leave one record for each photograph, in the file's own place.

        Raises:
            DataError: there is no room for that, and what there was stands; or the file is gone.
        """
        self.check()
        try:
            if self._superseded:
                self._compact()
            os.fsync(self._writer.fileno())
            if self._target != self.path:
                os.replace(self._target, self.path)
                self._target = self.path
        except OSError as error:
            raise DataError(f"{self._target}: cannot be finished: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the file and its lock, and leave no empty file behind."""
        self._writer.close()
        self._reader.close()
        if self._made and not self._size:
            self._target.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        """Take the lock's file away while it is locked still, so that it is never somebody else's."""
        if self._lock.is_locked and sys.platform != "win32":  # which removes no open file
            with suppress(OSError):
                os.unlink(self._lock.lock_file)
        self._lock.release()

    def _beside(self, existing: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{existing}")

    def _check_unfinished(self) -> None:
        for other in ("overwrite", "append"):
            path = self._beside(other)
            if path != self._target and path.exists():
                raise DataError(
                    f"{path}: a run with --existing {other} did not finish: finish it with the same command, "
                    "or remove this file"
                )

    def _begin(self, existing: Existing) -> int:
        """With "append", copy the old records to where new ones are added; where those begin."""
        if existing == "skip" or not self.path.exists():
            return 0
        with open(self.path, "r+b") as old:
            size = _whole_lines(old, self.path)
            if existing == "overwrite":
                return 0
            old.truncate(size)
            old.seek(0)
            if not self._target.exists():
                with replacing(self._target) as copy:
                    shutil.copyfileobj(old, copy)
                    _sync(copy)
        return size

    def _read(self) -> int:
        """Note what records there are, and cut off what is no whole line; the size that is left."""
        size, offset = _whole_lines(self._reader, self._target), self._start
        self._reader.seek(0)
        number = self._reader.read(offset).count(b"\n")
        while offset < size:
            line, number = self._reader.readline(), number + 1
            if line.strip():
                record = decode_record(line, f"{self._target}, line {number},", ADVICE)
                entry = self._note(record, offset)
                entry.outdated = self.retry_errors and entry.failed and "caption" not in record
            offset += len(line)
        self._writer.truncate(size)
        if self.retry_errors:
            self.digests = {digest: key for digest, key in self.digests.items() if key in self}
        return size

    def _note(self, record: Record, offset: int) -> Entry:
        photo = place_of(record)
        self._superseded |= photo in self._entries
        entry = Entry(offset, "error" in record, version_of(record), _origin(record))
        self._entries[photo] = entry
        if "sha256" in record:
            self.digests.setdefault(record["sha256"], record["file"])
        return entry

    def _compact(self) -> None:
        """Write the file anew with the latest record of each photograph, at the place of its first one."""
        size = self._start
        self._reader.seek(0)
        with replacing(self._target) as file:
            file.write(self._reader.read(self._start))
            offsets = []
            for entry in self._entries.values():
                self._reader.seek(entry.offset)
                offsets.append(size)
                size += file.write(self._reader.readline())
            _sync(file)
        for entry, offset in zip(self._entries.values(), offsets, strict=True):
            entry.offset = offset
        self._writer.close()
        self._reader.close()
        self._writer = open(self._target, "ab", buffering=0)  # noqa: SIM115
        self._reader = open(self._target, "rb")  # noqa: SIM115
        self._size, self._superseded = size, False


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _whole_lines(file: BinaryIO, path: Path) -> int:
    """The bytes of a file's whole lines; what follows them was cut off when a run was killed."""
    file.seek(0)
    head = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
    if head.startswith(b"{"):
        file.seek(0)
        first = next(filter(bytes.strip, file))
        head = first if first.endswith(b"\n") else b""  # which was cut off
    if head:
        decode_record(head, str(path), ADVICE)
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _origin(record: Record) -> str | None:
    if "made_with" not in record:
        return None
    return sys.intern(json.dumps({"model": record.get("model"), **record["made_with"]}, sort_keys=True))
