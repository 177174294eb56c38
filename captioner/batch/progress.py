"""What a batch says on stderr: a bar on a terminal, lines of JSON elsewhere, and a summary at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from threading import Thread
from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from captioner.batch.counts import Counts
from captioner.batch.finding import NEEDED, say_what_is_needed
from captioner.batch.items import Item
from captioner.batch.sidecars import ELSEWHERE, FOREIGN, UNCERTAIN
from captioner.commandline import complain
from captioner.errors import CaptionerError

__all__ = ["ProgressReport", "say_what_is_left", "say_what_is_wrong"]


class ProgressReport:
    """Tells how far a run is.

    Args:
        items: finds all photographs anew; they are counted in a thread, while the run goes on.
        quiet: say nothing but what went wrong.
        console: where a bar is drawn, if it is a terminal; None for stderr.
        every: seconds between two lines of JSON.
    """

    def __init__(
        self,
        items: Callable[[], Iterable[Item]],
        *,
        quiet: bool = False,
        console: Console | None = None,
        every: float = 10.0,
    ) -> None:
        self.console = console or Console(stderr=True)
        self.quiet, self.every = quiet, every
        self.total: int | None = None
        self._items = items
        self._said = monotonic()
        columns = ("captioning", BarColumn(), MofNCompleteColumn(), "{task.fields[more]}")
        self._bar = Progress(
            *(TextColumn(column) if isinstance(column, str) else column for column in columns),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, more="")

    def __enter__(self) -> ProgressReport:
        self._bar.start()
        if not self.quiet:
            Thread(target=self._count, name="count", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _count(self) -> None:
        with suppress(CaptionerError):  # the run meets it, too, and tells
            self.total = sum(1 for _ in self._items())

    def update(self, counts: Counts) -> None:
        """Tell, if it is time to."""
        left = self._seconds_left(counts)
        if self.console.is_terminal:
            more = [f"{counts.failed} failed"] if counts.failed else []
            more += [f"{counts.images_per_second:.1f} images/s"]
            more += [f"{_clock(left)} left"] if left is not None else []
            self._bar.update(self._task, completed=counts.done, total=self.total, more=", ".join(more))
        elif not self.quiet and monotonic() - self._said >= self.every:
            self._said = monotonic()
            self._print(
                {
                    "done": counts.done,
                    "total": self.total,
                    "failed": counts.failed,
                    "images_per_second": round(counts.images_per_second, 2),
                    "seconds_left": None if left is None else round(left),
                }
            )

    def summary(self, counts: Counts) -> None:
        """Tell how the run ended, what it left alone, and which option does otherwise."""
        speed = counts.images_per_second
        for sentence in () if self.quiet else say_what_is_left(counts):
            complain(sentence)
        if self.console.is_terminal and not self.quiet:
            took = f"in {_clock(counts.seconds)}, {speed:.1f} images/s"
            before = f"; {counts.already} were done before" if counts.already else ""
            complain(f"{counts.captioned} captioned, {counts.failed} failed {took}{before}")
        for sentence in say_what_is_wrong(counts):
            complain(sentence)
        if not self.console.is_terminal and not self.quiet:
            self._print(
                {
                    "finished": not counts.stopped,
                    "captioned": counts.captioned,
                    "failed": counts.failed,
                    "already": counts.already,
                    "errors": dict(counts.errors),
                    "warnings": dict(counts.warnings),
                    "changed": counts.changed,
                    "made_otherwise": dict(counts.other_origins),
                    "sidecars": {"written": counts.sidecars, "left": dict(counts.sidecars_left)},
                    "left_out": dict(counts.left_out),
                    "seconds": round(counts.seconds, 1),
                    "images_per_second": round(speed, 2),
                }
            )

    def _seconds_left(self, counts: Counts) -> float | None:
        if self.total is None or not counts.captioned + counts.failed:
            return None
        return max(0, self.total - counts.done) / counts.images_per_second

    def _print(self, data: dict[str, Any]) -> None:
        print(json.dumps(data), file=sys.stderr, flush=True)


def say_what_is_left(counts: Counts) -> Iterator[str]:
    """What a run did not do that somebody may expect of it, a sentence for each."""
    if counts.changed:
        yield f"photographs captioned anew since their files had changed: {counts.changed}"
    for change, count in counts.other_origins.most_common():
        yield f"captions left that were made otherwise ({change}): {count}; --update makes them anew"
    for reason, count in counts.sidecars_left.most_common():
        advice = "; --existing overwrite or append writes them all the same"
        advice = "" if reason in (ELSEWHERE, FOREIGN, UNCERTAIN) else advice
        yield f"sidecars not written: {count}, as for {counts.left_examples[reason]}{advice}"
    yield from say_what_is_needed(counts.left_out)
    others = [f"{count} × {kind}" for kind, count in counts.left_out.most_common() if kind not in NEEDED]
    if others:
        yield f"not looked into: {', '.join(others)}; --all-files takes them too"


def say_what_is_wrong(counts: Counts) -> Iterator[str]:
    """A sentence for each kind of errors and warnings, with an example."""
    for kind, count in (*counts.errors.most_common(), *counts.warnings.most_common()):
        file, problem = counts.examples[kind]
        yield f"{count} × {kind}, such as {file}: {problem}"


def _clock(seconds: float) -> str:
    """``1:02:03``, or ``2:03`` below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
