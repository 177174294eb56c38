"""One run of a batch: what is to do, done by an engine, written down, and counted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from captioner.batch.counts import Counts
from captioner.batch.engine import Engine
from captioner.batch.items import RAW_SUFFIXES, Dedupe, Item, identity
from captioner.batch.log import Entry, RecordLog
from captioner.batch.origin import what_changed
from captioner.batch.prefetch import prefetch
from captioner.batch.records import Record, without_sidecar
from captioner.batch.sidecars import ELSEWHERE, Left, Sidecars
from captioner.errors import ImageError

__all__ = ["run_batch"]

DIGESTS_AHEAD = 64


def run_batch(
    items: Iterable[Item],
    engine: Engine,
    log: RecordLog,
    *,
    origin: Mapping[str, Any] | None = None,
    update: bool = False,
    sidecars: Sidecars | None = None,
    dedupe: Dedupe | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Counts], None] = lambda _: None,
) -> Counts:
    """Caption all photographs that the log lacks, and write down each as soon as it is done.

    A photograph whose file has changed since it was captioned is captioned anew.

    Args:
        items: all photographs; taken as the run goes.
        engine: what captions.
        log: where records go. It is finished if the run comes to its end, else left for the next one.
        origin: the ``model``, and what else :func:`~captioner.batch.origin.made_with` gives; None says
            nothing of it in the records.
        update: caption anew what was made with another model or other options; else it is counted.
        sidecars: what writes a file beside each photograph, before its record; those of earlier records are
            written as well. Members of shards and a store's files have none.
        dedupe: give photographs of equal bytes one caption, and each record its ``sha256``; "stem": those of
            a folder with equal names but for the suffix, RAW files last. All but the first have a record
            that names it as ``duplicate_of``. If the first of a stem is damaged, the next one has a caption
            of its own.
        stop: asked after each batch whether to stop.
        progress: told after each batch how far the run is.

    Raises:
        CaptionerError: it cannot go on; what was done is written.
    """
    run = _Run(log, sidecars, stop, progress, dict(origin or {}), update)
    todo = run.distinct(run.missing(items), dedupe) if dedupe else run.expect(run.missing(items))
    run.caption(engine, todo)
    while run.left_alone and not stop():
        left_alone, run.left_alone = run.left_alone, []
        run.caption(engine, run.distinct(left_alone, "stem"))
    run.counts.stopped = stop()
    run.counts.sidecars = sidecars.written if sidecars else 0
    if log.in_place or not run.counts.stopped:
        log.finish()
    return run.counts


@dataclass(frozen=True)
class _Expected:
    """A photograph whose record is to come.

    Attributes:
        item: the photograph.
        version: of the file, before it is read.
        digest: SHA-256 of its bytes, in hexadecimal, where duplicates are looked for.
        first: the key of the first photograph of the same bytes, if it is another one.
    """

    item: Item
    version: tuple[int, float] | None
    digest: str = ""
    first: str = ""


class _Run:
    def __init__(
        self,
        log: RecordLog,
        sidecars: Sidecars | None,
        stop: Callable[[], bool],
        progress: Callable[[Counts], None],
        origin: dict[str, Any],
        update: bool,
    ) -> None:
        self.log, self.sidecars, self.stop, self.progress = log, sidecars, stop, progress
        self.update = update
        self.origin = json.dumps(origin, sort_keys=True)
        self.made_with = {name: value for name, value in origin.items() if name != "model"}
        self.counts = Counts()
        self.expected: dict[str, _Expected] = {}  # by key, in the items' order
        self.firsts: dict[str, str] = {}  # by digest or stem, the key of the first photograph that has it
        self.left_alone: list[Item] = []  # of the stem of a photograph that is damaged

    def missing(self, items: Iterable[Item]) -> Iterator[Item]:
        """The photographs that need a caption; those that have one get what else this run is to make."""
        for item in items:
            if self.stop():
                return
            entry = self.log.entry(item.key)
            if entry is None or entry.outdated:
                yield item
            elif entry.has_changed(item.version()):
                self.counts.changed += 1
                self._forget(self.log[item.key])
                self.log.outdate(item.key)
                yield item
            elif (other := self._made_otherwise(entry)) and self.update:
                self.log.outdate(item.key)
                yield item
            else:
                self.counts.already += 1
                self.counts.other_origins.update([other] if other else [])
                self._keep(item, entry)

    def _forget(self, record: Record) -> None:
        """Let no copy of what a photograph was wait for the record of what it is now."""
        digest = record.get("sha256", "")
        if self.firsts.get(digest) == record["file"]:
            del self.firsts[digest]

    def _made_otherwise(self, entry: Entry) -> str:
        return what_changed(entry.origin, self.origin) if entry.origin and self.made_with else ""

    def _keep(self, item: Item, entry: Entry) -> None:
        """Leave a record as it is, except for what it says of its sidecar."""
        if self.sidecars and not item.is_file and not entry.failed:
            self._note_elsewhere(item)
        if not entry.failed and not (self.sidecars and item.is_file):
            return
        self.progress(self.counts)
        record = self.log[item.key]
        if "caption" in record and item.is_file and (self.sidecars or self.log.retry_errors):
            kept = without_sidecar(record)
            kept |= self._write_sidecar(self.sidecars, item, kept, previous=kept) if self.sidecars else {}
            if kept != record:
                self.log.append(kept)
            record = kept
        if "error" in record:
            self.counts.note_error(record)

    def expect(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            self.expected[item.key] = _Expected(item, item.version())
            yield item

    def distinct(self, items: Iterable[Item], dedupe: Dedupe) -> Iterator[Item]:
        """Those whose bytes or stem come for the first time; the others wait for the record of the first."""
        marked: Iterable[tuple[Item, str]] = _shots(items)
        known = ((_stem(record["file"]), record["file"]) for record in self.log if _shows_all(record))
        if dedupe == "bytes":
            marked = prefetch(_digest, items, workers=os.cpu_count() or 1, ahead=DIGESTS_AHEAD)
            known = ((digest, key) for digest, key in self.log.digests.items())
        self.firsts = {mark: key for mark, key in known if self._stands(key)}
        for item, mark in marked:
            first = self.firsts.setdefault(mark, item.key) if mark else item.key
            digest = mark if dedupe == "bytes" else ""
            if first == item.key:
                self.expected[item.key] = _Expected(item, item.version(), digest)
                yield item
            else:
                self.expected[item.key] = _Expected(item, item.version(), digest, first)
                self._write_duplicates()

    def _stands(self, key: str) -> bool:
        """Whether this run will leave a photograph's record as it is, wherever it comes among the items."""
        entry = self.log.entry(key)
        if entry is None or not self.log.is_current(Item(key, identity(key))):
            return False
        return not (self.update and self._made_otherwise(entry))

    def caption(self, engine: Engine, todo: Iterable[Item]) -> None:
        """Caption photographs that are expected, until all are done or the run is to stop."""
        with closing(engine.run(todo)) as batches:
            for records in batches:
                for record in records:
                    self.write(record)
                self.progress(self.counts)
                if self.stop():
                    break

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
            record = self.log[expected.first]
            if not expected.digest and not _shows_all(record):  # another file of the shot may
                self.left_alone.append(expected.item)
                continue
            record = without_sidecar(record) if "caption" in record else record
            self._write(expected, record | {"file": key, "duplicate_of": expected.first})

    def _write(self, expected: _Expected, record: Record) -> None:
        item = expected.item
        if expected.digest:
            record["sha256"] = expected.digest
        record.pop("photo", None)  # of the first of its bytes
        if expected.version:
            record["photo"] = dict(zip(("bytes", "modified"), expected.version, strict=True))
            if not os.path.isabs(item.path):
                record["photo"]["folder"] = os.path.dirname(identity(item.key))
        if "caption" in record and self.made_with:
            record.setdefault("made_with", self.made_with)
        if self.sidecars and "caption" in record and item.is_file:
            before = without_sidecar(self.log[item.key]) if self.log.entry(item.key) else None
            record |= self._write_sidecar(self.sidecars, item, record, previous=before)
        elif self.sidecars and "caption" in record:
            self._note_elsewhere(item)
        self.log.append(record)
        if "warning" in record:
            self.counts.note_warning(record)
        if "error" in record:
            self.counts.failed += 1
            self.counts.note_error(record)
        else:
            self.counts.captioned += 1

    def _note_elsewhere(self, item: Item) -> None:
        self.counts.note_left(item.key, Left("it", ELSEWHERE))

    def _write_sidecar(
        self, sidecars: Sidecars, item: Item, record: Record, *, previous: Record | None
    ) -> Record:
        """What the record says of it: nothing if it is written, why it was left, or why it cannot be."""
        outcome = sidecars.attempt(item.path, record, previous=previous)
        if outcome is None:
            return {}
        if isinstance(outcome, Left):
            self.counts.note_left(item.key, outcome)
            return {"sidecar": str(outcome)}
        return {"error": f"its sidecar {outcome}", "error_kind": "sidecar"}


def _shows_all(record: Record) -> bool:
    """Whether the whole of a photograph was captioned, so that its caption is that of its other files too."""
    return "caption" in record and "warning" not in record


def _shots(items: Iterable[Item]) -> Iterator[tuple[Item, str]]:
    """Photographs with their stems; of one stem in a row, RAW files come last, as they take longest."""
    for stem, shot in groupby(items, lambda item: _stem(item.key)):
        last = tuple(RAW_SUFFIXES)
        yield from ((item, stem) for item in sorted(shot, key=lambda item: item.key.lower().endswith(last)))


def _stem(key: str) -> str:
    """A photograph's name, however its path is spelled, without the suffix and in lower case."""
    folder, name = os.path.split(identity(key))
    return os.path.join(folder, os.path.splitext(name)[0].lower())


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
