"""One run of a batch: what is to do, done by an engine, written down, and counted."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from time import monotonic

from captioner.batch.engine import Engine
from captioner.batch.items import Item
from captioner.batch.log import RecordLog
from captioner.batch.prefetch import prefetch
from captioner.batch.records import Record
from captioner.batch.sidecars import Sidecars
from captioner.errors import DataError, ImageError

__all__ = ["Counts", "run_batch"]

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
DIGESTS_AHEAD = 64


@dataclass
class Counts:
    """How far a run is.

    Attributes:
        captioned: photographs that this run captioned, sidecar and all.
        already: photographs that had a record when it began.
        errors: by kind, the photographs whose record has an error, whichever run wrote it.
        failed: how many of those this run wrote.
        examples: the first error of each kind: the file, and what is wrong.
        stopped: whether it was told to stop before the end.
        clock: gives seconds.
    """

    captioned: int = 0
    already: int = 0
    failed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)
    stopped: bool = False
    clock: Callable[[], float] = monotonic

    def __post_init__(self) -> None:
        self._begun = self.clock()

    @property
    def done(self) -> int:
        """Photographs that have a record."""
        return self.captioned + self.failed + self.already

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return self.clock() - self._begun

    @property
    def images_per_second(self) -> float:
        """Of this run, those that failed included."""
        return (self.captioned + self.failed) / max(self.seconds, 1e-9)

    def note_error(self, record: Record) -> None:
        """Count a record's error."""
        kind = record.get("error_kind", "unknown")
        self.errors[kind] += 1
        self.examples.setdefault(kind, (record["file"], record["error"]))


def run_batch(
    items: Iterable[Item],
    engine: Engine,
    log: RecordLog,
    *,
    sidecars: Sidecars | None = None,
    dedupe: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Counts], None] = lambda _: None,
) -> Counts:
    """Caption all photographs that the log lacks, and write down each as soon as it is done.

    Args:
        items: all photographs; taken as the run goes.
        engine: what captions.
        log: where records go. It is finished if the run comes to its end, else left for the next one.
        sidecars: what writes a file beside each photograph, before its record; members of shards have none.
        dedupe: give photographs of equal bytes one caption; the records of all but the first name it as
            ``duplicate_of``, and each has its ``sha256``.
        stop: asked after each batch whether to stop.
        progress: told after each batch how far the run is.

    Raises:
        CaptionerError: it cannot go on; what was done is written.
    """
    run = _Run(log, sidecars, stop)
    todo = run.distinct(run.missing(items)) if dedupe else run.expect(run.missing(items))
    with closing(engine.run(todo)) as batches:
        for records in batches:
            for record in records:
                run.write(record)
            progress(run.counts)
            if stop():
                break
    run.counts.stopped = stop()
    if log.in_place or not run.counts.stopped:
        log.finish()
    return run.counts


@dataclass(frozen=True)
class _Expected:
    """A photograph whose record is to come.

    Attributes:
        item: the photograph.
        digest: SHA-256 of its bytes, in hexadecimal, where duplicates are looked for.
        first: the key of the first photograph of the same bytes, if it is another one.
    """

    item: Item
    digest: str = ""
    first: str = ""


class _Run:
    def __init__(self, log: RecordLog, sidecars: Sidecars | None, stop: Callable[[], bool]) -> None:
        self.log, self.sidecars, self.stop = log, sidecars, stop
        self.counts = Counts()
        self.expected: dict[str, _Expected] = {}  # by key, in the items' order

    def missing(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if self.stop():
                return
            if item.key not in self.log:
                yield item
                continue
            self.counts.already += 1
            if self.log.failed(item.key):
                self.counts.note_error(self.log[item.key])

    def expect(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            self.expected[item.key] = _Expected(item)
            yield item

    def distinct(self, items: Iterable[Item]) -> Iterator[Item]:
        """Those whose bytes come for the first time; the others wait for the record of the first."""
        firsts = dict(self.log.digests)
        for item, digest in prefetch(_digest, items, workers=os.cpu_count() or 1, ahead=DIGESTS_AHEAD):
            first = firsts.setdefault(digest, item.key) if digest else item.key
            if first == item.key:
                self.expected[item.key] = _Expected(item, digest)
                yield item
            else:
                self.expected[item.key] = _Expected(item, digest, first)
                self._write_duplicates()

    def write(self, record: Record) -> None:
        expected = self.expected.pop(record["file"])
        self._write(expected, record)
        self._write_duplicates()

    def _write_duplicates(self) -> None:
        """Write the records of duplicates as soon as it is their turn."""
        while self.expected:
            key, expected = next(iter(self.expected.items()))
            if expected.first not in self.log:
                return
            del self.expected[key]
            self._write(expected, self.log[expected.first] | {"file": key, "duplicate_of": expected.first})

    def _write(self, expected: _Expected, record: Record) -> None:
        if expected.digest:
            record["sha256"] = expected.digest
        if self.sidecars and "caption" in record and expected.item.offset is None:
            record |= self._write_sidecar(self.sidecars, record)
        self.log.append(record)
        if "error" in record:
            self.counts.failed += 1
            self.counts.note_error(record)
        else:
            self.counts.captioned += 1

    def _write_sidecar(self, sidecars: Sidecars, record: Record) -> Record:
        """What the record says of it, if it could not be written."""
        try:
            sidecars.write(record["file"], record)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DataError(
                    f"{record['file']}: its sidecar cannot be written: {error.strerror}. The {len(self.log)} "
                    "records so far are safe: make room, and the same command goes on"
                ) from error
            problem = f"cannot be written: {error.strerror}"
        except DataError as error:
            problem = str(error)
        else:
            return {}
        return {"error": f"its sidecar {problem}", "error_kind": "sidecar"}


def _digest(item: Item) -> str:
    """SHA-256 of a photograph's bytes; empty if it cannot be read, which the engine will find out as well."""
    try:
        source = item.source()
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()
        if not os.path.isfile(source):
            return ""
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (ImageError, OSError):
        return ""
