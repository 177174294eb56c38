"""How far a run is, and what it has left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from captioner.batch.records import Record
from captioner.batch.sidecars import Left

__all__ = ["Counts"]


@dataclass
class Counts:
    """How far a run is.

    Attributes:
        captioned: photographs that this run captioned, sidecar and all.
        already: photographs whose record was there when it began, and stands.
        errors: by kind, the photographs whose record has an error, whichever run wrote it.
        failed: how many of those this run wrote.
        warnings: by kind, the photographs that this run captioned from a part of them.
        examples: the first error and warning of each kind: the file, and what is wrong.
        changed: photographs that this run did anew since their file had changed.
        other_origins: by what is different, the records that were left though made with something else.
        sidecars: how many sidecars this run wrote.
        sidecars_left: by reason, the sidecars that were left as they are.
        left_examples: the first of each reason: the photograph, and what is in the way.
        left_out: by kind, the files and folders in which no photographs were looked for.
        stopped: whether it was told to stop before the end.
        clock: gives seconds.
    """

    captioned: int = 0
    already: int = 0
    failed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)
    changed: int = 0
    other_origins: Counter[str] = field(default_factory=Counter)
    sidecars: int = 0
    sidecars_left: Counter[str] = field(default_factory=Counter)
    left_examples: dict[str, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
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

    def note_warning(self, record: Record) -> None:
        """Count a record's warning, ``kind: what is wrong``."""
        kind = record["warning"].partition(":")[0]
        self.warnings[kind] += 1
        self.examples.setdefault(kind, (record["file"], record["warning"]))

    def note_left(self, file: str, left: Left) -> None:
        """Count a sidecar that was left as it is."""
        self.sidecars_left[left.reason] += 1
        self.left_examples.setdefault(left.reason, f"{file}: {left}")
